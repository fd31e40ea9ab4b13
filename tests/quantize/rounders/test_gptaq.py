"""GPTAQ against the least squares that its factors stand for, one column at a time in float64."""

from __future__ import annotations

import pytest
import torch
from quantizers import rounder, weight_quantizer
from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.elements import SCHEMES, Scheme
from sq.formats.labels import format_of
from sq.formats.weight import WeightQuantizer
from sq.quantize.rounders.gptaq import Gptaq
from sq.quantize.rounders.gptq import Gptq, gptq
from sq.quantize.rounders.rounder import RoundingStatistics


def problem(d_out: int, n: int, tokens: int = 300, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, and H and D of correlated inputs that the quantized stream has partly lost, float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=generator) * torch.logspace(0, -1, n)[:, None]
    full = torch.randn(tokens, n, generator=generator) @ mix
    x = full @ (torch.eye(n) + 0.1 * torch.randn(n, n, generator=generator))
    x, full = x.double(), full.double()
    return torch.randn(d_out, n, generator=generator), 2 / tokens * x.T @ x, 2 / tokens * (full - x).T @ x


def least_squares(
    w: Tensor, hessian: Tensor, mismatch: Tensor, quantizer: WeightQuantizer, alpha: float, order: list[int]
) -> Tensor:
    """Codes (d_out, n) by the regression of each column's loss on the later columns F:

        w_F += ((w_j - q_j) H_jF + alpha w_j D_jF) H_FF^-1

    Groups read their scale when their first column is reached, or from w where the order is another.
    """
    n, size = w.shape[1], quantizer.format.group or w.shape[1]
    h = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    work, codes, grid = w.double().clone(), torch.zeros(w.shape, dtype=torch.int64), quantizer.grid(w)
    in_order = order == list(range(n))
    for position, j in enumerate(order):
        own = grid.column(j // size)
        if in_order and j % size == 0 and quantizer.format.group is not None:
            fresh = quantizer.grid(work[:, j : j + size].float(), grid.second)
            grid.scale[:, j // size] = fresh.scale[:, 0]
            if grid.zero is not None and fresh.zero is not None:
                grid.zero[:, j // size] = fresh.zero[:, 0]
            own = grid.column(j // size)
        q = own.encode(work[:, j].float())
        codes[:, j] = q.long()
        lost, later = work[:, j] - own.decode_(q).double(), order[position + 1 :]
        pushed = lost[:, None] * h[j, later] + alpha * work[:, j, None] * mismatch[j, later]
        if later:
            work[:, later] += pushed @ torch.linalg.inv(h[later][:, later])
    return codes


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("group_size", [None, 6])
@pytest.mark.parametrize("block", [1, 5, 128])
def test_equals_the_least_squares_of_each_column(scheme: Scheme, group_size: int | None, block: int) -> None:
    w, hessian, mismatch = problem(7, 24)
    quantizer = weight_quantizer(4, scheme, group_size)
    (found,) = gptq([w], hessian, quantizer, block=block, mismatch=0.5 * mismatch)
    expected = least_squares(w, hessian, mismatch, quantizer, 0.5, list(range(24)))
    assert torch.equal(found.codes.long(), expected)
    (plain,) = gptq([w], hessian, quantizer)
    assert not torch.equal(found.codes, plain.codes)


@pytest.mark.parametrize("group_size", [None, 5])
def test_act_order_permutes_the_mismatch_too(group_size: int | None) -> None:
    w, hessian, mismatch = problem(6, 25, seed=2)
    quantizer = weight_quantizer(3, "asymmetric", group_size)
    order = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    (found,) = gptq([w], hessian, quantizer, block=7, act_order=True, mismatch=mismatch)
    assert torch.equal(found.codes.long(), least_squares(w, hessian, mismatch, quantizer, 1.0, order))


FORMATS = ["int4 rows", "int4 groups", "midrise", "asymmetric", "nvfp4", "mxfp4"]


def quantizer_of(name: str) -> WeightQuantizer:
    if name.endswith("fp4"):
        found = format_of(name)
        assert found is not None
        return WeightQuantizer(found)
    scheme = name if name in ("midrise", "asymmetric") else "symmetric"
    made: WeightQuantizer = weight_quantizer(4, scheme, 16 if "groups" in name else None)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_is_gptq_without_alpha_or_without_a_mismatch(format: str, act_order: bool) -> None:
    w, hessian, mismatch = problem(5, 64)
    quantizer = quantizer_of(format)
    (expected,) = Gptq(quantizer, act_order=act_order).round([w], RoundingStatistics("", hessian))
    for alpha, moment in ((0.0, mismatch), (0.25, torch.zeros_like(mismatch))):
        rounds = Gptaq(quantizer, act_order=act_order, alpha=alpha)
        (found,) = rounds.round([w], RoundingStatistics("", hessian, moment))
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.scale, expected.scale)


@pytest.mark.parametrize("format", FORMATS)
def test_lowers_the_error_against_full_precision_outputs(format: str) -> None:
    """|w X' - q X|^2 = const + tr(e H e^T) / 2 + tr(e D^T w^T), e = w - q."""
    better = 0
    for seed in range(3):
        w, hessian, mismatch = problem(24, 64, tokens=2000, seed=seed)
        errors = []
        for alpha in (0.0, 1.0):
            (q,) = Gptaq(quantizer_of(format), alpha=alpha).round([w], RoundingStatistics("", hessian, mismatch))
            e = w.double() - q.dequantize().double()
            errors.append(float(((e @ hessian) * e).sum() / 2 + ((w.double() @ mismatch) * e).sum()))
        better += errors[1] < errors[0]
    assert better == 3


def test_dead_columns_stay_zero_and_harmless() -> None:
    w, hessian, mismatch = problem(5, 20)
    dead = [0, 13]
    hessian[dead] = 0
    hessian[:, dead] = 0
    mismatch[:, dead] = 0
    (found,) = gptq([w], hessian, weight_quantizer(4), mismatch=mismatch)
    assert not found.dequantize()[:, dead].any()
    assert torch.isfinite(found.dequantize()).all()


def test_refusals() -> None:
    w, hessian, mismatch = problem(3, 8)
    with pytest.raises(QuantizationError, match=r"alpha=1\.5; use a number from 0"):
        rounder("gptaq", weight_quantizer(4), alpha=1.5)
    with pytest.raises(QuantizationError, match="block=0"):
        rounder("gptaq", weight_quantizer(4), block=0)
    with pytest.raises(QuantizationError, match=r"layer 3, o: the mismatch has shape \(7, 7\), the Hessian \(8, 8\)"):
        gptq([w], hessian, weight_quantizer(4), mismatch=mismatch[:7, :7], name="layer 3, o")
    mismatch[2, 5] = float("nan")
    with pytest.raises(QuantizationError, match="layer 3, o: the mismatch holds NaN or inf"):
        gptq([w], hessian, weight_quantizer(4), mismatch=mismatch, name="layer 3, o")
