"""Saved training states: what comes back, and what is not gone on from."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from sq.learn.training_state import TrainingState, TrainingStateFile

SETTINGS = {"lr": 1.5, "steps": (1, 2), "windows": "abc"}


def test_state_comes_back_bit_for_bit_and_the_newest_one_counts(tmp_path: Path) -> None:
    checkpoint = TrainingStateFile(tmp_path / "new" / "state.safetensors", SETTINGS, 5)
    assert checkpoint.load() is None
    for step in (5, 10):
        r = torch.randn(4, 4, generator=torch.Generator().manual_seed(step)).mT
        checkpoint.save(TrainingState(step, {"r": r, "0.a": r.double()}, [{"step": 0, "loss": 0.1}]))
    found = TrainingStateFile(tmp_path / "new" / "state.safetensors", SETTINGS, 1).load()
    assert found is not None
    assert (found.step, found.records) == (10, [{"step": 0, "loss": 0.1}])
    assert torch.equal(found.tensors["r"], r)
    assert found.tensors["0.a"].dtype == torch.float64
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["state.safetensors"]


def test_other_settings_are_named_and_not_gone_on_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.safetensors"
    TrainingStateFile(path, SETTINGS, 5).save(TrainingState(5, {"r": torch.ones(1)}))
    with caplog.at_level(logging.WARNING, logger="sq"):
        assert TrainingStateFile(path, {**SETTINGS, "lr": 2.0}, 5).load() is None
    assert "other lr; this one starts anew" in caplog.text


def test_a_broken_file_is_told_and_not_gone_on_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint = TrainingStateFile(path, SETTINGS, 5)
    checkpoint.save(TrainingState(5, {"r": torch.ones(100)}))
    path.write_bytes(path.read_bytes()[:-50])
    with caplog.at_level(logging.WARNING, logger="sq"):
        assert checkpoint.load() is None
    assert "cannot be read" in caplog.text


def test_without_a_folder_nothing_is_kept() -> None:
    checkpoint = TrainingStateFile(None, SETTINGS, 5)
    checkpoint.save(TrainingState(5, {"r": torch.ones(1)}))
    assert checkpoint.load() is None
