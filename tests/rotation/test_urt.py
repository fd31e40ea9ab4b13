"""URT: each target's exact claim."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sq.errors import CalibrationError
from sq.rotation import Statistic, hadamard_matrix, kurtosis_rotation, urt_rotation
from sq.rotation.urt import evenly_spaced, profile

STATISTICS: tuple[Statistic, ...] = ("peak_row", "channel_max")


def samples(m: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(30, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[11] *= 20
    return x


@pytest.mark.parametrize("statistic", STATISTICS)
@settings(max_examples=15, deadline=None)
@given(m=st.integers(2, 17), seed=st.integers(0, 1000))
def test_flat_and_uniform_take_the_profile_to_the_target(statistic: Statistic, m: int, seed: int) -> None:
    x = samples(m, seed)
    v = profile(x, statistic)
    flat = v @ urt_rotation(x, "flat", statistic)
    torch.testing.assert_close(flat, (v.norm() / m**0.5).expand(m), rtol=1e-11, atol=0)
    uniform = v @ urt_rotation(x, "uniform", statistic)
    ranked = uniform.sort().values
    gaps = ranked.diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(m - 1), rtol=1e-9, atol=0)
    torch.testing.assert_close(uniform.norm(), v.norm())
    assert torch.equal(uniform.argsort(), v.argsort())


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("m", [2, 12, 16, 24, 172])
def test_hadamard_takes_the_profile_to_its_flat_first_row(statistic: Statistic, m: int) -> None:
    x = samples(m)
    v = profile(x, statistic)
    expected = v.norm() / m**0.5 * hadamard_matrix(m)[0]
    torch.testing.assert_close(v @ urt_rotation(x, "hadamard", statistic), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("target", ["flat", "uniform", "hadamard", "kurtosis"])
def test_matrix_is_orthogonal(target: str) -> None:
    for x in (samples(24), torch.zeros(3, 24, dtype=torch.float64)):
        rotation = urt_rotation(x, target)  # type: ignore[arg-type]
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-12)


def test_kurtosis_is_the_fourth_moment_rotation() -> None:
    assert torch.equal(urt_rotation(samples(6), "kurtosis", sweeps=2), kurtosis_rotation(samples(6), 2))


def test_profiles() -> None:
    x = torch.tensor([[1.0, -5.0, 2.0], [-3.0, 4.0, 0.0]])
    assert profile(x, "peak_row").tolist() == [1.0, -5.0, 2.0]
    assert profile(x, "channel_max").tolist() == [3.0, 5.0, 2.0]


def test_evenly_spaced_ranges() -> None:
    assert evenly_spaced(torch.tensor([3.0, -1.0, 0.0, 9.0])).tolist() == [0.25, -0.75, -0.25, 0.75]
    assert evenly_spaced(torch.tensor([3.0, 1.0])).tolist() == [0.75, 0.25]
    assert evenly_spaced(torch.tensor([-3.0, -1.0])).tolist() == [-0.75, -0.25]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="uniform, flat, hadamard, kurtosis"):
        urt_rotation(samples(4), "round")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'peak_row' and 'channel_max'"):
        urt_rotation(samples(4), "flat", "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"order 86 .*random_orthogonal"):
        urt_rotation(samples(86), "hadamard")
    with pytest.raises(CalibrationError, match="NaN"):
        urt_rotation(samples(4) * torch.nan, "flat")
