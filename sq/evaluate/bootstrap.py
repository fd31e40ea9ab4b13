"""Paired bootstrap between two runs scored on the same windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sq.errors import DataError


@dataclass(frozen=True)
class Interval:
    """A mean of the sample itself, and its percentile bootstrap interval from low to high."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the two runs differ at the interval's level."""
        return self.low > 0 or self.high < 0


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of first - second over windows, with a percentile bootstrap interval that resamples windows in pairs.

    Pairing removes what both runs share (some windows are hard for every model), so far smaller differences are seen
    than by comparing two separate intervals (Efron and Tibshirani 1993, chapters 8 and 13).

    `first` and `second` have one value a window, such as the KL of each run. DataError is raised for different lengths
    or none, which are not scores of the same windows.
    """
    a, b = _paired(first, second)
    return mean_interval(a - b, resamples=resamples, level=level, seed=seed)


def paired_ratio(
    first: ArrayLike, second: ArrayLike, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """mean(first) / mean(second) over windows, resampled and refused as in `paired_difference`."""
    a, b = _paired(first, second)
    picks = _picks(len(a), resamples, seed)
    return _interval(a.mean() / b.mean(), a[picks].mean(1) / b[picks].mean(1), level)


def mean_interval(values: ArrayLike, *, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean over windows with its percentile bootstrap interval."""
    values = np.asarray(values, dtype=np.float64)
    return _interval(values.mean(), values[_picks(len(values), resamples, seed)].mean(1), level)


def _interval(mean: float, resampled: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(mean), float(low), float(high))


def _picks(count: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, size=(resamples, count))


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise DataError(
            f"paired runs need one value for each of the same windows, got shapes {a.shape} and {b.shape}. Compare "
            "runs with equal text, window and count."
        )
    return a, b
