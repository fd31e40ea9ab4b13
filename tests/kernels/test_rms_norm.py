"""The one RMSNorm against transformers' module and the formula written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sq.kernels.rms_norm import rms_norm
from sq.kernels.rotate_quantize import Norm
from sq.kernels.rotate_quantize.front import Front, front_reference
from sq.nn.site_input import DeferredNorm

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = 1e-5


def tokens(dtype: torch.dtype, n: int = 96) -> Tensor:
    x = torch.randn(3, 5, n, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2, 15).view(3, 5, 1)
    x[0, 0] = 0
    return x.to(dtype)


def gain_of(n: int, dtype: torch.dtype) -> Tensor:
    return (1 + torch.randn(n, generator=torch.Generator().manual_seed(1)) / 4).to(dtype)


@pytest.mark.parametrize("gain_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_as_transformers(dtype: torch.dtype, gain_dtype: torch.dtype) -> None:
    """Gains of another dtype included, which make the result the wider one."""
    x, gain = tokens(dtype), gain_of(96, gain_dtype)
    module = LlamaRMSNorm(96, EPS)
    module.weight = nn.Parameter(gain)
    expected = module(x)
    for got in (rms_norm(x, gain, EPS), DeferredNorm(nn.Parameter(gain), EPS).apply_to(x)):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_gain", [False, True])
def test_front_of_the_kernel_has_the_same_bits_in_float32(dtype: torch.dtype, with_gain: bool) -> None:
    x, gain = tokens(dtype), gain_of(96, dtype) if with_gain else None
    wide = x.float()
    expected = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(dtype)
    if gain is not None:  # the product of two 16-bit numbers is exact in float32, and is rounded once
        expected = (expected.float() * gain.float()).to(dtype)
    got = front_reference(x, Front(Norm(EPS, gain)))
    assert got.dtype == torch.float32
    assert torch.equal(got, expected.float())


def test_arithmetic_in_float64_is_the_definition() -> None:
    x = tokens(torch.float32).double()
    expected = x / (x.square().sum(-1, keepdim=True) / 96 + EPS).sqrt()
    torch.testing.assert_close(rms_norm(x, None, EPS, torch.float64), expected, rtol=1e-13, atol=0)


def test_gradients_pass() -> None:
    x, gain = tokens(torch.float32)[1].requires_grad_(), gain_of(96, torch.float32).requires_grad_()
    rms_norm(x, gain, EPS).sum().backward()
    assert x.grad is not None
    assert gain.grad is not None
