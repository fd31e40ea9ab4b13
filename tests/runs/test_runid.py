"""A run id changes with what determines the result, and with nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import sq
from sq.config.compose import compose
from sq.config.settings import ExperimentSettings
from sq.runs import environment, runid
from sq.runs.runid import identity, run_id

BASE = ("method=rtn",)


@pytest.fixture(scope="module")
def base() -> ExperimentSettings:
    return compose(BASE)


def test_name_is_readable_and_stable(base: ExperimentSettings) -> None:
    first, second = run_id(base), run_id(compose(BASE))
    assert first == second
    assert first.startswith("tiny-rtn-w4a4-")
    assert len(first.rsplit("-", 1)[1]) == 8
    for values, name in (("4", "tiny-rtn-w4a4kv4-"), ("8", "tiny-rtn-w4a4k4v8-")):
        bits = replace(base.bits, keys="4", values=values)
        assert run_id(replace(base, bits=bits)).startswith(name)


@pytest.mark.parametrize(
    ("bits", "name"),
    [("nvfp4", "nvfp4"), ("w4a4kv4", "w4a4kv4"), ("wnvfp4afp8", "wnvfp4afp8"), ("w4a4q4", "w4a4q4"),
     ("w4a4k16v8", "w4a4k16v8"), ("wfp8a16", "wfp8a16")],
)  # fmt: skip
def test_bits_in_a_name_are_a_label_without_keys_and_values_of_16_bits(bits: str, name: str) -> None:
    assert run_id(compose([*BASE, f"bits={bits}"])).startswith(f"tiny-rtn-{name}-")


@pytest.mark.parametrize(
    "override",
    ["model=qwen3_0_6b", "model.outliers=none", "model.dtype=bfloat16", "method=smoothquant", "bits=w4a8",
     "weights=gptq", "weights.group_size=64", "activations=midrise", "activations.clip=0.9",
     "calibration.tokens=8192", "seed=1", "calibration.seed=1", "task=all", "task.perplexity.count=3"],
)  # fmt: skip
def test_what_determines_the_result_changes_the_id(override: str, base: ExperimentSettings) -> None:
    assert identity(compose([*BASE, override])) != identity(base)


@pytest.mark.parametrize(
    "override",
    ["tracker=none", "tracker.tags=[a]", "paths.results=elsewhere", "paths.cache=elsewhere", "force=true",
     "reference_methods=[]", "calibration.name=other", "model.calibration_text=c4 calibration.text=embedded"],
)  # fmt: skip
def test_what_does_not_determine_the_result_leaves_the_id_alone(override: str, base: ExperimentSettings) -> None:
    assert identity(compose([*BASE, *override.split()])) == identity(base)


@pytest.mark.parametrize(
    "override", ["bits=w3a3", "weights=gptq", "activations=midrise", "seed=5", "calibration.tokens=512"]
)
def test_full_precision_is_one_run_whatever_quantizers_are_asked_for(override: str) -> None:
    assert run_id(compose(["method=fp16", override])) == run_id(compose(["method=fp16"]))


def test_arguments_of_the_method_count() -> None:
    one, other = (identity(compose(["method=smoothquant", f"method.alpha={alpha}"])) for alpha in (0.5, 0.6))
    assert one != other


def test_the_schema_counts_and_neither_the_version_nor_the_source_does(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(compose(BASE))
    monkeypatch.setattr(sq, "__version__", "999.0")
    monkeypatch.setattr(environment, "source_hash", lambda: "0" * 12)
    assert identity(compose(BASE)) == before
    monkeypatch.setattr(runid, "SCHEMA", 999)
    assert identity(compose(BASE)) != before


def make_model(folder: Path, byte: bytes = b"0") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"0" * 300_000 + byte)
    return folder


def test_a_local_model_counts_by_content_and_not_by_place(tmp_path: Path) -> None:
    one, same, other = make_model(tmp_path / "a"), make_model(tmp_path / "b"), make_model(tmp_path / "c", b"1")
    ids = [identity(compose([*BASE, f"model.path={folder}"])) for folder in (one, same, other)]
    assert ids[0] == ids[1] != ids[2]


def test_a_local_text_counts_by_content_and_not_by_place(tmp_path: Path) -> None:
    texts = {"a.txt": "words", "b.txt": "words", "c.txt": "other"}
    for name, content in texts.items():
        (tmp_path / name).write_text(content)
    ids = [identity(compose([*BASE, "calibration.text=mine", f"calibration.path={tmp_path / name}"])) for name in texts]
    assert ids[0] == ids[1] != ids[2]
    ids = [
        identity(compose([*BASE, "task.perplexity.texts=[mine]", f"task.perplexity.path={tmp_path / name}"]))
        for name in texts
    ]
    assert ids[0] == ids[1] != ids[2]
