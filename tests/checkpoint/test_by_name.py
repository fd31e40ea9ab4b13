"""Packed folders in processes that never import this package, and tied heads on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models.checkpoints import save_random
from packed_folders import METHOD, ids_of, write
from recipes import folded
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import sq
from sq.errors import CheckpointError
from sq.methods.yardsticks import RoundToNearest

pytestmark = pytest.mark.slow

ONLINE = folded(order=("orthogonal",), placement="online")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint for all tests that only read it."""
    folder = tmp_path_factory.mktemp("saved")
    save_random(folder / "original", "llama")
    return write(folder / "original", folder / "packed")


def elsewhere(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run code in another process, whose copies of modules go to `home`."""
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)


def test_trust_remote_code_loads_without_an_import(saved: Path, tmp_path: Path) -> None:
    code = f"""
import sys, torch
from transformers import AutoModelForCausalLM, pipeline
model = AutoModelForCausalLM.from_pretrained({str(saved)!r}, trust_remote_code=True)
model.save_pretrained({str(tmp_path / "again")!r})
torch.save(model(torch.load({str(tmp_path / "ids")!r})).logits, {str(tmp_path / "logits")!r})
"""
    torch.save(ids_of(), tmp_path / "ids")
    done = elsewhere(code, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        for folder in (saved, tmp_path / "again"):
            expected = AutoModelForCausalLM.from_pretrained(folder)(ids_of()).logits
            assert torch.equal(torch.load(tmp_path / "logits"), expected)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert not {"auto_map", "transformers_weights"} & set(config), "save_pretrained copies no module"


def test_without_an_import_the_error_says_what_to_do(saved: Path, tmp_path: Path) -> None:
    code = f"from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained({str(saved)!r})"
    done = elsewhere(code, tmp_path)
    assert done.returncode != 0
    assert "\n    pip install singlequant; import sq\n" in done.stderr
    assert "Loading weights" not in done.stderr, "it reads nothing first"


def test_without_the_package_the_module_says_what_to_do(saved: Path, tmp_path: Path) -> None:
    """A package of the same name is hidden too: what the module needs is the room that registers."""
    code = f"""
import sys
sys.modules["sq"] = None
from transformers import AutoConfig
AutoConfig.from_pretrained({str(saved)!r}, trust_remote_code=True)
"""
    done = elsewhere(code, tmp_path)
    assert done.returncode != 0
    assert "ImportError: pip install singlequant; import sq\n" in done.stderr
    assert "pip install sq" not in done.stderr


def test_code_of_a_folder_runs_only_where_it_is_trusted(saved: Path, tmp_path: Path) -> None:
    """The module of a copy would end the process; loading with this package imported never touches it."""
    code = f"""
import sq
from transformers import AutoConfig, AutoModelForCausalLM, pipeline
AutoConfig.from_pretrained({str(saved)!r})
AutoModelForCausalLM.from_pretrained({str(saved)!r})
"""
    done = elsewhere(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "modules" / "transformers_modules").exists()


def test_a_config_that_is_read_first_loads_as_well(saved: Path) -> None:
    """As pipelines and lm-eval do."""
    config = AutoConfig.from_pretrained(saved)
    model = AutoModelForCausalLM.from_pretrained(saved, config=config)
    assert not hasattr(model.config, "transformers_weights")


@pytest.mark.parametrize(("method", "tied"), [(ONLINE, True), (RoundToNearest(), True), (METHOD, False)])
@torch.no_grad()
def test_a_head_stays_tied_where_nothing_rotates_it(method: object, tied: bool, tmp_path: Path) -> None:
    original = save_random(tmp_path / "original", "llama", tied=True)
    folder = write(tmp_path / "original", tmp_path / "packed", method)  # type: ignore[arg-type]
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert ("lm_head.weight" in tensors) == (not tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings == tied
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == tied
    if tied:
        assert torch.equal(model.lm_head.weight, original.lm_head.weight)
    again = sq.save_packed(model, tmp_path / "again")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(again)(ids_of()).logits, model(ids_of()).logits)
    kept = {name for file in again.glob("*.safetensors") for name in safe_open(file, "pt").keys()}  # noqa: SIM118
    assert kept == set(tensors)


def test_a_tied_folder_that_holds_a_head_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_random(tmp_path / "original", "llama")
    folder = write(tmp_path / "original", tmp_path / "packed", RoundToNearest())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    monkeypatch.setenv("SINGLEQUANT_UNCHECKED", "1")
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' belongs to another model"):
        AutoModelForCausalLM.from_pretrained(folder)
