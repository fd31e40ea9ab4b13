"""What every test gets: no network, no leftovers of one test in the next, GPU tests skipped with a reason."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # threads that wait for a core another worker has: ten times slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Composing configs makes many small objects, and each full pass walks torch and transformers: 10% of the suite's time.
gc.set_threshold(20_000, 20, 50)


def pytest_configure(config: pytest.Config) -> None:
    """Worker processes take files in the order below, not those with the most tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A long file that begins last leaves one worker alone with it at the end.
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is false"))


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    """Seed torch where it is loaded and put its default dtype back; forget Hydra's global state."""
    torch = sys.modules.get("torch")
    before = torch.get_default_dtype() if torch else None
    if torch:
        torch.manual_seed(0)
    yield
    if torch:
        torch.set_default_dtype(before)
    if (hydra := sys.modules.get("hydra.core.global_hydra")) is not None:
        hydra.GlobalHydra.instance().clear()


@pytest.fixture
def fake_executor(monkeypatch: pytest.MonkeyPatch) -> str:
    """Importable name of an executor that measures nothing (tests/fakes/fake_executor.py)."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "fakes"))
    return "fake_executor:execute"
