"""MR-GPTQ: a Hadamard inside each scale group and nowhere else."""

from __future__ import annotations

import pytest
import torch

from sq.baselines.mrgptq import MrGptq
from sq.errors import QuantizationError
from sq.formats.catalog import NVFP4
from sq.formats.format import integer
from sq.models.families import SITES, ModelDimensions
from sq.quantize.method import LayerView


def view(hidden: int = 32) -> LayerView:
    return LayerView(0, {}, {}, ModelDimensions(hidden, 48, 2, 1, 16, 1))


def test_nothing_crosses_a_block() -> None:
    transforms = MrGptq(block=16).layer_transforms(view())
    assert set(transforms) == set(SITES)
    online = transforms["down"].online
    assert online is not None
    matrix, block = online.matrix(), torch.block_diag(*[torch.ones(16, 16)] * 3)
    torch.testing.assert_close(matrix.abs(), (block / 4).double())
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(48, dtype=torch.float64))
    assert online.macs() == 48 * 16


def test_the_block_is_the_group() -> None:
    assert MrGptq().obstacle(None, NVFP4) is None
    assert "one scale a token" in str(MrGptq().obstacle(None, integer(4)))
    assert "16 bits" in str(MrGptq().obstacle(None, None))
    assert MrGptq(block=16).obstacle(None, integer(4)) is None


def test_mistakes() -> None:
    with pytest.raises(QuantizationError, match="qkv has 40, gate_up has 40 features, no multiple of the block 16"):
        MrGptq(block=16).layer_transforms(view(40))
    with pytest.raises(QuantizationError, match=r"set method\.block"):
        MrGptq().layer_transforms(view())
    with pytest.raises(ValueError, match="block=6"):
        MrGptq(block=6)
