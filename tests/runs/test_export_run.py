"""A run with export=: the folder is of the run, a finished one is reused, and one that is damaged is made again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sq.checkpoint.export.stamp import read_stamp
from sq.checkpoint.manifest import damaged_files
from sq.config.compose import compose
from sq.errors import ConfigError
from sq.runs.execute import execute
from sq.runs.experiment import run
from sq.runs.preflight import check_jobs
from sq.runs.runid import identity, run_id

pytest.importorskip("compressed_tensors", reason="pip install 'singlequant[export]'")
pytestmark = pytest.mark.slow

QUICK = ("task=none", "tracker=none", "reference_methods=[]", "calibration.tokens=512", "calibration.window=64")


def test_an_exported_run(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    given = ["export=compressed-tensors", f"save_to={folder}", *QUICK, f"paths.results={tmp_path / 'runs'}"]
    settings = compose(given)
    check_jobs([settings])
    first = run(settings)
    assert (first.status, first.arithmetic, first.error) == ("finished", "fake", None)
    stamp = read_stamp(folder)
    assert stamp is not None
    assert (stamp["export"], stamp["run"]) == ("compressed-tensors", identity(settings))
    assert stamp["recipe"]["method"]["down"] == "hadamard"
    assert str(tmp_path) not in (folder / "export.json").read_text() + (folder / "config.json").read_text()
    assert {"tokenizer.json", "generation_config.json", "model.safetensors.index.json"} <= set(stamp["files"])
    card = (folder / "README.md").read_text()
    assert "Not with transformers" in card
    assert "## Results" not in card
    assert str(tmp_path) not in card
    assert run(settings).created == first.created, "a finished run with its folder is reused"
    plain = compose(
        ["method=singlequant_export", "activations=full_range", *QUICK, f"paths.results={tmp_path / 'runs'}"]
    )
    assert run_id(plain) == run_id(settings)
    assert run(plain).created == first.created, "the run without the folder has the same numbers"

    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-4] + b"\0\1\2\3")
    assert damaged_files(folder)
    assert run(settings).created != first.created
    assert not damaged_files(folder)

    other = compose([*given, "seed=1"])
    with pytest.raises(ConfigError, match="holds the checkpoint of run"):
        check_jobs([other])
    with pytest.raises(ConfigError, match="leave out packed=True"):
        execute(settings, None, packed=True)


def test_the_card_has_what_the_run_measured(tmp_path: Path) -> None:
    given = ["export=compressed-tensors", f"save_to={tmp_path / 'folder'}", "method.down=none", *QUICK[1:]]
    done = execute(compose([*given, "task.perplexity.count=2"]), None)
    text = (tmp_path / "folder" / "README.md").read_text()
    row = re.search(r"\| perplexity \| embedded \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|", text)
    assert row is not None
    value, low, high = map(float, row.groups())
    assert low <= value <= high
    assert value == pytest.approx(done.metrics["ppl/embedded"], rel=1e-3)
    assert 'from_pretrained("FOLDER")' in text
    assert "license: apache-2.0" in text
    assert not damaged_files(tmp_path / "folder"), "the card may be edited"


def test_a_method_whose_transform_has_no_name_is_refused_when_the_sizes_are_known(tmp_path: Path) -> None:
    """QuaRot's Hadamard of the embedded model's 768 features is not one of a power of two; nothing is calibrated."""
    given = ["export=compressed-tensors", f"save_to={tmp_path / 'folder'}", "method=quarot", "method.cross_head=none"]
    with pytest.raises(ConfigError, match=r"method=quarot: its hadamard rotation of 768 features .*method\.down=none"):
        execute(compose([*given, *QUICK]), None)
    assert not (tmp_path / "folder").exists()
