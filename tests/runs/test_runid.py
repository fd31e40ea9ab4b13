"""A run id changes with what determines the result, and with nothing else."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sq
from sq.config.compose import compose
from sq.config.settings import ExperimentSettings
from sq.runs import environment, runid
from sq.runs.runid import arithmetic, identity, run_id

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
def test_what_does_not_determine_the_result_leaves_the_id_alone(
    override: str, base: ExperimentSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
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


@pytest.mark.parametrize("key", ["path", "dataset_path"])
def test_a_change_in_the_middle_of_a_large_file_counts(tmp_path: Path, key: str) -> None:
    """Of files above 128 kB once only the ends were read."""
    model = make_model(tmp_path / "model")
    (tmp_path / "text.jsonl").write_text('{"text": "word"}\n' * 20_000)
    words = [*BASE, f"model.path={model}", "calibration.text=mine", f"calibration.{key}={tmp_path / 'text.jsonl'}"]
    seen = {identity(compose(words))}
    for file in (model / "model.safetensors", tmp_path / "text.jsonl"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        seen.add(identity(compose(words)))
    assert len(seen) == 3


def test_weights_in_other_shards_are_the_same_model(tmp_path: Path) -> None:
    weights = {"a": torch.arange(5.0), "b": torch.ones(3)}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    save_file(weights, tmp_path / "one" / "model.safetensors")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for tensor, file in shards.items():
        save_file({tensor: weights[tensor]}, tmp_path / "two" / file)
    (tmp_path / "two" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "two" / "consolidated.safetensors").write_bytes(b"of another library")
    one, two = (identity(compose([*BASE, f"model.path={tmp_path / name}"])) for name in ("one", "two"))
    assert one == two
    save_file({"a": weights["a"] + 1}, tmp_path / "two" / "model-1.safetensors")
    assert identity(compose([*BASE, f"model.path={tmp_path / 'two'}"])) != one


def test_the_arithmetic_counts(tmp_path: Path) -> None:
    fake, packed = compose(BASE), compose([*BASE, f"save_to={tmp_path / 'packed'}"])
    assert (arithmetic(fake), arithmetic(packed), arithmetic(compose(["method=fp16"]))) == ("fake", "packed", "none")
    assert identity(fake) != identity(packed) == identity(compose([*BASE, f"save_to={tmp_path / 'other'}"]))


def test_a_model_of_the_hub_counts_by_its_files_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    name = "owner/" + "Model-1"
    missing = identity(compose([*BASE, f"model.path={name}"]))
    model = make_model(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(model))
    first = identity(compose([*BASE, f"model.path={name}"]))
    (model / "model.safetensors").write_bytes(b"1" * 300_001)
    assert len({missing, first, identity(compose([*BASE, f"model.path={name}"]))}) == 3


def test_an_id_costs_little_the_second_time() -> None:
    settings = compose([*BASE, "calibration=pydoc"])
    identity(settings)
    start = time.perf_counter()
    identity(settings)
    assert time.perf_counter() - start < 0.5  # 0.035 s on an idle machine
