"""A quantized model that accelerate has placed gives the logits that it gave before."""

from __future__ import annotations

import pytest
import torch

import sq
from sq.models.families import family_of
from sq.nn.spread import spread


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_the_same_logits(packed: bool) -> None:
    quantized = sq.quantize(
        "random_tiny", packed=packed, overrides=["calibration.tokens=64", "calibration.window=16", "bits=w4a4kv4"]
    )
    ids = torch.arange(12)[None]
    expected = quantized.model(ids).logits
    found = spread(quantized.model, family_of(quantized.model.config))
    assert set(found.hf_device_map.values()) == {"cpu"}, "there is nothing else here"
    torch.testing.assert_close(found(ids).logits, expected)
