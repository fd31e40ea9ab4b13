"""ART: its angle against brute force, its peak never rising, its end."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sq.errors import CalibrationError
from sq.rotation import art_angle, art_rotation


def spiky(tokens: int, m: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, m, generator=generator, dtype=torch.float64)
    x[seed % tokens, seed % m] = 40.0
    return x


@settings(max_examples=50, deadline=None)
@given(a=st.floats(-100, 100), b=st.floats(-100, 100))
def test_angle_is_the_best_of_all(a: float, b: float) -> None:
    first, second = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)

    def entries(theta: torch.Tensor) -> torch.Tensor:
        c, s = theta.cos(), theta.sin()
        return torch.stack([c * first + s * second, -s * first + c * second])

    least = torch.hypot(first, second) / 2**0.5
    torch.testing.assert_close(entries(art_angle(first, second)), torch.stack([least, least]), rtol=0, atol=1e-12)
    everywhere = entries(torch.linspace(-torch.pi, torch.pi, 20001, dtype=torch.float64)).abs().amax(0)
    assert float(everywhere.min()) >= float(least) - 1e-12


@pytest.mark.parametrize("partner", ["smallest", "best"])
@pytest.mark.parametrize("statistic", ["channel_max", "peak_row"])
def test_one_step_shares_the_peak(
    partner: Literal["smallest", "best"], statistic: Literal["channel_max", "peak_row"]
) -> None:
    x = spiky(64, 8, seed=3)
    rotation = art_rotation(x, 1, partner, statistic)
    turned = (x @ rotation)[3]
    changed = torch.nonzero((turned - x[3]).abs() > 1e-9).flatten().tolist()
    assert len(changed) == 2
    assert 3 in changed
    shared = x[3, changed].norm() / 2**0.5
    torch.testing.assert_close(turned[changed], shared.expand(2), rtol=0, atol=1e-12)


def test_partner_is_the_channel_with_the_smallest_profile() -> None:
    x = spiky(64, 8, seed=3)
    x[:, 5] *= 0.01
    changed = (art_rotation(x, 1) - torch.eye(8)).abs().amax(0).nonzero().flatten().tolist()
    assert changed == [3, 5]
    x[3, 6] = 1e-6
    changed = (art_rotation(x, 1, statistic="peak_row") - torch.eye(8)).abs().amax(0).nonzero().flatten().tolist()
    assert changed == [3, 6]


@pytest.mark.parametrize("partner", ["smallest", "best"])
@settings(max_examples=15, deadline=None)
@given(tokens=st.integers(1, 40), m=st.integers(1, 17), seed=st.integers(0, 100))
def test_peak_never_rises_and_the_matrix_is_orthogonal(
    partner: Literal["smallest", "best"], tokens: int, m: int, seed: int
) -> None:
    x = spiky(tokens, m, seed)
    peak = float(x.abs().max())
    for steps in (0, 1, 2, 5, 30):
        rotation = art_rotation(x, steps, partner)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(m, dtype=torch.float64), rtol=0, atol=1e-12)
        turned = float((x @ rotation).abs().max())
        assert turned <= peak + 1e-12
        peak = turned


def test_stops_when_no_plane_would_gain() -> None:
    flat = torch.ones(4, 6, dtype=torch.float64)
    assert torch.equal(art_rotation(flat, 100), torch.eye(6, dtype=torch.float64))
    x = spiky(64, 8, seed=1)
    assert torch.equal(art_rotation(x, 10_000), art_rotation(x, 20_000))


def test_equal_peaks_in_two_channels_are_both_shared() -> None:
    x = torch.zeros(2, 4, dtype=torch.float64)
    x[0, 0] = x[1, 1] = 8.0
    assert float((x @ art_rotation(x, 8)).abs().max()) < 8 / 2**0.5 + 1e-12


def test_half_precision_samples_are_accepted() -> None:
    x = spiky(64, 8, seed=1)
    rotation = art_rotation(x.bfloat16(), 4)
    assert rotation.dtype == torch.float64
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-12)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0 or more"):
        art_rotation(torch.ones(2, 2), -1)
    with pytest.raises(ValueError, match="partner 'smallest' or 'best'"):
        art_rotation(torch.ones(2, 2), 1, "largest")  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="at least one token"):
        art_rotation(torch.ones(0, 4), 1)
    x = torch.ones(3, 4)
    x[1, 2] = torch.nan
    with pytest.raises(CalibrationError, match="NaN or inf in 1 of 3 tokens, first in 1"):
        art_rotation(x, 1)
