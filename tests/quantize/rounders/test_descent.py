"""Coordinate descent against the error itself, tried code by code and scale by scale in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizers import weight_quantizer
from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.grid import Grid
from sq.formats.labels import format_of
from sq.formats.qtensor import QTensor
from sq.formats.weight import WeightQuantizer
from sq.quantize.rounders.descent import descend
from sq.quantize.rounders.gptq import Gptq, gptq
from sq.quantize.rounders.rounder import RoundingStatistics


def problem(d_out: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, and H and D of correlated inputs that the quantized stream has partly lost, float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=generator) * torch.logspace(0, -1, n)[:, None]
    full = torch.randn(200, n, generator=generator) @ mix
    x = full @ (torch.eye(n) + 0.1 * torch.randn(n, n, generator=generator))
    x, full = x.double(), full.double()
    return torch.randn(d_out, n, generator=generator), x.T @ x / 100, (full - x).T @ x / 100


def of_name(name: str) -> WeightQuantizer:
    format = format_of(name)
    assert format is not None
    return WeightQuantizer(format)


def error(w: Tensor, q: Tensor, hessian: Tensor, mismatch: Tensor | None) -> Tensor:
    """What falls, of each row: (w - q) H (w - q)^T - 2 q (w D)^T with H damped, float64."""
    w, q = w.double(), q.double()
    h = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    fits = ((w - q) @ h * (w - q)).sum(1)
    return fits if mismatch is None else fits - 2 * (q * (w @ mismatch)).sum(1)


def is_least_over_single_codes(w: Tensor, found: QTensor, hessian: Tensor, mismatch: Tensor | None) -> bool:
    """No code of a row can be put in another's place with a smaller error, to rounding."""
    least = error(w, found.dequantize(), hessian, mismatch)
    codes = range(-8, 8) if found.codes.dtype == torch.int8 else range(16)
    for j in range(w.shape[1]):
        for code in codes:
            other = found.codes.clone()
            other[:, j] = code
            moved = QTensor(found.format, other, found.scale, found.zero, found.second)
            if (error(w, moved.dequantize(), hessian, mismatch) < least - 1e-4 * least.abs()).any():
                return False
    return True


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), n=st.integers(1, 12), block=st.sampled_from([1, 5, 128]), corrected=st.booleans())
def test_it_ends_where_no_single_code_can_be_better(seed: int, n: int, block: int, corrected: bool) -> None:
    w, hessian, mismatch = problem(5, n, seed)
    lost = mismatch if corrected else None
    quantizer = weight_quantizer(4, "symmetric")
    (found,) = gptq([w], hessian, quantizer, block=block, descent=50, mismatch=lost)
    assert is_least_over_single_codes(w, found, hessian, lost)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    "quantizer",
    [
        weight_quantizer(4, "symmetric"),
        weight_quantizer(4, "asymmetric", 8),
        weight_quantizer(4, "midrise", 8),
        of_name("mxfp4"),
        of_name("nvfp4"),
    ],
    ids=["symmetric", "asymmetric groups", "midrise groups", "mxfp4", "nvfp4"],
)
def test_it_is_better_than_the_walk(quantizer: WeightQuantizer, act_order: bool) -> None:
    w, hessian, _ = problem(24, 64)
    (walked,) = gptq([w], hessian, quantizer, act_order=act_order)
    (found,) = gptq([w], hessian, quantizer, act_order=act_order, descent=3)
    before, after = (error(w, made.dequantize(), hessian, None) for made in (walked, found))
    assert bool((after <= before * (1 + 1e-5)).all())
    assert float(after.sum()) < 0.995 * float(before.sum())


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    scheme=st.sampled_from(["symmetric", "asymmetric", "midrise"]),
    corrected=st.booleans(),
)
def test_no_scale_can_be_better_in_the_end(seed: int, scheme: str, corrected: bool) -> None:
    w, hessian, mismatch = problem(5, 12, seed)
    lost = mismatch if corrected else None
    (found,) = gptq([w], hessian, weight_quantizer(4, scheme), descent=50, mismatch=lost)
    least = error(w, found.dequantize(), hessian, lost)
    for factor in (0.97, 0.999, 1.001, 1.03):
        moved = QTensor(found.format, found.codes, factor * found.scale, found.zero, found.second)
        assert (error(w, moved.dequantize(), hessian, lost) >= least - 1e-4 * least.abs()).all()


def test_a_scale_that_fits_its_codes_badly_is_mended() -> None:
    """Levels of a grid 1.6 times too wide: uncorrelated inputs give the scale of a row's own least squares fit."""
    w, _, _ = problem(6, 32)
    grid = weight_quantizer(4, "symmetric").grid(w)
    wide = Grid(grid.format, 1.6 * grid.scale)
    codes = wide.encode(w.clone()).T.to(torch.int8).contiguous()
    _, fitted = descend(w.T.contiguous(), codes, torch.eye(32), wide, [0] * 32, sweeps=1, damping=0.0)
    units = codes.T.double()
    expected = (units * w).sum(1) / units.square().sum(1)
    torch.testing.assert_close(fitted.scale[:, 0].double(), expected, rtol=1e-5, atol=0)


def test_a_scale_of_a_whole_tensor_stays() -> None:
    w, hessian, _ = problem(6, 20)
    (walked,) = gptq([w], hessian, of_name("fp8_tensor"))
    (found,) = gptq([w], hessian, of_name("fp8_tensor"), descent=2)
    assert torch.equal(found.scale, walked.scale)


def test_blocks_change_nothing() -> None:
    w, hessian, mismatch = problem(9, 40)
    made = [
        gptq([w], hessian, weight_quantizer(4, "symmetric"), block=block, descent=2, mismatch=mismatch)[0].codes
        for block in (1, 7, 128)
    ]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_dead_columns_stay_and_columns_without_correlation_are_nearest_to_their_scale() -> None:
    w, _, _ = problem(6, 10)
    diagonal = torch.rand(10).add(0.1)
    diagonal[3] = 0
    (found,) = gptq([w], diagonal.diag(), weight_quantizer(4, "symmetric"), descent=50)
    assert (found.codes[:, 3] == 0).all()
    live = diagonal > 0
    expected = (w / found.scale).round().clamp(-8, 7).to(torch.int8)
    assert torch.equal(found.codes[:, live], expected[:, live])


def test_the_rounder_hands_it_on_and_refuses_negative_sweeps() -> None:
    w, hessian, _ = problem(6, 20)
    quantizer = weight_quantizer(4, "symmetric")
    (expected,) = gptq([w], hessian, quantizer, descent=2)
    (found,) = Gptq(quantizer, descent=2).round([w], RoundingStatistics("", hessian))
    assert torch.equal(found.codes, expected.codes)
    with pytest.raises(QuantizationError, match="descent=-1"):
        Gptq(quantizer, descent=-1)
