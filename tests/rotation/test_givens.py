"""Plane rotations and chains against explicit products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sq.rotation import givens_chain, plane_rotation
from sq.rotation.givens import rotate_halves


def explicit_chain(v: torch.Tensor) -> torch.Tensor:
    """The chain as a product of plane rotations, one after another."""
    m = v.numel()
    chain = torch.eye(m, dtype=torch.float64)
    for k in range(m - 1, 0, -1):
        turned = v @ chain
        chain = chain @ plane_rotation(m, k - 1, k, torch.atan2(turned[k], turned[k - 1]))
    return chain


@settings(max_examples=60, deadline=None)
@given(v=st.lists(st.floats(-1e3, 1e3).map(lambda value: round(value, 3)), min_size=2, max_size=9))
def test_chain_takes_v_to_its_length_on_the_first_axis(v: list[float]) -> None:
    vector = torch.tensor(v, dtype=torch.float64)
    chain = givens_chain(vector)
    m = vector.numel()
    torch.testing.assert_close(chain @ chain.T, torch.eye(m, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.det(chain) == pytest.approx(1)
    target = torch.zeros(m, dtype=torch.float64)
    target[0] = vector.norm()
    torch.testing.assert_close(vector @ chain, target, rtol=0, atol=1e-12 * max(1.0, float(target[0])))


@pytest.mark.parametrize("m", [2, 3, 7, 16])
def test_chain_equals_the_product_of_its_planes(m: int) -> None:
    v = torch.randn(m, generator=torch.Generator().manual_seed(m), dtype=torch.float64)
    torch.testing.assert_close(givens_chain(v), explicit_chain(v), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "v", [[0.0] * 4, [1e-300, 0, 1e300, -1e-300], [0, 0, 0, -2.0], [1e200, 1e200, 0, 0], [5e-324, 0, 0, 1]]
)
def test_chain_of_extreme_vectors_is_orthogonal(v: list[float]) -> None:
    chain = givens_chain(torch.tensor(v, dtype=torch.float64))
    torch.testing.assert_close(chain @ chain.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_chain_of_a_large_vector_is_orthogonal() -> None:
    v = torch.randn(768, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 5
    chain = givens_chain(v)
    torch.testing.assert_close(chain @ chain.T, torch.eye(768, dtype=torch.float64), rtol=0, atol=1e-12)


def test_disjoint_planes_in_one_step() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    theta = torch.rand(3, generator=generator, dtype=torch.float64)
    out = torch.empty_like(rows)
    rotate_halves(rows, theta.cos()[:, None], theta.sin()[:, None], out)
    expected = rows.T
    for k in range(3):
        expected = expected @ plane_rotation(6, k, k + 3, theta[k])
    torch.testing.assert_close(out.T, expected, rtol=0, atol=1e-14)
