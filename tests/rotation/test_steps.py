"""The steps that a transform describes itself by, carried out one by one, are the transform."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sq.kernels.steps import BlockStep, DiagonalStep, HadamardStep, KroneckerStep, LowRankStep, Step
from sq.rotation import (
    BlockKronecker,
    Compose,
    Dense,
    Diagonal,
    Hadamard,
    Identity,
    Kronecker,
    LowRank,
    PerHead,
    Permutation,
    Transform,
    random_orthogonal,
    random_signs,
)
from sq.rotation.hadamard_orders import sylvester

N1, N2, N = 4, 12, 48


def carried_out(steps: Sequence[Step], x: Tensor) -> Tensor:
    """By dense matrices."""
    for step in steps:
        if isinstance(step, KroneckerStep):
            r1, r2 = step.r1, step.r2
            r1 = torch.eye(N // len(r2) if r2 is not None else N).to(x) if r1 is None else r1
            r2 = torch.eye(N // len(r1)).to(x) if r2 is None else r2
            x = x @ torch.kron(r1, r2)
        elif isinstance(step, LowRankStep):
            x = x if step.diagonal is None else x * step.diagonal
            x = x @ (torch.eye(N).to(x) + step.basis.T @ step.change)
        elif isinstance(step, DiagonalStep):
            x = x @ step.t.diag()
        elif isinstance(step, BlockStep):
            x = x @ torch.block_diag(*step.blocks)
            x = x if step.first is None else x @ torch.kron(step.first, torch.eye(step.blocks.shape[-1]).to(x))
        elif isinstance(step, HadamardStep):
            x = x if step.signs is None else x * step.signs
            x = x @ torch.kron(step.base, sylvester(N // len(step.base)).to(x)) / N**0.5
    return x


def low_rank(diagonal: bool) -> LowRank:
    scales = torch.rand(N, dtype=torch.float64) + 0.5 if diagonal else None
    return LowRank(scales, random_orthogonal(N, 3)[:, :5], torch.eye(5, dtype=torch.float64) * 1.5)


def kronecker() -> Kronecker:
    return Kronecker(random_orthogonal(N1, 0), random_orthogonal(N2, 1))


def blocks(*, mixes: bool) -> BlockKronecker:
    generator = torch.Generator().manual_seed(4)
    made = torch.randn(N1, N2, N2, generator=generator, dtype=torch.float64) + 4 * torch.eye(N2, dtype=torch.float64)
    return BlockKronecker(made, random_orthogonal(N1, 5) if mixes else None)


DESCRIBED = {
    "blocks": lambda: blocks(mixes=False),
    "blocks, mixed": lambda: blocks(mixes=True),
    "low rank and blocks": lambda: Compose([low_rank(diagonal=False), blocks(mixes=True)]),
    "identity": lambda: Identity(N),
    "diagonal": lambda: Diagonal(torch.rand(N) + 0.5),
    "kronecker": kronecker,
    "first factor": lambda: Kronecker(random_orthogonal(N1, 0), N2),
    "second factor": lambda: Kronecker(N1, random_orthogonal(N2, 0)),
    "low rank": lambda: low_rank(diagonal=False),
    "low rank, scaled": lambda: low_rank(diagonal=True),
    "hadamard": lambda: Hadamard(N),
    "hadamard, signs": lambda: Hadamard(N, random_signs(N, 2)),
    "composition": lambda: Compose([Identity(N), low_rank(True), Compose([Hadamard(N), kronecker()])]),
}
UNDESCRIBED = {
    "dense": lambda: Dense(random_orthogonal(N, 0), orthogonal=True),
    "per head": lambda: PerHead(torch.stack([random_orthogonal(N2, h) for h in range(N1)])),
    "permutation": lambda: Permutation(torch.randperm(N)),
    "composition": lambda: Compose([kronecker(), Permutation(torch.randperm(N))]),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_steps_are_the_transform(name: str) -> None:
    transform: Transform = DESCRIBED[name]()
    x = torch.randn(3, N, dtype=torch.float64)
    steps = transform.steps(x)
    assert steps is not None
    torch.testing.assert_close(carried_out(steps, x), transform(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", DESCRIBED)
def test_factors_have_the_dtype_of_the_activations(name: str) -> None:
    for step in DESCRIBED[name]().steps(torch.ones(1, N, dtype=torch.bfloat16)):
        assert {factor.dtype for factor in step if factor is not None} == {torch.bfloat16}


@pytest.mark.parametrize("name", UNDESCRIBED)
def test_no_steps(name: str) -> None:
    assert UNDESCRIBED[name]().steps(torch.ones(1, N)) is None
