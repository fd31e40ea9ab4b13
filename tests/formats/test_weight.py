"""Weight quantizer and RTN: clip search against brute force in float64, groups, sizes, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantizers import row_format, weight_quantizer

from sq.errors import QuantizationError
from sq.formats.elements import SCHEMES, Scheme
from sq.formats.grid import row_grid

CLIPS = [1 - i / 100 for i in range(80)]


def weight(d_out: int, d_in: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def costs(rows: torch.Tensor, values: torch.Tensor, norm: float) -> np.ndarray:
    error = np.abs(values.numpy().astype(np.float64) - rows.numpy().astype(np.float64))
    result: np.ndarray = (error**norm).sum(1)
    return result


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group_size", "norm"), [(None, 2.4), (16, 2.4), (None, 2.0), (None, 4.0)])
def test_clip_search_equals_brute_force(scheme: Scheme, bits: int, group_size: int | None, norm: float) -> None:
    w = weight(23, 48, seed=bits)
    w[3, 5] = 0.5  # an outlier
    w[4] = 0
    found = weight_quantizer(bits, scheme, group_size, norm=norm).quantize(w).dequantize()
    rows = w if group_size is None else w.reshape(-1, group_size)
    best = np.stack(
        [costs(rows, row_grid(rows, row_format(bits, scheme, group_size is None), p).fake(rows), norm) for p in CLIPS]
    ).min(0)
    np.testing.assert_allclose(costs(rows, found.reshape(rows.shape), norm), best, rtol=2e-5, atol=1e-60)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_search_is_never_worse_and_chunks_change_nothing(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    w = weight(31, 64)
    searched = weight_quantizer(4, scheme).quantize(w)
    plain = weight_quantizer(4, scheme, clip=1.0).quantize(w)
    assert (costs(w, searched.dequantize(), 2.4) <= costs(w, plain.dequantize(), 2.4) * (1 + 1e-6)).all()
    monkeypatch.setattr("sq.formats.clip_search._CPU_CHUNK", 5 * 64)
    again = weight_quantizer(4, scheme).quantize(w)
    assert torch.equal(again.codes, searched.codes)
    assert torch.equal(again.scale, searched.scale)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [None, 12])
def test_dequantize_is_the_grid_applied(scheme: Scheme, bits: int, group_size: int | None) -> None:
    w = weight(5, 36, dtype=torch.bfloat16)
    result = weight_quantizer(bits, scheme, group_size, clip=1.0).quantize(w)
    rows = w.float() if group_size is None else w.float().reshape(-1, group_size)
    expected = row_grid(rows, row_format(bits, scheme, group_size is None)).fake(rows).reshape(w.shape)
    assert torch.equal(result.dequantize(), expected)
    assert result.dequantize(torch.float16).dtype == torch.float16
    assert result.codes.dtype == (torch.uint8 if scheme == "asymmetric" else torch.int8)
    assert result.scale.shape == (5, 1 if group_size is None else 3)
    assert (result.zero is not None) == (scheme == "asymmetric")


def test_call_rounds_and_passes_the_gradient() -> None:
    quantizer = weight_quantizer(4)
    w = weight(4, 8, dtype=torch.bfloat16).requires_grad_()
    out = quantizer(w)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, quantizer.quantize(w.detach()).dequantize(torch.bfloat16))
    out.sum().backward()
    assert w.grad is not None
    assert torch.equal(w.grad, torch.ones_like(w))


def test_bytes_when_packed() -> None:
    w = weight(6, 32)
    assert weight_quantizer(4).quantize(w).nbytes() == 6 * 32 // 2 + 6 * 2
    assert weight_quantizer(4, "asymmetric", 8).quantize(w).nbytes() == 6 * 32 // 2 + 6 * 4 * 4
    assert weight_quantizer(3, "midrise").quantize(w).nbytes() == 6 * 32 * 3 // 8 + 6 * 2
    assert weight_quantizer(3).quantize(weight(1, 3)).nbytes() == 2 + 2


def test_rows_do_not_see_each_other() -> None:
    w = weight(9, 20)
    order = torch.randperm(9)
    quantizer = weight_quantizer(4, "midrise")
    assert torch.equal(quantizer.quantize(w[order]).codes, quantizer.quantize(w).codes[order])


def test_no_rows() -> None:
    result = weight_quantizer(4, "asymmetric", 4).quantize(torch.empty(0, 8))
    assert result.dequantize().shape == (0, 8)


@pytest.mark.parametrize(
    ("w", "text"),
    [
        (torch.ones(8), r"shape \(8,\)"),
        (torch.ones(3, 0), r"shape \(3, 0\)"),
        (torch.ones(2, 10), "groups of 4, which do not divide 10 features"),
        (torch.tensor([[1.0, torch.nan, torch.inf, 0.0]]), "2 of the weight's 4 entries are NaN or inf"),
    ],
)
def test_bad_weights_are_named(w: torch.Tensor, text: str) -> None:
    with pytest.raises(QuantizationError, match=text):
        weight_quantizer(4, group_size=4).quantize(w)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bits": 1},
        {"bits": 4, "group_size": -1},
        {"bits": 4, "norm": 1.0},
        {"bits": 4, "max_shrink": 1.0},
        {"bits": 4, "search_grid": 1},
    ],
)
def test_bad_arguments_are_errors(arguments: dict[str, int]) -> None:
    with pytest.raises(QuantizationError):
        weight_quantizer(**arguments)


def test_a_group_need_not_hold_zero_and_a_channel_does() -> None:
    w = weight(4, 32).abs() + 5
    channel = weight_quantizer(4, "asymmetric", clip=1.0).quantize(w).dequantize()
    group = weight_quantizer(4, "asymmetric", 8, clip=1.0).quantize(w).dequantize()
    assert (group - w).abs().max() < 0.005 < 0.02 < (channel - w).abs().max()
