"""A permutation keeps products like every transform, moves nothing but places, and survives casts and saving."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sq.rotation import Compose, Kronecker, random_orthogonal
from sq.rotation.permutation import Permutation


def shuffled(n: int, seed: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), tokens=st.integers(0, 4), seed=st.integers(0, 1000))
def test_it_equals_its_permutation_matrix_and_keeps_products(n: int, tokens: int, seed: int) -> None:
    order = shuffled(n, seed)
    transform, x, w = Permutation(order), torch.randn(2, tokens, n).double(), torch.randn(3, n).double()
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix[order, torch.arange(n)] = 1
    assert torch.equal(transform.matrix(), matrix)
    assert torch.equal(transform(x), torch.stack([x[..., int(i)] for i in order], dim=-1))
    assert torch.equal(transform.inverse(transform(x)), x)
    torch.testing.assert_close(transform(x) @ transform.inverse_transpose(w).T, x @ w.T, rtol=0, atol=1e-12)
    assert torch.equal(transform.transpose(w), w @ matrix.T)
    assert transform.orthogonal
    assert transform.macs() == 0


def test_it_composes_and_keeps_its_integers_through_casts_and_saving() -> None:
    composed = Compose([Kronecker(2, random_orthogonal(3, 0)), Permutation(shuffled(6, 1))])
    before = composed.matrix()
    model = nn.Sequential(composed).to(torch.bfloat16)
    assert torch.equal(composed.matrix(), before)
    loaded = Compose([Kronecker(2, random_orthogonal(3, 7)), Permutation(shuffled(6, 8))])
    loaded.load_state_dict(model[0].state_dict())
    assert torch.equal(loaded.matrix(), before)


def test_made_under_inference_mode_it_serves_training() -> None:
    with torch.inference_mode():
        transform = Permutation(shuffled(5, 0))
    x = torch.randn(2, 5, requires_grad=True)
    transform(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (torch.tensor([0, 2, 2]), "each of 0 to 2 once"),
        (torch.tensor([1, 2, 3]), "each of 0 to 2 once"),
        (torch.tensor([0.0, 1.0]), r"float32 of shape \(2,\)"),
        (torch.eye(2, dtype=torch.int64), r"shape \(2, 2\)"),
        (torch.empty(0, dtype=torch.int64), "0 features"),
    ],
)
def test_anything_but_a_permutation_is_refused(order: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Permutation(order)
