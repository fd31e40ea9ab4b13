"""Cayley steps: against the closed form, finite differences on the manifold, and a problem whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sq.learn.cayley import cayley_step, orthogonality_error, skew
from sq.rotation import orthonormalize, random_orthogonal


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quartic(n: int, seed: int) -> Callable[[Tensor], Tensor]:
    """A smooth function of a matrix without symmetry: the fourth moment of fixed samples times R, and a linear part."""
    samples, linear = gaussian(3 * n, n, seed=seed), gaussian(n, n, seed=seed + 1)
    return lambda r: (samples @ r).pow(4).mean() + (linear * r).sum()


def gradient_of(f: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
    leaf = r.clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


def exact_cayley(r: Tensor, gradient: Tensor, a: float) -> Tensor:
    """R^T <- (I - a/2 Om)^-1 (I + a/2 Om) R^T with Om = (R^T G - G^T R) / 2, solved in float64."""
    omega = (r.T @ gradient - gradient.T @ r) / 2
    eye = torch.eye(len(r), dtype=r.dtype)
    moved: Tensor = torch.linalg.solve(eye - a / 2 * omega, (eye + a / 2 * omega) @ r.T)
    return moved.T


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 40), seed=st.integers(0, 1000), lr=st.sampled_from([1e-3, 0.1, 1.0]))
def test_step_is_a_cayley_transform_to_the_accuracy_of_five_rounds(n: int, seed: int, lr: float) -> None:
    """Each round multiplies the distance by a/2 |Om|_2 at most, and the first guess is a |V + Om R^T| away."""
    r, gradient = random_orthogonal(n, seed), gaussian(n, n, seed=seed + 1) / n
    step = cayley_step(r, gradient, lr)
    omega, a = (r.T @ gradient - gradient.T @ r) / 2, float(step.size)
    exact = exact_cayley(r, gradient, a)
    contraction = a / 2 * float(torch.linalg.matrix_norm(omega, 2))
    assert contraction <= 0.5
    guess = float(torch.linalg.matrix_norm(r - a * gradient - exact))
    assert float(torch.linalg.matrix_norm(step.rotation - exact)) <= contraction**5 * guess + 1e-7
    assert orthogonality_error(exact) < 1e-12


def test_small_steps_stay_orthogonal_for_many_steps() -> None:
    """300 steps without any retraction, on a gradient of the size that training shows."""
    r = random_orthogonal(64, 0)
    f = quartic(64, 1)
    for _ in range(300):
        r = cayley_step(r, gradient_of(f, r) / 100, 0.1).rotation
    assert orthogonality_error(r) < 1e-7


@pytest.mark.parametrize("seed", range(3))
def test_gradient_norm_and_direction_match_finite_differences_on_the_manifold(seed: int) -> None:
    """Along the exact Cayley curve df/da = -|grad f|^2; no other unit direction R S, S skew, falls faster."""
    n = 12
    r, f = random_orthogonal(n, seed), quartic(n, seed)
    gradient = gradient_of(f, r)
    norm = float(cayley_step(r, gradient, 0.1).gradient_norm)
    h = 1e-5
    slope = float(f(exact_cayley(r, gradient, h)) - f(exact_cayley(r, gradient, -h))) / (2 * h)
    assert slope == pytest.approx(-(norm**2), rel=1e-6)
    symmetric = (r.T @ gradient + gradient.T @ r) / 2
    assert norm == pytest.approx(float((gradient - r @ symmetric).norm()), rel=1e-10)  # the textbook projection
    for other in range(5):
        direction = gaussian(n, n, seed=other)
        direction = direction - direction.T
        direction = direction / direction.norm()
        turned = [f(r @ torch.linalg.matrix_exp(sign * h * direction)) for sign in (1, -1)]
        assert abs(float(turned[0] - turned[1])) / (2 * h) <= norm * (1 + 1e-6)


def test_a_small_step_lowers_the_function_as_its_gradient_says() -> None:
    r, f = random_orthogonal(16, 3), quartic(16, 4)
    gradient = gradient_of(f, r)
    step = cayley_step(r, gradient, 1e-5)
    fallen = float(f(r) - f(step.rotation))
    assert fallen == pytest.approx(1e-5 * float(step.gradient_norm) ** 2, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_step_size_is_the_smaller_of_lr_and_the_inverse_column_sum(scale: float) -> None:
    r, gradient = random_orthogonal(8, 0), scale * gaussian(8, 8, seed=1)
    omega = (r.T @ gradient - gradient.T @ r) / 2
    bound = 1 / (max(float(omega[:, j].abs().sum()) for j in range(8)) + 1e-8)
    step = cayley_step(r, gradient, lr=0.5)
    assert float(step.size) == pytest.approx(min(0.5, bound), rel=1e-9)
    assert bool(step.limited) == (bound < 0.5)


def test_a_rotation_at_its_minimum_stays() -> None:
    """|R - Q|^2 has gradient 2 (R - Q) = 0 at Q, and a gradient R S with S symmetric has no part along the manifold."""
    q, symmetric = random_orthogonal(10, 0), gaussian(10, 10, seed=1)
    symmetric = symmetric + symmetric.T
    for gradient in (torch.zeros_like(q), 1e-3 * q @ symmetric):
        step = cayley_step(q, gradient, 1.0)
        assert float(step.gradient_norm) < 1e-15
        torch.testing.assert_close(step.rotation, q, rtol=0, atol=1e-12)


def test_finds_the_nearest_orthogonal_matrix_that_an_svd_gives() -> None:
    """min |R - M|^2 over R: U V^T of M = U S V^T (orthogonal Procrustes)."""
    target = random_orthogonal(12, 0) + 0.1 * gaussian(12, 12, seed=1)
    u, _, vh = torch.linalg.svd(target)
    r = exact_cayley(u @ vh, gaussian(12, 12, seed=2), 0.3)
    before = float((r - u @ vh).norm())
    for step in range(200):
        if step == 101:  # the first steps are long, and five rounds leave them 1e-5 from the manifold
            r = orthonormalize(r)
        r = cayley_step(r, 2 * (r - target), 0.2).rotation
    assert before > 1
    torch.testing.assert_close(r, u @ vh, rtol=0, atol=1e-7)


def test_rows_are_scaled_to_length_one_and_matrices_of_a_batch_do_not_meet() -> None:
    rotations = torch.stack([random_orthogonal(6, seed) for seed in range(3)])
    gradients = gaussian(3, 6, 6, seed=9) * torch.tensor([1e-2, 1.0, 1e2], dtype=torch.float64)[:, None, None]
    together = cayley_step(rotations, gradients, 0.3)
    lengths = 1 + 0.1 * gaussian(6, 1, seed=5).abs()
    for index in range(3):
        alone = cayley_step(lengths * rotations[index], gradients[index], 0.3)
        torch.testing.assert_close(together.rotation[index], alone.rotation, rtol=0, atol=1e-7)
        assert float(together.size[index]) == pytest.approx(float(alone.size))
        assert bool(together.limited[index]) == bool(alone.limited)


def test_skew_is_the_released_formula() -> None:
    """A = V R - R^T (R V R) / 2, Om = A - A^T, V = -G^T, written out; not simplified by R^T R = I."""
    r, gradient = gaussian(7, 7, seed=0), gaussian(7, 7, seed=1)
    v = -gradient.T
    a = v @ r - 0.5 * r.T @ (r @ (v @ r))
    torch.testing.assert_close(skew(r, gradient), a - a.T, rtol=0, atol=1e-12)
