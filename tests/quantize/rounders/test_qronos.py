"""Qronos against GPTQ of weights moved in float64, and its errors on tokens that it has not seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantizers import rounder, weight_quantizer
from torch import Tensor

from sq.errors import QuantizationError
from sq.quantize.rounders.gptq import Gptq, gptq
from sq.quantize.rounders.moments import SiteMoments
from sq.quantize.rounders.qronos import Qronos, chosen_shrinkage
from sq.quantize.rounders.rounder import HeldOut, RoundingStatistics

N = 24


def streams(tokens: int, *, lost: float, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs x of the quantized stream and x' of the full-precision one: correlated tokens of which x is a mixture that
    a matrix undoes (`lost`), and a part of x' that nothing in x tells (`noise`)."""
    fixed = torch.Generator().manual_seed(99)
    mix = torch.randn(N, N, generator=fixed) * torch.logspace(0, -1, N)[:, None]
    change = torch.eye(N) + lost * torch.randn(N, N, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(tokens, N, generator=generator) @ mix
    x = full @ change
    return x, full + noise * torch.randn(tokens, N, generator=generator)


def statistics(x: Tensor, full: Tensor) -> RoundingStatistics:
    moments = SiteMoments(N, Qronos.needs, len(x))
    moments.update(x, full)
    return moments.statistics("layer 2, o")


def weight(rows: int = 16) -> Tensor:
    return torch.randn(rows, N, generator=torch.Generator().manual_seed(5))


def error(w: Tensor, q: Any, x: Tensor, full: Tensor) -> float:
    """Mean squared error of outputs q x against w x'."""
    return float((full @ w.T - x @ q.dequantize().T).square().mean())


@pytest.mark.parametrize(
    "quantizer",
    [weight_quantizer(4), weight_quantizer(4, "asymmetric", 8), weight_quantizer(3, "midrise")],
    ids=["rows", "asymmetric groups", "midrise"],
)
@pytest.mark.parametrize("shrinkage", [1.0, 0.4])
def test_is_gptq_of_the_moved_weights(quantizer: Any, shrinkage: float) -> None:
    """w* = w (I + s ((G + l I) (H + l I)^-1 - I)) with G and H from the tokens themselves."""
    x, full = streams(400, lost=0.05, noise=0.0)
    w, found = weight(), statistics(x, full)
    x, full = x.double(), full.double()
    h, g = 2 / 400 * x.T @ x, 2 / 400 * full.T @ x
    identity = torch.eye(N, dtype=torch.float64)
    ridge = 0.1 * h.diagonal().mean() * identity
    moved = w.double() @ (identity + shrinkage * ((g + ridge) @ torch.linalg.inv(h + ridge) - identity))
    (expected,) = gptq([moved.float()], found.hessian, quantizer)  # type: ignore[list-item, arg-type]
    (made,) = Qronos(quantizer, shrinkage=shrinkage).round([w], found)
    assert float((made.codes == expected.codes).float().mean()) > 0.99
    torch.testing.assert_close(made.scale, expected.scale, rtol=1e-4, atol=1e-6)
    assert found.report == {"shrinkage": shrinkage}


@pytest.mark.parametrize("options", [{"shrinkage": 0.0}, {}], ids=["no shrinkage", "one stream"])
def test_is_gptq_where_nothing_is_moved(options: dict[str, Any]) -> None:
    x, full = streams(200, lost=0.1, noise=0.1)
    found = statistics(x, full if options else x)
    w, quantizer = weight(), weight_quantizer(4)
    (made,) = Qronos(quantizer, **options).round([w], found)
    (expected,) = Gptq(quantizer).round([w], found)
    assert torch.equal(made.codes, expected.codes)
    assert torch.equal(made.scale, expected.scale)
    assert found.report == {"shrinkage": 0.0}


def test_beats_gptq_on_unseen_tokens_where_something_was_lost() -> None:
    w, quantizer = weight(), weight_quantizer(4)
    for seed in range(3):
        found = statistics(*streams(2000, lost=0.05, noise=0.05, seed=seed))
        unseen = streams(2000, lost=0.05, noise=0.05, seed=seed + 50)
        made, plain = (kind(quantizer).round([w], found)[0] for kind in (Qronos, Gptq))
        assert error(w, made, *unseen) < 0.9 * error(w, plain, *unseen)


def test_does_not_follow_noise() -> None:
    """Nothing in x tells the mismatch, and the tokens are few: the full move overfits, the chosen one does not."""
    w, quantizer = weight(), weight_quantizer(8)
    found = statistics(*streams(60, lost=0.0, noise=0.5))
    unseen = streams(2000, lost=0.0, noise=0.5, seed=50)
    (made,) = Qronos(quantizer).round([w], found)
    assert found.report["shrinkage"] < 0.3
    (whole,) = Qronos(quantizer, shrinkage=1.0).round([w], found)
    (plain,) = Gptq(quantizer).round([w], found)
    assert error(w, made, *unseen) < 0.5 * (error(w, whole, *unseen) + error(w, plain, *unseen))


def test_the_shrinkage_is_the_best_of_a_fine_grid_on_the_held_out_tokens() -> None:
    x, full = (part.double() for part in streams(90, lost=0.05, noise=0.1))
    weights = [weight(5).double(), 3 * weight(9).double()]
    shift = 0.3 * torch.randn(N, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / N
    shift += 1.6 * torch.linalg.lstsq(x, full - x).solution.T
    held = HeldOut(2 / 90 * x.T @ x, 2 / 90 * (full - x).T @ x, 0.25)

    def loss(s: float) -> float:
        moved = [w + s * w @ shift for w in weights]
        return sum(float((full @ w.T - x @ m.T).square().sum()) for w, m in zip(weights, moved, strict=True))

    grid = [i / 1000 for i in range(1001)]
    assert chosen_shrinkage(weights, shift, held) == pytest.approx(min(grid, key=loss), abs=1e-3)
    assert chosen_shrinkage(weights, -shift, held) == 0
    assert chosen_shrinkage(weights, 0.1 * shift, held) == 1
    assert chosen_shrinkage(weights, 0 * shift, held) == 0


def test_refusals() -> None:
    with pytest.raises(QuantizationError, match=r"ridge=-0\.1; use 0 or more"):
        rounder("qronos", weight_quantizer(4), ridge=-0.1)
    for value in (1.1, "none"):
        with pytest.raises(QuantizationError, match=f"shrinkage={value}; use a number from 0"):
            rounder("qronos", weight_quantizer(4), shrinkage=value)
    found = statistics(*streams(50, lost=0.1, noise=0.0))
    assert found.mismatch is not None
    found.mismatch[0, 0] = float("inf")
    with pytest.raises(QuantizationError, match="layer 2, o: the mismatch holds NaN or inf"):
        Qronos(weight_quantizer(4)).round([weight()], found)
