"""Whole runs on texts of one's own and on `pydoc`, of a model in a folder that is called by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models.checkpoints import save_random
from transformers import PreTrainedTokenizerFast

from sq.config.compose import compose
from sq.runs import runid
from sq.runs.experiment import run
from sq.runs.runid import identity

SMALL = ["method=rtn", "model=custom", "model.window=64", "model.calibration_tokens=512", "task.perplexity.count=3",
         "task.perplexity.untrained=true", "tracker=none", "reference_methods=[]"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sq.embedded.model_folder import committed_folder

    place = tmp_path_factory.mktemp("own")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(committed_folder())
    model = place / "Small-Model.v1"
    save_random(model, "qwen3", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, head_dim=16)
    tokenizer.save_pretrained(model)
    (place / "texts").mkdir()
    for name in ("train.txt", "test.md"):
        (place / "texts" / name).write_text(f"These are the words of {name}, written for a run. " * 60)
    return place


@pytest.mark.parametrize("key", ["path", "dataset_path"])
def test_a_text_under_any_name(key: str, folder: Path) -> None:
    own = ["calibration.text=mine", f"calibration.{key}={folder / 'texts'}", "task.perplexity.texts=[mytext,pydoc]",
           f"task.perplexity.{key}={folder / 'texts'}"]  # fmt: skip
    model = f"model.path={folder / 'Small-Model.v1'}/"
    settings = compose([*SMALL, model, *own, f"paths.results={folder / 'runs'}", f"paths.cache={folder / 'cache'}"])
    done = run(settings)
    assert done.status == "finished", done.error
    assert {"ppl/mytext", "kl/mytext", "top1/mytext"} <= set(done.metrics)
    assert (done.metrics["kl/mytext"] or 0) > 0
    assert list(done.extras["texts"]) == ["mytext", "pydoc"]
    assert done.run_id.startswith("Small-Model.v1-rtn-w4a4-")
    record = json.loads((folder / "runs" / done.run_id / "result.json").read_text())
    assert record["model"] == record["config"]["model"]["name"] == "Small-Model.v1"


def test_a_folder_alone_runs_without_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("reached for the network"))
    model = f"model.path={folder / 'Small-Model.v1'}"
    done = run(compose([*SMALL, model, f"paths.results={folder / 'runs'}", f"paths.cache={folder / 'cache'}"]))
    assert done.status == "finished", done.error
    assert (done.metrics["kl/pydoc"] or 0) > 0


def test_the_contents_of_pydoc_and_of_folders_count_in_the_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = f"model.path={folder / 'Small-Model.v1'}"
    mine = ["calibration.text=mine", f"calibration.dataset_path={folder / 'texts'}", "task.perplexity.texts=[embedded]"]
    settings, own = compose([*SMALL, model]), compose([*SMALL, model, *mine])
    full = compose([*SMALL, "method=fp16", model, "task.perplexity.texts=[embedded]"])
    before = [identity(one) for one in (settings, own, full)]
    with monkeypatch.context() as patch:
        patch.setattr(runid, "pydoc_digest", lambda split: f"another {split}")
        assert [identity(one) == known for one, known in zip((settings, own, full), before, strict=True)] == [
            False, True, True,
        ]  # fmt: skip
    (folder / "texts" / "train.txt").write_text("Other words. " * 300)
    assert identity(own) != before[1]
