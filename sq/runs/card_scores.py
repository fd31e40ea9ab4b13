"""What a run measured, as the model card of its packed folder shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sq.checkpoint.card import Score
from sq.data.windows import Windows
from sq.evaluate.bootstrap import mean_interval

Z95 = 1.96  # standard errors on each side of a mean, for tasks that give one


def card_scores(metrics: Mapping[str, float], arrays: Mapping[str, np.ndarray]) -> list[Score]:
    """Perplexity, KL, top-1 agreement and accuracies of a run, with 95% intervals.

    Over windows they are bootstraps of the values in `arrays`; exp takes the bounds of a mean NLL to those of a
    perplexity. Accuracies have 1.96 of lm-eval's standard errors on each side.
    """
    return [score for name, value in metrics.items() if (score := _score(name, value, metrics, arrays)) is not None]


def how_measured(texts: Sequence[Windows]) -> str:
    """A sentence on the windows behind the intervals; empty where no text was measured."""
    counts = [f"{len(text.ids)} windows of {text.ids.shape[1]} tokens of {text.text}" for text in texts]
    return f"Measured on {'; '.join(counts)}. Intervals are bootstraps over windows." if counts else ""


def _score(name: str, value: float, metrics: Mapping[str, float], arrays: Mapping[str, np.ndarray]) -> Score | None:
    kind, _, on = name.partition("/")
    if kind == "ppl":
        bounds = mean_interval(arrays[f"nll/{on}"])
        full = float(np.exp(arrays[f"reference_nll/{on}"].mean()))
        return Score(kind, on, value, float(np.exp(bounds.low)), float(np.exp(bounds.high)), full)
    if kind in ("kl", "top1"):
        bounds = mean_interval(arrays[name])
        return Score(kind, on, value, bounds.low, bounds.high)
    if kind == "acc":
        error = metrics.get(f"acc_stderr/{on}")
        return (
            Score(kind, on, value)
            if error is None
            else Score(kind, on, value, value - Z95 * error, value + Z95 * error)
        )
    return None
