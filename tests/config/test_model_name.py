"""A model without a name of its own is called by its path, in settings, run ids and records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sq.config.compose import compose
from sq.config.model_name import model_name
from sq.config.parse import as_config, parse
from sq.errors import ConfigError
from sq.runs.runid import identity, run_id

CUSTOM = ("method=rtn", "model=custom")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("embedded", "tiny"),
        ("Qwen/Qwen3-4B", "Qwen3-4B"),
        ("gpt2", "gpt2"),
        ("/models/Qwen3-4B", "Qwen3-4B"),
        ("/models/Qwen3-4B//", "Qwen3-4B"),
        ("/models/elsewhere/../Qwen3-4B/.", "Qwen3-4B"),
        ("~/Qwen3-4B", "Qwen3-4B"),
        ("/models/Qwen3-4B-Q4_K_M.gguf", "Qwen3-4B-Q4_K_M"),
        ("/models/big-00001-of-00003.GGUF", "big"),
        ("/cache/models--Qwen--Qwen3-4B/snapshots/1a2b3c", "Qwen3-4B"),
        ("/cache/models--gpt2/snapshots/1a2b3c/", "gpt2"),
        ("/models/my model (new)", "my-model-new"),
        ("/models/.hidden", "hidden"),
        ("/models/世界", "custom"),
        ("/", "custom"),
    ],
)
def test_the_last_part_of_a_path_that_fits_in_a_folders_name(path: str, name: str) -> None:
    assert model_name(path) == name
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", model_name(path))


def test_a_relative_path_is_called_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path / "my-model")
    assert model_name(".") == model_name("./") == "my-model"


def test_a_given_name_wins_and_files_of_models_name_theirs() -> None:
    assert compose([*CUSTOM, "model.path=owner/Model-1"]).model.name == "Model-1"
    assert compose([*CUSTOM, "model.path=owner/Model-1", "model.name=mine"]).model.name == "mine"
    assert compose(["method=rtn", "model=llama2_7b", "model.path=owner/copy"]).model.name == "llama2_7b"
    assert compose(["method=rtn", "model.path=owner/copy"]).model.name == "copy"
    assert compose(["method=rtn"]).model.name == "tiny"
    settings = compose([*CUSTOM, "model.path=owner/Model-1"])
    assert parse(OmegaConf.create(as_config(settings))) == settings
    assert as_config(settings)["model"]["name"] == "Model-1"


def test_a_missing_path_is_the_only_mistake() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(CUSTOM)
    assert caught.value.problems == ["model.path is missing; set it with model.path=<value>"]


def test_a_name_counts_in_the_id_only_where_it_is_given(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    a, b, given, same = (
        compose([*CUSTOM, f"model.path={tmp_path / name}", *more])
        for name, more in (("a", []), ("b", []), ("a", ["model.name=mine"]), ("a", ["model.name=a"]))
    )
    assert identity(a) == identity(b) == identity(same) != identity(given)
    assert [run_id(one).split("-rtn-")[0] for one in (a, b, given)] == ["a", "b", "mine"]
