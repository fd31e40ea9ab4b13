"""Hadamard matrices against H H^T = n I and published tables; the fast transform against the dense matrix."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files

import pytest
import torch

from sq.rotation import Hadamard, hadamard_matrix, has_hadamard, random_orthogonal, random_signs

FACTS = json.loads(files("sq.rotation").joinpath("hadamard_orders.json").read_text())
MODEL_SIZES = (
    576, 896, 960, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 4864, 5120, 5632, 6144, 8192, 8960, 9728, 11008, 12288,
    13824, 14336, 17408, 18944, 25600, 27648, 28672,
)  # fmt: skip


@pytest.mark.parametrize("order", [int(order) for order in FACTS])
def test_tabulated_orders(order: int) -> None:
    h = hadamard_matrix(order)
    assert torch.equal(h.abs(), torch.ones_like(h))
    assert torch.equal(h @ h.T, order * torch.eye(order, dtype=torch.float64))
    rows = "\n".join("".join("+" if entry > 0 else "-" for entry in row) for row in h.tolist())
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == FACTS[str(order)]["sha256"]


@pytest.mark.parametrize("order", [1, 2, 4, 8, 24, 48, 56, 80, 84, 88, 104, 112, 128, 136, 160, 192, 224, 256, 768])
def test_other_orders(order: int) -> None:
    h = hadamard_matrix(order)
    assert torch.equal(h @ h.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [12, 16, 40, 256, 768, 960, 1536])
def test_fast_transform_equals_the_dense_matrix(order: int) -> None:
    signs = random_signs(order, seed=3)
    dense = signs[:, None] * hadamard_matrix(order) / order**0.5
    torch.testing.assert_close(Hadamard(order, signs).matrix(), dense, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", MODEL_SIZES)
def test_every_model_size_has_a_fast_transform(n: int) -> None:
    assert has_hadamard(n)
    transform = Hadamard(n, random_signs(n, seed=0))
    x = torch.randn(2, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    torch.testing.assert_close(transform(x).square().sum(-1), x.square().sum(-1), rtol=1e-12, atol=0)
    torch.testing.assert_close(transform.inverse(transform(x)), x, rtol=0, atol=1e-12)


def test_float16_does_not_overflow() -> None:
    x = torch.full((1, 8192), 60.0, dtype=torch.float16)
    assert torch.isfinite(Hadamard(8192)(x)).all()


@pytest.mark.parametrize("order", [-4, 0, 3, 6, 9, 14, 15, 30, 86, 92])
def test_order_without_a_matrix_names_what_works(order: int) -> None:
    assert not has_hadamard(order)
    with pytest.raises(ValueError, match=rf"order {order} .*random_orthogonal\({order}, seed\)"):
        hadamard_matrix(order)
    with pytest.raises(ValueError, match="RandomOrthogonal"):
        Hadamard(order)


def test_signs_are_checked_and_repeatable() -> None:
    with pytest.raises(ValueError, match="8 values"):
        Hadamard(8, torch.ones(7))
    with pytest.raises(ValueError, match="8 values"):
        Hadamard(8, torch.full((8,), 0.5))
    assert torch.equal(random_signs(64, 5), random_signs(64, 5))
    assert not torch.equal(random_signs(64, 5), random_signs(64, 6))


def test_random_orthogonal_is_orthogonal_and_unbiased() -> None:
    q = random_orthogonal(33, 1)
    torch.testing.assert_close(q @ q.T, torch.eye(33, dtype=torch.float64), rtol=0, atol=1e-12)
    # Without the sign fix the diagonal of Q would have one sign; under Haar its mean over draws is near zero.
    corners = torch.stack([random_orthogonal(4, seed).diagonal() for seed in range(200)])
    assert corners.mean(0).abs().max() < 0.15
