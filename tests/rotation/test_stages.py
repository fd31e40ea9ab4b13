"""Sequences of stages: order, axes, seeds and exactness."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sq.errors import CalibrationError
from sq.rotation import (
    Art,
    Dense,
    Hadamard,
    Identity,
    Kronecker,
    RandomHadamard,
    RandomOrthogonal,
    Stage,
    Urt,
    art_rotation,
    build_rotation,
    kurtosis_rotation,
    orthonormalize,
    random_orthogonal,
    urt_rotation,
)

ORDERS: dict[str, Sequence[Stage]] = {
    "art": [Art(steps=4)],
    "art then urt": [Art(steps=4), Urt("uniform")],
    "mixing then fourth moment": [RandomOrthogonal(), Urt("kurtosis", sweeps=2)],
    "all": [RandomOrthogonal(), Urt("kurtosis"), Art(steps=3, partner="best"), Urt("flat", statistic="channel_max")],
}


def tokens(count: int, n: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:, n // 2] *= 30
    return x


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=8, deadline=None)
@given(n1=st.integers(2, 7), n2=st.integers(2, 9), full=st.booleans())
def test_every_sequence_is_orthogonal_and_keeps_products(order: str, n1: int, n2: int, full: bool) -> None:
    x = tokens(20, n1 * n2)
    rotation = build_rotation(x, ORDERS[order], None if full else (n1, n2))
    assert isinstance(rotation, Dense if full else Kronecker)
    dense = rotation.matrix()
    torch.testing.assert_close(dense @ dense.T, torch.eye(n1 * n2, dtype=torch.float64), rtol=0, atol=1e-12)
    w = tokens(3, n1 * n2, seed=1)
    torch.testing.assert_close(rotation(x) @ rotation.inverse_transpose(w).T, x @ w.T, rtol=0, atol=1e-9)


def test_stages_act_in_order_each_on_what_the_last_one_left() -> None:
    x = tokens(50, 12)
    first = art_rotation(x, 4)
    second = urt_rotation(x @ first, "flat")
    built = build_rotation(x, [Art(steps=4), Urt("flat")])
    torch.testing.assert_close(built.matrix(), first @ second, rtol=0, atol=1e-10)


def test_axes_see_their_own_vectors_and_the_second_sees_the_first_applied() -> None:
    x = tokens(50, 12)
    grid = x.reshape(50, 3, 4)
    r1 = art_rotation(grid.transpose(1, 2).reshape(-1, 3), 4)
    turned = torch.einsum("ab,tac->tbc", r1, grid)
    r2 = art_rotation(turned.reshape(-1, 4), 4)
    built = build_rotation(x, [Art(steps=4)], (3, 4))
    torch.testing.assert_close(built.matrix(), torch.kron(r1, r2), rtol=0, atol=1e-10)
    assert float(built(x).abs().max()) < float(x.abs().max())


def test_fourth_moment_reads_whole_tokens_at_unit_rms() -> None:
    x = tokens(200, 12)
    scaled = x * torch.logspace(-2, 2, 200, dtype=torch.float64)[:, None]
    stages = [Urt("kurtosis")]
    for factors in (None, (3, 4)):
        first, second = build_rotation(x, stages, factors), build_rotation(scaled, stages, factors)
        torch.testing.assert_close(first.matrix(), second.matrix(), rtol=0, atol=1e-8)
    torch.testing.assert_close(build_rotation(x, stages).matrix(), kurtosis_rotation(x), rtol=0, atol=1e-10)


def test_seed_decides_and_stages_differ() -> None:
    x = tokens(4, 16)
    stages = [RandomOrthogonal(), RandomOrthogonal()]
    one, again, other = (build_rotation(x, stages, (4, 4), seed=seed).matrix() for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    factors = build_rotation(x, [RandomOrthogonal()], (4, 4), seed=1)
    assert not torch.allclose(factors.get_buffer("r1"), factors.get_buffer("r2"))


def test_kinds_of_result() -> None:
    x = tokens(4, 16)
    assert isinstance(build_rotation(x, []), Identity)
    assert isinstance(build_rotation(x, [RandomHadamard()]), Hadamard)
    flat = build_rotation(x, [RandomHadamard()], (4, 4)).matrix().abs()
    torch.testing.assert_close(flat, torch.full_like(flat, 0.25))
    assert isinstance(build_rotation(x.bfloat16(), [Art(2)], (4, 4)), Kronecker)


def test_stage_of_ones_own() -> None:
    class Swap:
        unit_tokens = False

        def rotation(self, x: torch.Tensor, seed: int) -> torch.Tensor:
            return torch.eye(x.shape[1], dtype=torch.float64).flip(0)

    x = tokens(3, 6)
    torch.testing.assert_close(build_rotation(x, [Swap()], (2, 3))(x), x.flip(-1))


def test_orthonormalize_repairs_drift() -> None:
    exact = random_orthogonal(20, 0)
    drifted = exact + 1e-5 * random_orthogonal(20, 1)
    repaired = orthonormalize(drifted)
    torch.testing.assert_close(repaired @ repaired.T, torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-12)
    u, _, vh = torch.linalg.svd(drifted)
    torch.testing.assert_close(repaired, u @ vh, rtol=0, atol=1e-12)


def test_bad_input_is_refused() -> None:
    x = tokens(4, 12)
    with pytest.raises(ValueError, match="3 x 5 do not make the 12 features of layer 3 qkv"):
        build_rotation(x, [Art()], (3, 5), name="layer 3 qkv")
    with pytest.raises(CalibrationError, match="layer 3 qkv carry NaN"):
        build_rotation(x * torch.nan, [Art()], name="layer 3 qkv")
    with pytest.raises(ValueError, match=r"order 3 .*RandomOrthogonal"):
        build_rotation(x, [RandomHadamard()], (3, 4))
    with pytest.raises(ValueError, match="allowed are uniform"):
        Urt("round")  # type: ignore[arg-type]
