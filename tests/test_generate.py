"""sq-generate on a small packed checkpoint of the embedded model."""

from __future__ import annotations

from pathlib import Path

import pytest

from sq.config.compose import compose
from sq.execute import execute
from sq.generate import main


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    overrides = [f"paths.cache={folder / 'cache'}", f"save_to={folder / 'packed'}", "tracker=none", "task=none"]
    execute(compose([*overrides, "bits=w4a4kv4", "calibration=single_sample"]), None)
    return folder / "packed"


def test_text_is_streamed_and_repeats_with_its_seed(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for seed in ("1", "1", "2"):
        assert main([str(packed), "def main(", "--max-new-tokens", "12", "--temperature", "1", "--seed", seed]) == 0
        told.append(capsys.readouterr())
    assert told[0].out.startswith("def main(")
    assert "12 tokens in" in told[0].err
    assert told[0].out == told[1].out != told[2].out


def test_a_folder_that_is_none_ends_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "x"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
