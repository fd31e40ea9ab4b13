"""sq-eval: lm-eval's own command line, and the same accuracy by each way of loading a packed folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from models.checkpoints import save_random
from packed_folders import write
from transformers import AutoModelForCausalLM, AutoTokenizer

from sq.cli.eval import main
from sq.embedded.model_folder import embedded_checkpoint
from sq.embedded.tasks import embedded_tasks
from sq.evaluate.zeroshot import zeroshot

pytestmark = pytest.mark.slow

LIMIT = 2


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the embedded one's tokenizer: what it answers is chance, and the same each time."""
    folder = tmp_path_factory.mktemp("small")
    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint(folder / "singlequant"))
    save_random(folder / "original", "llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    packed = write(folder / "original", folder / "packed")
    tokenizer.save_pretrained(packed)
    return packed


def accuracy(folder: Path) -> float:
    """What lm-eval wrote with --output_path."""
    (file,) = folder.rglob("results_*.json")
    return float(json.loads(file.read_text())["results"]["next_line"]["acc_mutual_info,none"])


def test_every_way_of_loading_gives_the_accuracy_of_the_model_in_memory(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small.parent))
    place = embedded_tasks(small.parent / "singlequant")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(small), AutoTokenizer.from_pretrained(small)
    found = zeroshot(model, tokenizer, ["next_line"], batch_size=1, limit=LIMIT, include_path=place)
    ends = ["--tasks", "next_line", "--limit", str(LIMIT), "--output_path"]
    assert main([str(small), *ends, str(tmp_path / "sq-eval")]) == 0
    assert accuracy(tmp_path / "sq-eval") == found.metrics["acc/next_line"]
    words = [
        "--model",
        "hf",
        "--model_args",
        f"pretrained={small},trust_remote_code=True",
        "--include_path",
        str(place),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words, *ends, str(tmp_path / "lm_eval")],
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert accuracy(tmp_path / "lm_eval") == found.metrics["acc/next_line"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "next_line"], "the folder comes first"),
        (["FOLDER"], "--tasks names none"),
        (["FOLDER", "--tasks", "x", "--model", "vllm"], "--model is set by sq-eval"),
        (["nowhere", "--tasks", "x"], "nowhere has no config.json"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    packed: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(packed) if word == "FOLDER" else word for word in words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1


def test_a_folder_whose_name_lm_eval_would_cut_is_refused(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a,b=c").symlink_to(packed)
    assert main([str(tmp_path / "a,b=c"), "--tasks", "x"]) == 2
    assert "rename the folder" in capsys.readouterr().err
