"""A step of fourth-moment rotations against brute force over angles, and the kernel against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sq.kernels.fourth_moment import fourth_moment_angle, turn_pairs, turn_pairs_reference
from sq.rotation import kurtosis
from sq.rotation.launched_sweep import launched_sweeps


def heavy(batch: int, m: int, tokens: int) -> Tensor:
    return torch.randn(batch, m, tokens, generator=torch.Generator().manual_seed(tokens)) ** 3


def identities(batch: int, m: int) -> Tensor:
    return torch.eye(m, dtype=torch.float64).repeat(batch, 1, 1)


def in_place(rows: Tensor, turned: Tensor, pairs: Tensor, backend: Any) -> tuple[Tensor, Tensor]:
    """turn_pairs with its results returned, for a process that shares no memory with the caller."""
    turn_pairs(rows, turned, pairs, backend=backend)
    return rows, turned


def moments(rows: Tensor) -> Tensor:
    return rows.double().pow(4).sum((1, 2))


@pytest.mark.parametrize(
    ("batch", "m", "tokens", "pairs"),
    [
        (1, 6, 700, [[0, 4, 2], [3, 1, 5]]),
        (3, 5, 129, [[4, 1], [0, 3]]),
        (1, 2, 4999, [[0], [1]]),
        (2, 300, 1, [[0, 299], [150, 7]]),
    ],
    ids=["one", "batch, a channel left out", "three tiles of tokens", "one token, tiles of R"],
)
def test_kernel_is_the_reference(run: Any, batch: int, m: int, tokens: int, pairs: list[list[int]]) -> None:
    rows, turned, index = heavy(batch, m, tokens), identities(batch, m), torch.tensor(pairs)
    wide, expected = rows.double(), turned.clone()
    turn_pairs_reference(wide, expected, index)
    found, found_turned = run(in_place, rows, turned, index)
    scale = float(wide.abs().max())
    assert float((found.double() - wide).abs().max()) <= 4 * torch.finfo(torch.float32).eps * scale
    torch.testing.assert_close(found_turned, expected, rtol=0, atol=1e-10)
    left_out = [i for i in range(m) if i not in index]
    assert torch.equal(found[:, left_out], heavy(batch, m, tokens)[:, left_out])


@pytest.mark.parametrize("degrees", [0, 1e-7, 13, 44.9, 45, 90, 179.9, 180, 200, 270, 359.9])
def test_kernel_turns_by_the_angle(run: Any, degrees: float) -> None:
    """4 theta anywhere on the circle: w^4 of one token w = x + i y is what the angle is made of."""
    angle = torch.tensor(degrees / 360 * torch.pi / 2, dtype=torch.float64)
    rows = torch.stack([angle.cos(), angle.sin()])[None, :, None].float()
    wide, expected = rows.double(), identities(1, 2)
    turn_pairs_reference(wide, expected, torch.tensor([[0], [1]]))
    _, turned = run(in_place, rows, identities(1, 2), torch.tensor([[0], [1]]))
    torch.testing.assert_close(turned @ turned.mT, identities(1, 2), rtol=0, atol=1e-14)
    # At its minimum sum x^4 is 1/2; two angles a quarter turn apart both reach it where w^4 is negative and real.
    after = torch.einsum("bij,bjt->bit", turned, torch.stack([angle.cos(), angle.sin()])[None, :, None])
    assert float(moments(after)) == pytest.approx(0.5, abs=1e-12)
    if degrees != 0:
        torch.testing.assert_close(turned, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9], ids=str)
def test_kernel_does_not_depend_on_the_scale(run: Any, size: float) -> None:
    """Fourth powers of 1e-9 and 1e9 and their squares are far outside float32."""
    _, expected = run(in_place, heavy(1, 2, 200), identities(1, 2), torch.tensor([[0], [1]]))
    _, found = run(in_place, heavy(1, 2, 200) * size, identities(1, 2), torch.tensor([[0], [1]]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_zeros_stay_and_turn_by_nothing(run: Any) -> None:
    rows, turned = run(in_place, torch.zeros(1, 2, 50), identities(1, 2), torch.tensor([[0], [1]]))
    assert torch.equal(rows, torch.zeros(1, 2, 50))
    assert torch.equal(turned, identities(1, 2))


def test_a_batch_is_its_parts(run: Any) -> None:
    pairs = torch.tensor([[0, 1], [3, 2]], dtype=torch.int32)
    rows, turned = run(in_place, heavy(3, 4, 300), identities(3, 4), pairs)
    for i in range(3):
        alone, alone_turned = run(in_place, heavy(3, 4, 300)[i : i + 1], identities(1, 4), pairs)
        assert torch.equal(rows[i : i + 1], alone)
        assert torch.equal(turned[i : i + 1], alone_turned)


def test_kernel_writes_nothing_else(run: Any, guarded: Callable[..., Any]) -> None:
    rows, turned = guarded((2, 3, 131), torch.float32, 7.0), guarded((2, 3, 3), torch.float64, 7.0)
    rows.inside.copy_(heavy(2, 3, 131))
    turned.inside.copy_(identities(2, 3))
    before = moments(rows.inside).cpu()
    run(turn_pairs, rows.inside, turned.inside, torch.tensor([[2], [0]], device=run.device))
    rows.assert_untouched("rows")
    turned.assert_untouched("turned")
    assert (moments(rows.inside).cpu() < before).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_reference_reaches_the_least_moment_of_every_angle(dtype: torch.dtype) -> None:
    rows, turned = heavy(2, 4, 60).to(dtype), identities(2, 4)
    before = rows.double().clone()
    turn_pairs(rows, turned, torch.tensor([[0, 3], [2, 1]]))
    angles = torch.linspace(-torch.pi / 2, torch.pi / 2, 2001, dtype=torch.float64)[:, None, None]
    for i, j in ((0, 2), (3, 1)):
        x, y = before[:, i], before[:, j]
        everywhere = (angles.cos() * x + angles.sin() * y).pow(4) + (angles.cos() * y - angles.sin() * x).pow(4)
        assert (moments(rows[:, [i, j]]) <= everywhere.sum(-1).amin(0) * (1 + 1e-6)).all()
    torch.testing.assert_close(turned @ before, rows.double(), rtol=0, atol=1e-5 * float(before.abs().max()))


def test_angle_by_hand() -> None:
    """One token (1, 0): p = 0, q = -1/2, so A = B = 0, C = 1/4, 4 theta = pi; (1, 1) is at its minimum already."""
    zero, quarter, one = (torch.tensor(value, dtype=torch.float64) for value in (0.0, 0.25, 1.0))
    assert float(fourth_moment_angle(zero, zero, quarter)) == pytest.approx(torch.pi / 4)
    assert float(fourth_moment_angle(one, zero, zero)) == 0


@pytest.mark.parametrize(
    ("rows", "turned", "pairs", "message"),
    [
        (torch.ones(2, 3), identities(1, 2), torch.tensor([[0], [1]]), r"rows have shape \(2, 3\)"),
        (torch.ones(1, 2, 3).half(), identities(1, 2), torch.tensor([[0], [1]]), "float16"),
        (torch.ones(1, 3, 2).mT, identities(1, 2), torch.tensor([[0], [1]]), "contiguous"),
        (torch.ones(1, 2, 3), identities(1, 2).float(), torch.tensor([[0], [1]]), "turned is torch.float32"),
        (torch.ones(1, 2, 3), identities(1, 2), torch.tensor([[0, 1]]), r"pairs are torch.int64 \(1, 2\)"),
        (torch.ones(1, 2, 3), identities(1, 2), torch.tensor([[0.0], [1.0]]), "pairs are torch.float32"),
    ],
    ids=["no batch", "half", "strides", "turned", "pairs", "dtype of pairs"],
)
def test_arguments_that_do_not_fit_are_refused(rows: Tensor, turned: Tensor, pairs: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        turn_pairs(rows, turned, pairs)


def test_kernel_refuses_float64(run: Any) -> None:
    with pytest.raises(ValueError, match=r"not in torch\.float64"):
        run(turn_pairs, torch.ones(1, 2, 3).double(), identities(1, 2), torch.tensor([[0], [1]]))


@pytest.mark.parametrize("shape", [(2, 6, 300), (3, 5, 200), (1, 2, 50)], ids=["even", "odd", "two"])
def test_sweeps_by_launches_are_those_of_torch(run: Any, shape: tuple[int, int, int]) -> None:
    """Whole sweeps, a launch a step, against those of the framework in float64."""
    rows, m = heavy(*shape), shape[1]
    following = kurtosis._round_robin(m + m % 2)
    found = run(launched_sweeps, rows, 2, following)
    expected = kurtosis._sweeps(rows.double(), 2, following)
    assert torch.equal(rows, heavy(*shape)), "samples were changed"
    torch.testing.assert_close(found @ found.mT, identities(shape[0], m), rtol=0, atol=1e-12)
    before, after = moments(rows), moments(found @ rows.double())
    assert (after < before).all()
    torch.testing.assert_close(after, moments(expected @ rows.double()), rtol=1e-5, atol=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
