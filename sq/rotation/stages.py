"""A rotation as a sequence of closed-form stages: the one place where order, targets and steps are expressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sq.rotation.art import Partner, Statistic, art_rotation
from sq.rotation.hadamard import Hadamard, hadamard_matrix, random_orthogonal, random_signs
from sq.rotation.kronecker import Kronecker
from sq.rotation.kurtosis import kurtosis_rotations
from sq.rotation.samples import check_samples, token_rms
from sq.rotation.transform import Dense, Identity, Transform
from sq.rotation.urt import TARGETS, Target, urt_rotation


class Stage(Protocol):
    """One step of a rotation: samples in, orthogonal matrix out.

    A stage whose class attribute `reads_samples` is False takes from the samples their shape alone; none is computed
    for it.
    """

    @property
    def unit_tokens(self) -> bool:
        """Whether samples come from tokens divided by their rms."""

    def rotation(self, x: Tensor, seed: int) -> Tensor:
        """R, shape (m, m), float64, from samples x (S, m)."""


def reads_samples(stage: Stage) -> bool:
    """Whether a stage looks at the values of its samples."""
    return bool(getattr(stage, "reads_samples", True))


@dataclass(frozen=True)
class Art:
    """ART, the rotation that shares the largest entry between two channels: art_rotation with these arguments."""

    steps: int = 8
    partner: Partner = "smallest"
    statistic: Statistic = "channel_max"
    unit_tokens: ClassVar[bool] = False

    def rotation(self, x: Tensor, seed: int) -> Tensor:
        """art_rotation; the seed is not used."""
        return art_rotation(x, self.steps, self.partner, self.statistic)


@dataclass(frozen=True)
class Urt:
    """URT, the rotation that evens out the channels: urt_rotation, on tokens at unit rms for target "kurtosis"."""

    target: Target = "kurtosis"
    sweeps: int = 1
    statistic: Statistic = "peak_row"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"URT got target {self.target!r}; allowed are {', '.join(TARGETS)}")

    @property
    def unit_tokens(self) -> bool:
        """Only the fourth moment weighs tokens against each other."""
        return self.target == "kurtosis"

    def rotation(self, x: Tensor, seed: int) -> Tensor:
        """urt_rotation; the seed is not used."""
        return urt_rotation(x, self.target, self.statistic, self.sweeps, unit_tokens=False)

    def rotations(self, x: Tensor, seed: int) -> Tensor:
        """R (B, m, m) of many sets of samples (B, S, m): target "kurtosis" builds them at once."""
        if self.target == "kurtosis":
            return kurtosis_rotations(x, self.sweeps, unit_tokens=False)
        return torch.stack([self.rotation(samples, seed) for samples in x])


@dataclass(frozen=True)
class RandomHadamard:
    """diag(random signs) H / sqrt(m), blind to the samples."""

    unit_tokens: ClassVar[bool] = False
    reads_samples: ClassVar[bool] = False

    def rotation(self, x: Tensor, seed: int) -> Tensor:
        """R from the seed alone; ValueError for an m without a Hadamard matrix."""
        m = x.shape[1]
        randomized: Tensor = random_signs(m, seed)[:, None] * hadamard_matrix(m) / m**0.5
        return randomized


@dataclass(frozen=True)
class RandomOrthogonal:
    """A Haar rotation, blind to the samples."""

    unit_tokens: ClassVar[bool] = False
    reads_samples: ClassVar[bool] = False

    def rotation(self, x: Tensor, seed: int) -> Tensor:
        """R from the seed alone."""
        return random_orthogonal(x.shape[1], seed)


def build_rotation(
    x: Tensor, stages: Sequence[Stage], factors: tuple[int, int] | None = None, seed: int = 0, name: str = "activations"
) -> Transform:
    """The rotation that applies the stages in the order given, each built from x as the stages before it left it.

    With factors (n1, n2) every stage builds R1, applies it, then builds R2 (README.md beside this file); the products
    over the stages make one Kronecker transform. Without factors there is one dense (n, n) rotation, and a lone
    RandomHadamard stays a fast Hadamard.

    Args:
        x: calibration tokens at the site, shape (T, n). float32 suffices: factors are accumulated in float64.
        stages: without any the result is an Identity.
        factors: (n1, n2) with n1 n2 = n, see kronecker_factors; None for full width.
        seed: of the random stages; each stage and axis draws its own.
        name: what x is, for error messages: "layer 3 qkv".

    Returns:
        Kronecker, Dense, Hadamard or Identity, orthogonal to 1e-12, on the device of x.

    Raises:
        CalibrationError: as check_samples.
        ValueError: factors that do not multiply to n; a stage that cannot serve the size.
    """
    check_samples(x, name)
    n = x.shape[1]
    if factors is not None and factors[0] * factors[1] != n:
        raise ValueError(f"factors {factors[0]} x {factors[1]} do not make the {n} features of {name}")
    seeds = torch.Generator().manual_seed(seed)
    if not stages:
        return Identity(n)
    if factors is None and len(stages) == 1 and isinstance(stages[0], RandomHadamard):
        return Hadamard(n, random_signs(n, draw_seed(seeds))).to(x.device)
    x = x.detach() if x.dtype == torch.float64 else x.detach().to(torch.float32)
    rms = token_rms(x) if any(stage.unit_tokens for stage in stages) else None
    sizes = (n,) if factors is None else factors
    rotations = [torch.eye(size, dtype=torch.float64, device=x.device) for size in sizes]
    readers = [index for index, stage in enumerate(stages) if reads_samples(stage)]
    last = readers[-1] if readers else -1  # behind it nothing looks at what the rotations leave of x
    for index, stage in enumerate(stages):
        for axis, size in enumerate(sizes):
            if reads_samples(stage):
                tokens = x / rms if stage.unit_tokens and rms is not None else x
                samples = tokens if factors is None else _axis_samples(tokens, factors, axis)
            else:
                samples = x.new_empty(1, size)
            step = stage.rotation(samples, draw_seed(seeds)).to(x.device)
            rotations[axis] = rotations[axis] @ step
            if index <= last:
                x = _apply(x, step, factors, axis)
    rotations = [orthonormalize(rotation) for rotation in rotations]
    return Dense(rotations[0], orthogonal=True) if factors is None else Kronecker(rotations[0], rotations[1])


def orthonormalize(rotation: Tensor, tolerance: float = 1e-13) -> Tensor:
    """The orthogonal matrix nearest to one that nearly is, by Newton's iteration R <- R (3 I - R^T R) / 2."""
    identity = torch.eye(rotation.shape[0], dtype=rotation.dtype, device=rotation.device)
    for _ in range(4):
        gram = rotation.T @ rotation
        if float((gram - identity).abs().max()) <= tolerance:
            break
        rotation = rotation @ (1.5 * identity - 0.5 * gram)
    return rotation


def _axis_samples(x: Tensor, factors: tuple[int, int], axis: int) -> Tensor:
    """The vectors along one axis of X (T, n1, n2) as rows, (T n2, n1) or (T n1, n2)."""
    n1, n2 = factors
    if axis == 1:
        return x.reshape(-1, n2)
    return x.reshape(-1, n1, n2).transpose(0, 1).reshape(n1, -1).T  # its transpose is contiguous, as builders want it


def _apply(x: Tensor, step: Tensor, factors: tuple[int, int] | None, axis: int) -> Tensor:
    step = step.to(x.dtype)
    if factors is None:
        return x @ step
    n1, n2 = factors
    return (x.reshape(-1, n2) @ step if axis == 1 else torch.matmul(step.T, x.reshape(-1, n1, n2))).reshape(x.shape)


def draw_seed(generator: torch.Generator) -> int:
    """The seed of the next stage, in [0, 2^62)."""
    return int(torch.randint(2**62, (), generator=generator))
