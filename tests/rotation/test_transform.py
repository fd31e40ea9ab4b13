"""Every transform keeps x w^T, inverts itself, and keeps its float64 factors through casts."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sq.rotation import (
    Compose,
    Dense,
    Diagonal,
    Hadamard,
    Identity,
    Kronecker,
    LowRank,
    PerHead,
    Transform,
    has_hadamard,
    random_orthogonal,
    random_signs,
)
from sq.rotation.transform import invert

Builder = Callable[[int, int, int], Transform]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def well_conditioned(n: int, seed: int) -> torch.Tensor:
    """An invertible matrix with singular values in [1/2, 2]."""
    stretch = torch.exp2(torch.linspace(-1, 1, n, dtype=torch.float64))
    return random_orthogonal(n, seed) * stretch @ random_orthogonal(n, seed + 1)


def blocks(a: int, b: int, seed: int, make: Callable[[int, int], torch.Tensor]) -> torch.Tensor:
    return torch.stack([make(b, seed + head) for head in range(a)])


# Each builder makes a transform of n = a b features.
BUILDERS: dict[str, Builder] = {
    "identity": lambda a, b, seed: Identity(a * b),
    "diagonal": lambda a, b, seed: Diagonal(gaussian(a * b, seed=seed).abs() + 0.1),
    "dense rotation": lambda a, b, seed: Dense(random_orthogonal(a * b, seed), orthogonal=True),
    "dense": lambda a, b, seed: Dense(well_conditioned(a * b, seed), orthogonal=False),
    "per head": lambda a, b, seed: PerHead(blocks(a, b, seed, random_orthogonal)),
    "per head, not orthogonal": lambda a, b, seed: PerHead(blocks(a, b, seed, well_conditioned), orthogonal=False),
    "kronecker": lambda a, b, seed: Kronecker(random_orthogonal(a, seed), random_orthogonal(b, seed + 1)),
    "kronecker, not orthogonal": lambda a, b, seed: Kronecker(
        well_conditioned(a, seed), well_conditioned(b, seed + 1), orthogonal=False
    ),
    "kronecker, first factor only": lambda a, b, seed: Kronecker(random_orthogonal(a, seed), b),
    "kronecker, second factor only": lambda a, b, seed: Kronecker(a, random_orthogonal(b, seed)),
    "hadamard": lambda a, b, seed: Hadamard(4 * a * b if has_hadamard(4 * a * b) else 12),
    "random hadamard": lambda a, b, seed: (lambda n: Hadamard(n, random_signs(n, seed)))(
        4 * a * b if has_hadamard(4 * a * b) else 20
    ),
    "low rank": lambda a, b, seed: LowRank(
        gaussian(a * b, seed=seed).abs() + 0.1,
        random_orthogonal(a * b, seed)[:, : min(a, b)],
        well_conditioned(min(a, b), seed),
    ),
    "low rank, no diagonal": lambda a, b, seed: LowRank(
        None, random_orthogonal(a * b, seed)[:, :1], 3 * torch.eye(1, dtype=torch.float64)
    ),
    "composed": lambda a, b, seed: Compose(
        [
            Diagonal(gaussian(a * b, seed=seed).abs() + 0.1),
            Kronecker(random_orthogonal(a, seed), random_orthogonal(b, seed + 1)),
            Dense(well_conditioned(a * b, seed), orthogonal=False),
        ]
    ),
}


@pytest.mark.parametrize("kind", BUILDERS)
@settings(max_examples=12, deadline=None)
@given(a=st.integers(1, 9), b=st.integers(1, 13), tokens=st.integers(0, 5), seed=st.integers(0, 1000))
def test_products_are_kept_and_inverses_invert(kind: str, a: int, b: int, tokens: int, seed: int) -> None:
    transform = BUILDERS[kind](a, b, seed)
    x = gaussian(2, tokens, transform.n, seed=seed)
    w = gaussian(3, transform.n, seed=seed + 1)
    rotated = transform(x)
    assert rotated.shape == x.shape
    assert rotated.dtype == x.dtype
    torch.testing.assert_close(rotated @ transform.inverse_transpose(w).T, x @ w.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(transform.inverse(rotated), x, rtol=0, atol=1e-10)
    dense = transform.matrix()
    torch.testing.assert_close(rotated, x @ dense, rtol=0, atol=1e-11)
    torch.testing.assert_close(transform.inverse_transpose(w), w @ torch.linalg.inv(dense).T, rtol=0, atol=1e-9)
    torch.testing.assert_close(transform.transpose(w), w @ dense.T, rtol=0, atol=1e-11)
    if transform.orthogonal:
        torch.testing.assert_close(dense @ dense.T, torch.eye(transform.n, dtype=torch.float64), rtol=0, atol=1e-12)


def test_structured_transforms_equal_their_dense_matrices() -> None:
    r1, r2 = random_orthogonal(3, 0), random_orthogonal(5, 1)
    torch.testing.assert_close(Kronecker(r1, r2).matrix(), torch.kron(r1, r2), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        Kronecker(r1, 5).matrix(), torch.kron(r1, torch.eye(5, dtype=torch.float64)), rtol=0, atol=1e-14
    )
    heads = blocks(4, 3, 0, random_orthogonal)
    torch.testing.assert_close(PerHead(heads).matrix(), torch.block_diag(*heads), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", BUILDERS)
def test_casting_a_model_keeps_the_factors(kind: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), BUILDERS[kind](3, 5, 0))
    transform = model[1]
    assert isinstance(transform, Transform)
    before = transform.matrix()
    x = gaussian(4, transform.n)
    for cast in (model.to(torch.bfloat16), model.half(), model.float(), copy.deepcopy(model.bfloat16())):
        kept = cast[1]
        assert isinstance(kept, Transform)
        assert torch.equal(kept.matrix(), before)
        assert kept(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(kept(x.bfloat16()).double(), x @ before, rtol=0, atol=0.2)


@pytest.mark.parametrize("kind", BUILDERS)
def test_state_dict_round_trip_is_exact_and_refreshes_casts(kind: str) -> None:
    saved, loaded = BUILDERS[kind](3, 5, 0), BUILDERS[kind](3, 5, 77)
    x = gaussian(4, saved.n).float()
    loaded(x)  # fills the cast cache with the old factors
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file))
    assert torch.equal(loaded(x), saved(x))
    assert torch.equal(loaded.matrix(), saved.matrix())


def test_meta_device_moves_and_returns() -> None:
    transform = nn.Sequential(Dense(random_orthogonal(4, 0), orthogonal=True)).to("meta")
    assert next(transform.buffers()).device.type == "meta"
    assert next(transform.to_empty(device="cpu").to(torch.bfloat16).buffers()).dtype == torch.float64


def test_factors_made_under_inference_mode_serve_training() -> None:
    with torch.inference_mode():
        transform = Kronecker(random_orthogonal(2, 0), random_orthogonal(3, 1))
        transform(torch.ones(1, 6))
    x = torch.ones(1, 6, requires_grad=True)
    transform(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_multiply_adds_count_what_is_applied() -> None:
    counts = {kind: build(3, 5, 0).macs() for kind, build in BUILDERS.items()}
    assert counts["identity"] == 0
    assert counts["diagonal"] == 15
    assert counts["dense"] == 15 * 15
    assert counts["per head"] == 15 * 5
    assert counts["kronecker"] == 15 * (3 + 5)
    assert counts["kronecker, first factor only"] == 15 * 3
    assert counts["kronecker, second factor only"] == 15 * 5
    assert counts["low rank"] == 15 + 2 * 15 * 3
    assert counts["low rank, no diagonal"] == 2 * 15
    assert counts["composed"] == 15 + 15 * 8 + 15 * 15
    assert Hadamard(256).macs() == 256 * 8
    assert Hadamard(768).macs() == 768 * (12 + 6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Dense(torch.ones(3, 4), orthogonal=True), r"\(3, 4\).*needs \(n, n\)"),
        (lambda: Dense(2 * torch.eye(3), orthogonal=True), "not orthogonal.*orthogonal=False"),
        (lambda: Dense(torch.ones(3, 3), orthogonal=False), "singular"),
        (lambda: Dense(torch.full((3, 3), float("nan")), orthogonal=True), "NaN or inf"),
        (lambda: Diagonal(torch.tensor([1.0, 0.0, 0.0])), "2 factors that are zero"),
        (lambda: Diagonal(torch.ones(3, 3)), r"shape \(n,\)"),
        (lambda: PerHead(torch.ones(3, 3)), r"needs \(H, d, d\)"),
        (lambda: Kronecker(torch.ones(3, 4), torch.eye(2)), r"r1 of shape \(3, 4\)"),
        (lambda: Kronecker(torch.eye(2), 2 * torch.eye(2)), "not orthogonal"),
        (lambda: Compose([Identity(3), Identity(4)]), r"\[3, 4\]"),
        (lambda: Compose([]), "at least one"),
        (lambda: Identity(0), "0 features"),
        (lambda: LowRank(None, torch.ones(4, 2), torch.eye(2)), "not orthonormal"),
        (lambda: LowRank(None, torch.eye(4)[:, :2], torch.eye(3)), r"\(n,\), \(n, r\), \(r, r\)"),
        (lambda: LowRank(torch.zeros(4), torch.eye(4)[:, :2], torch.eye(2)), "4 factors that are zero"),
        (lambda: LowRank(None, torch.eye(4)[:, :2], torch.zeros(2, 2)), "singular"),
    ],
)
def test_bad_factors_are_refused(build: Callable[[], Transform], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_many_blocks_are_inverted_with_any_number_of_threads() -> None:
    """MKL fails on two threads for this size; an inverse takes one."""
    blocks = torch.randn(64, 172, 172, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks += 20 * torch.eye(172, dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = invert("a test", blocks)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found @ blocks, torch.eye(172, dtype=torch.float64).expand_as(blocks))
