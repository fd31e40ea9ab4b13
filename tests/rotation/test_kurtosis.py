"""Fourth-moment rotations: the angle against brute force, sweeps against their definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sq.errors import CalibrationError
from sq.rotation import fourth_moment_angle, kurtosis_rotation, plane_rotation, random_orthogonal


def heavy(tokens: int, m: int, seed: int) -> torch.Tensor:
    """Heavy-tailed samples."""
    return torch.randn(tokens, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3


def fourth_moment(x: torch.Tensor) -> float:
    return float(x.pow(4).sum())


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 30), seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_angle_minimizes_over_a_grid_of_all_angles(tokens: int, seed: int, scale: float) -> None:
    x, y = heavy(tokens, 2, seed).T * torch.tensor([[1.0], [scale]], dtype=torch.float64)
    p, q = x * y, (y * y - x * x) / 2
    theta = fourth_moment_angle((p * p).sum(), (p * q).sum(), (q * q).sum())
    assert abs(float(theta)) <= torch.pi / 4 + 1e-12

    def moment(angle: torch.Tensor) -> torch.Tensor:
        c, s = angle.cos()[:, None], angle.sin()[:, None]
        return (c * x + s * y).pow(4).sum(1) + (-s * x + c * y).pow(4).sum(1)

    everywhere = moment(torch.linspace(-torch.pi / 2, torch.pi / 2, 4001, dtype=torch.float64))
    assert float(moment(theta[None])) <= float(everywhere.min()) * (1 + 1e-9)


def sequential_sweep(x: torch.Tensor) -> torch.Tensor:
    """One sweep written naively: the circle method over lists, one plane at a time."""
    m = x.shape[1]
    places: list[int | None] = [None] * (m % 2) + list(range(m))
    size = len(places)
    rotation = torch.eye(m, dtype=torch.float64)
    for _ in range(size - 1):
        for k in range(size // 2):
            i, j = places[k], places[k + size // 2]
            if i is None or j is None:
                continue
            turned = x @ rotation
            p, q = turned[:, i] * turned[:, j], (turned[:, j] ** 2 - turned[:, i] ** 2) / 2
            theta = fourth_moment_angle((p * p).sum(), (p * q).sum(), (q * q).sum())
            rotation = rotation @ plane_rotation(m, i, j, theta)
        half = size // 2
        top, bottom = places[:half], places[half:]
        if half > 1:
            places = [top[0], bottom[0], *top[1:-1], *bottom[1:], top[-1]]
    return rotation


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 9, 12])
def test_sweep_equals_the_sequential_definition(m: int) -> None:
    x = heavy(50, m, seed=m)
    torch.testing.assert_close(kurtosis_rotation(x, 1, unit_tokens=False), sequential_sweep(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("m", [2, 4, 6, 8, 16, 24])
def test_a_sweep_meets_every_pair_once(m: int) -> None:
    from sq.rotation.kurtosis import _round_robin

    places, following, met = torch.arange(m), _round_robin(m), set()
    for _ in range(m - 1):
        met |= {frozenset(pair) for pair in zip(places[: m // 2].tolist(), places[m // 2 :].tolist(), strict=True)}
        places = places[following]
    assert len(met) == m * (m - 1) // 2
    assert torch.equal(places, torch.arange(m))


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 40), m=st.integers(1, 15), seed=st.integers(0, 100))
def test_moment_falls_with_every_sweep_and_the_matrix_is_orthogonal(tokens: int, m: int, seed: int) -> None:
    x = heavy(tokens, m, seed)
    before = fourth_moment(x)
    for sweeps in (0, 1, 2, 4):
        rotation = kurtosis_rotation(x, sweeps, unit_tokens=False)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(m, dtype=torch.float64), rtol=0, atol=1e-12)
        after = fourth_moment(x @ rotation)
        assert after <= before * (1 + 1e-9)
        before = after


def test_finds_sub_gaussian_sources() -> None:
    """Uniform sources mixed by a rotation are found again: they are where the fourth moment is least."""
    generator = torch.Generator().manual_seed(0)
    sources = (torch.rand(20_000, 6, generator=generator, dtype=torch.float64) - 0.5) * 12**0.5
    mixed = sources @ random_orthogonal(6, 1)
    found = mixed @ kurtosis_rotation(mixed, 4, unit_tokens=False)
    correlation = (sources.T @ found / len(sources)).abs()
    assert float(correlation.amax(1).min()) > 0.99


def test_unit_tokens_make_the_scale_of_a_token_irrelevant() -> None:
    x = heavy(200, 8, 0)
    scale = torch.logspace(-3, 3, 200, dtype=torch.float64)[:, None]
    torch.testing.assert_close(kurtosis_rotation(x * scale), kurtosis_rotation(x), rtol=0, atol=1e-9)
    x[7] = 0
    assert torch.isfinite(kurtosis_rotation(x)).all()


def test_slices_and_float32_change_nothing_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    x = heavy(3000, 8, 0)
    whole = kurtosis_rotation(x)
    monkeypatch.setattr("sq.rotation.kurtosis.SLICE", 1)  # slices of 256 tokens, the last one shorter
    torch.testing.assert_close(kurtosis_rotation(x), whole, rtol=0, atol=1e-9)
    torch.testing.assert_close(kurtosis_rotation(x.float()), whole, rtol=0, atol=1e-3)
    before = x.clone()
    kurtosis_rotation(x)
    assert torch.equal(x, before)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 sweeps"):
        kurtosis_rotation(torch.ones(2, 2), -1)
    with pytest.raises(CalibrationError, match="NaN or inf in 2 of 2 tokens"):
        kurtosis_rotation(torch.full((2, 2), torch.inf))
