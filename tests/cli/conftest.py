"""One packed checkpoint of the embedded model for all command lines that read one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sq.config.compose import compose
from sq.runs.execute import execute


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With 4-bit keys and values; its cache is in the folder beside it."""
    folder = tmp_path_factory.mktemp("generate")
    overrides = [f"paths.cache={folder / 'singlequant'}", f"save_to={folder / 'packed'}", "tracker=none", "task=none"]
    execute(compose([*overrides, "bits=w4a4kv4", "calibration=single_sample"]), None)
    return folder / "packed"


@pytest.fixture
def own_cache(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands keep what they prepare beside the checkpoint and not in the home of whoever tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(packed.parent))
