"""Formats and groups that do not go together, refused in the check of a config with the names of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sq.checkpoint.manifest import seal
from sq.config.compose import compose
from sq.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(["method=rtn", *overrides])
    return caught.value.problems


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("bits=nvfp4 activations=midrise", ["activations: nvfp4", "scheme=midrise", "scheme=symmetric"]),
        ("bits=wmxfp4a8 weights.group_size=32", ["weights: mxfp4", "group_size=32", "group_size=null"]),
        ("bits=w4a4kvfp8", ["kv_cache: fp8", "scheme=asymmetric"]),  # kv_cache=asymmetric is the default
        ("bits=w4afp8_tensor", ["activations: the format fp8_tensor", "depend on its batch"]),
        ("bits=w4a4kvfp8_tensor kv_cache=symmetric", ["kv_cache: the format fp8_tensor", "depend on its batch"]),
        ("weights.group_size=100", ["weights.group_size=100", "does not divide the model's 256 or 768"]),
        ("activations.group_size=512", ["activations.group_size=512", "256 or 768 features"]),
        ("bits=w4a4kv4 kv_cache.group_size=48", ["kv_cache.group_size=48", "64 features"]),
        ("method._target_=fake_method.Typed bits=wint4g32a8", ["method=rtn", "int4g32", "int8", "it has no groups"]),
    ],
)
def test_each_refusal_names_both(overrides: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "fakes"))
    (found,) = problems(*overrides.split())
    for word in words:
        assert word in found


def test_widths_that_a_part_does_not_meet_do_not_count() -> None:
    """64 divides all of the embedded model's widths; keys and values in 16 bits have no groups."""
    compose(["method=rtn", "weights.group_size=64", "activations.group_size=128", "kv_cache.group_size=48"])
    compose(["method=rtn", "bits=w16a4", "weights.group_size=100"])
    compose(["method=fp16", "bits=nvfp4", "activations=midrise", "weights.group_size=100"])  # nothing is quantized


def test_widths_of_a_folder_and_of_random_weights_and_not_of_the_hub(tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 200}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    (tmp_path / "model.safetensors").touch()
    (found,) = problems(f"model.path={tmp_path}", "weights.group_size=48")
    assert "200 features" in found
    assert "96" not in found
    assert "24 features" in problems(f"model.path={tmp_path}", "bits=w4a4kv4", "kv_cache.group_size=16")[0]
    assert "256 or 768" in problems("model=random_tiny", "task=none", "weights.group_size=100")[0]
    compose(["method=rtn", "model=llama2_7b", "weights.group_size=100"])


@pytest.mark.slow
def test_an_unusable_save_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is a file" in problems(f"save_to={tmp_path}/file")[0]
    assert "is a file" in problems(f"save_to={tmp_path}/file/packed")[0]
    assert "save_to=/proc/packed" in problems("save_to=/proc/packed")[0]
    assert "finished checkpoint" in problems(f"save_to={tmp_path}")[0]
    (tmp_path / "empty").mkdir()
    (tmp_path / "done").mkdir()
    config: dict[str, Any] = {"quantization_config": {"quant_method": "singlequant", "run": "a", "files": {}}}
    config["quantization_config"]["config_digest"] = seal(config)
    (tmp_path / "done" / "config.json").write_text(json.dumps(config))
    for name in ("empty", "new", "new/below", "done"):
        assert compose(["method=rtn", f"save_to={tmp_path / name}"]).save_to == tmp_path / name
    assert not (tmp_path / "new").exists(), "checking must not make the folder"
    (tmp_path / "done" / "config.json").write_text('{"model_type": "llama"}')
    assert "finished checkpoint" in problems(f"save_to={tmp_path}/done")[0]
