"""Trainable factors: inverse and determinant, the Cayley map by its formula, gradients by finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from sq.learn.affine import AffineFactor, AffineKronecker, Scaling
from sq.rotation import random_orthogonal
from sq.rotation.transform import Transform

DOUBLE = torch.empty(0, dtype=torch.float64)


def disturbed(module: nn.Module, size: float = 0.5, seed: int = 0) -> None:
    """Move every parameter far from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.add_(size * noise.to(parameter))


def factor(n: int, seed: int = 0, like: Tensor = DOUBLE) -> AffineFactor:
    made = AffineFactor(n, (seed, seed + 1), like)
    disturbed(made, seed=seed)
    return made


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_start_is_the_product_of_two_haar_rotations(n: int) -> None:
    direct, inverse = AffineFactor(n, (3, 4), DOUBLE)()
    expected = random_orthogonal(n, 3) @ random_orthogonal(n, 4).T
    torch.testing.assert_close(direct, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(inverse, expected.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_inverse_determinant_and_singular_values_after_any_step(n: int) -> None:
    made = factor(n)
    direct, inverse = made()
    torch.testing.assert_close(direct @ inverse, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-10)
    log_scale = made.log_scale.detach()
    sign, log_determinant = torch.linalg.slogdet(direct.detach())
    assert float(sign) in (-1.0, 1.0)
    torch.testing.assert_close(log_determinant, log_scale.sum(), rtol=0, atol=1e-10)
    expected = log_scale.exp().sort(descending=True).values
    torch.testing.assert_close(torch.linalg.svdvals(direct.detach()), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_sides_are_torchs_cayley_map_and_stay_orthogonal(n: int) -> None:
    """torch.nn.utils.parametrizations.orthogonal starts from U0 too, and reads the same lower triangle."""
    made = factor(n)
    eye = torch.eye(n, dtype=torch.float64)
    for side, seed, given in zip(made.sides, (0, 1), made.parametrizations["sides"].original, strict=True):
        theirs = nn.Linear(n, n, bias=False, dtype=torch.float64)
        theirs.weight.data.copy_(random_orthogonal(n, seed))
        theirs = orthogonal(theirs, orthogonal_map="cayley")
        theirs.parametrizations["weight"].original.data.copy_(given)
        torch.testing.assert_close(side, theirs.weight, rtol=0, atol=1e-12)
        torch.testing.assert_close(side @ side.T, eye, rtol=0, atol=1e-12)


def test_a_diverged_factor_is_not_finite_instead_of_an_error_without_a_place() -> None:
    made = factor(5, like=torch.empty(0))
    for parameter in made.parameters():
        parameter.data.fill_(1e30)
    assert not bool(torch.isfinite(made()[0]).all())


def test_final_is_the_factor_in_float64() -> None:
    """float32 parameters: U0 itself is orthogonal to 1e-7 only, all that follows is float64."""
    made = factor(16, like=torch.empty(0))
    direct = made()[0]
    final = made.final()
    assert direct.dtype == torch.float32
    assert final.dtype == torch.float64
    torch.testing.assert_close(final.float(), direct.detach(), rtol=0, atol=1e-5)
    assert made.log_scale.dtype == torch.float32


def test_gradients_are_those_of_finite_differences() -> None:
    made = factor(3)
    parameters = dict(made.named_parameters())

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(parameters, values, strict=True))
        result: tuple[Tensor, Tensor] = torch.func.functional_call(made, given, ())
        return result

    assert torch.autograd.gradcheck(run, tuple(p.detach().clone().requires_grad_() for p in parameters.values()))


def test_same_seeds_give_the_same_bits_and_no_global_random_number_is_drawn() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (AffineFactor(24, seeds, torch.empty(0))()[0] for seeds in ((1, 2), (1, 2), (2, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("left", "right"), [(4, 6), ("4", 6), (4, "6"), ("1", 5)], ids=str)
def test_kronecker_is_the_dense_product_and_what_it_freezes_to(left: int | str, right: int | str) -> None:
    """A text is an identity of that size. y = x T against kron(P1, P2), and x T (w T^-T)^T = x w^T."""
    parts = [int(n) if isinstance(n, str) else factor(n, seed) for n, seed in ((left, 5), (right, 8))]
    made = AffineKronecker(*parts)
    dense = [torch.eye(p, dtype=torch.float64) if isinstance(p, int) else p()[0].detach() for p in parts]
    check_transform(made, torch.kron(*dense))
    frozen = made.frozen()
    assert not frozen.orthogonal
    assert frozen.macs() == made.macs()
    torch.testing.assert_close(frozen.matrix(), torch.kron(*dense), rtol=0, atol=1e-10)
    assert not list(frozen.parameters())


def test_scaling_is_its_start_times_an_exponential() -> None:
    start = torch.tensor([0.1, 2.0, 30.0])
    made = Scaling(start, DOUBLE)
    torch.testing.assert_close(made.matrix(), start.double().diag())
    disturbed(made)
    t = start.double() * made.log_scale.detach().exp()
    check_transform(made, t.diag())
    torch.testing.assert_close(made.frozen().matrix(), t.diag())


def check_transform(made: Transform, dense: Tensor) -> None:
    x, w = (
        torch.randn(shape, made.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for shape in (5, 3)
    )
    torch.testing.assert_close(made(x), x @ dense, rtol=0, atol=1e-10)
    torch.testing.assert_close(made.inverse(made(x)), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(made(x) @ made.inverse_transpose(w).T, x @ w.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(made.transpose(w), w @ dense.T, rtol=0, atol=1e-10)


def test_gradients_reach_every_parameter_through_activations_and_through_weights() -> None:
    made = AffineKronecker(factor(2), factor(3, seed=5))
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for apply in (made.forward, made.inverse_transpose):
        with parametrize.cached():
            loss = apply(x).square().mul(torch.arange(6.0, dtype=torch.float64)).sum()
        gradients = torch.autograd.grad(loss, list(made.parameters()))
        assert all(bool(gradient.abs().max() > 0) for gradient in gradients)
