"""Paired bootstrap against the normal theory of a paired t interval."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sq.errors import DataError
from sq.evaluate.bootstrap import Interval, mean_interval, paired_difference, paired_ratio


def test_interval_matches_normal_theory() -> None:
    """For n = 400 the percentile interval is the mean plus or minus 1.96 standard errors, to 15% of the width."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=400) * 5
    first, second = shared + rng.normal(0.3, 1, 400), shared + rng.normal(0, 1, 400)
    found = paired_difference(first, second)
    difference = first - second
    error = difference.std(ddof=1) / 20
    assert found.mean == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.3 * error)
    assert found.excludes_zero


def test_coverage_is_near_its_level() -> None:
    """95% intervals of 300 samples cover the true mean about 95 times in a hundred."""
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        found = mean_interval(rng.normal(size=60), resamples=400, seed=trial)
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_ratio_of_equal_runs_is_one_exactly() -> None:
    values = np.random.default_rng(2).exponential(size=50)
    found = paired_ratio(values, values)
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)
    halved = paired_ratio(0.5 * values, values)
    assert halved.mean == pytest.approx(0.5)
    assert halved.high == pytest.approx(0.5)


@pytest.mark.parametrize(("first", "second"), [([1.0, 2.0], [1.0]), ([], []), ([[1.0]], [[1.0]])])
def test_unpaired_runs_are_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(DataError, match="same windows"):
        paired_difference(first, second)


@pytest.mark.parametrize("count", [2, 48])
def test_intervals_are_those_of_scipy(count: int) -> None:
    """The same draws from the same generator: equal to the last bits."""
    stats = pytest.importorskip("scipy.stats")
    first, second = np.random.default_rng(3).exponential(size=(2, count)) + 0.1

    def scipy(statistic: Callable[..., np.ndarray]) -> tuple[float, float]:
        found = stats.bootstrap(
            (first, second), statistic, paired=True, vectorized=True, n_resamples=500, method="percentile",
            rng=np.random.default_rng(7),
        ).confidence_interval  # fmt: skip
        return float(found.low), float(found.high)

    ratio = paired_ratio(first, second, resamples=500, seed=7)
    assert (ratio.low, ratio.high) == pytest.approx(scipy(lambda a, b, axis: a.mean(axis) / b.mean(axis)), rel=1e-12)
    less = paired_difference(first, second, resamples=500, seed=7)
    assert (less.low, less.high) == pytest.approx(scipy(lambda a, b, axis: (a - b).mean(axis)), rel=1e-12)


def test_one_window_is_its_own_interval() -> None:
    assert paired_ratio([3.0], [2.0]) == Interval(1.5, 1.5, 1.5)
