"""Products that do not depend on the order of sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sq.embedded.exact import exact_product, orthogonal_part


@settings(max_examples=20, deadline=None)
@given(m=st.integers(1, 9), k=st.integers(1, 300), n=st.integers(1, 9), seed=st.integers(0, 99), spread=st.floats(0, 6))
def test_the_order_of_the_sum_changes_no_bit(m: int, k: int, n: int, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((m, k), (k, n)))
    a = a * (spread * torch.randn(m, k, generator=generator, dtype=torch.float64)).exp()
    found, order = exact_product(a, b), torch.randperm(k, generator=generator)
    assert torch.equal(exact_product(a[:, order], b[order]), found)
    expected = a.numpy().astype(np.longdouble) @ b.numpy().astype(np.longdouble)
    size = k * a.abs().amax(1, keepdim=True) * b.abs().amax(0, keepdim=True)
    assert float(np.abs((found.numpy() - expected) / size.numpy()).max()) < 2**-52


def test_zeros_and_huge_numbers() -> None:
    assert torch.equal(exact_product(torch.zeros(2, 3), torch.zeros(3, 4)), torch.zeros(2, 4, dtype=torch.float64))
    big = torch.full((2, 2), 2.0**200, dtype=torch.float64)
    assert torch.equal(exact_product(big, big), big @ big)


@pytest.mark.parametrize("n", [1, 7, 64])
def test_the_orthogonal_part_is_that_of_the_singular_values(n: int) -> None:
    rotation = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    near = rotation + 1e-6 * torch.randn(n, n, dtype=torch.float64)
    left, _, right = torch.linalg.svd(near)
    assert (orthogonal_part(near) - left @ right).abs().max() < 1e-14
