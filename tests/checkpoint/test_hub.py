"""Upload to a stand-in hub, and load from it by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes.stand_in_hub import StandInHub, stand_in_hub
from huggingface_hub import ModelCard
from models.checkpoints import save_random
from packed_folders import ids_of, write
from transformers import AutoModelForCausalLM

import sq
from sq.errors import CheckpointError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_random(folder / "original", "llama")
    return write(folder / "original", folder / "packed")


def with_hub(hub: StandInHub, code: str, home: Path) -> None:
    """Run code in a process for which the stand-in is the hub."""
    own = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_x", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    env = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    env |= {**own, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr


def test_what_is_pushed_is_the_folder_and_loads_by_name(saved: Path, tmp_path: Path) -> None:
    """Both ways up: the folder as it is, and transformers' own `push_to_hub` of a loaded model."""
    torch.save(ids_of(), tmp_path / "ids")
    up = f"""
import sq
from transformers import AutoModelForCausalLM
print(sq.push_to_hub({str(saved)!r}, "me/small", private=True))
AutoModelForCausalLM.from_pretrained({str(saved)!r}).push_to_hub("me/other")
"""
    down = f"""
import torch
from transformers import AutoModelForCausalLM
ids = torch.load({str(tmp_path / "ids")!r})
found = [AutoModelForCausalLM.from_pretrained("me/small", trust_remote_code=True)(ids).logits]
found.append(AutoModelForCausalLM.from_pretrained("me/other")(ids).logits)  # the first one imported sq
torch.save(found, {str(tmp_path / "logits")!r})
"""
    with stand_in_hub() as hub:
        with_hub(hub, up, tmp_path / "home")
        with_hub(hub, down, tmp_path / "home")
        assert hub.private["me/small"] is True
        assert hub.repositories["me/small"] == {path.name: path.read_bytes() for path in saved.iterdir()}
        tags = ModelCard(hub.repositories["me/other"]["README.md"].decode()).data.tags
        assert set(tags) >= {"singlequant", "quantized"}, "transformers writes the card, and asks for its tags alone"
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(saved)(ids_of()).logits
    for logits in torch.load(tmp_path / "logits"):
        assert torch.equal(logits, expected)


def test_a_snapshot_is_compared_as_far_as_it_was_fetched(saved: Path, tmp_path: Path) -> None:
    """transformers fetches weights before the tokenizer; a weight that is not there, or another one, is told."""
    snapshot = tmp_path / "snapshots" / "0123"
    shutil.copytree(saved, snapshot)
    (snapshot / "load_singlequant.py").unlink()
    AutoModelForCausalLM.from_pretrained(snapshot)
    content = bytearray((snapshot / "model-00001-of-00004.safetensors").read_bytes())
    content[-1] ^= 4
    (snapshot / "model-00001-of-00004.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not what was written"):
        AutoModelForCausalLM.from_pretrained(snapshot)


def test_what_is_damaged_or_no_packed_folder_is_not_pushed(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "damaged")
    (tmp_path / "damaged" / "load_singlequant.py").write_text("")
    with pytest.raises(CheckpointError, match=r"load_singlequant\.py is not what was written.*not uploaded"):
        sq.push_to_hub(tmp_path / "damaged", "me/small")
    for folder in (tmp_path / "none", saved.parent / "original"):
        with pytest.raises(CheckpointError, match="is no packed folder"):
            sq.push_to_hub(folder, "me/small")
    config = json.loads((tmp_path / "damaged" / "config.json").read_text())
    (tmp_path / "damaged" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1.0}))
    with pytest.raises(CheckpointError, match="unchanged"):
        sq.push_to_hub(tmp_path / "damaged", "me/small")
