"""Calibration: how many tokens it keeps, and what it does to layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.checkpoints import save_random

from sq.models.stream import DecoderStream
from sq.quantize import calibration as module
from sq.quantize.calibration import Calibration


@pytest.mark.parametrize(("sample", "least", "kept"), [(None, 8, 60), (None, 100, 100), (5, 8, 5)])
def test_samples_are_as_many_as_the_residual_stream_is_wide(
    sample: int | None, least: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST_SAMPLE", least)
    save_random(tmp_path, "llama")  # hidden states of 60
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 97, (4, 64), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(stream, ids, batch=2, sample=sample, fold_norms=True)
    assert calibration.sample == kept
    hidden = calibration.embedded(stream.embeddings_and_head())
    assert [tuple(batch.shape) for batch in hidden] == [(2, 64, 60)] * 2
    found, outputs = calibration.collect(0, stream.layer(0), hidden)
    assert len(found["qkv"].tokens) <= kept < 2 * len(found["qkv"].tokens) + 2
    torch.testing.assert_close(torch.cat(outputs), torch.cat(calibration.run(0, stream.layer(0), hidden)))
