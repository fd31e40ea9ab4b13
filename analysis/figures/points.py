"""Runs as points of quality against cost."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from sq.analysis.figures.select import NAMES, OURS
from sq.analysis.results import as_text
from sq.analysis.tables.order import training

Quality = Literal["kl", "ppl", "acc"]
WORDS = {"kl": "KL {:.4f}", "ppl": "perplexity {:.3f}", "acc": "accuracy {:.1f}%"}


def points_of(runs: pd.DataFrame, quality: Quality) -> pd.DataFrame:
    """Label, kind, quality, seconds, multiply_adds (a token, all layers), site and tip of each run that quantized.

    `runs` have a column "quality" (`sq.analysis.figures.select.scored`). `site`: the activation clip is one a site.
    `tip` tells all numbers. The title in attrs names model, bits and rounders.
    """
    runs = runs[runs["quantize/seconds"].notna()]  # full precision quantizes nothing
    points = pd.DataFrame(
        {
            "label": runs.apply(_label, axis=1),
            "kind": runs.apply(_kind, axis=1),
            "quality": runs["quality"] * (100 if quality == "acc" else 1),
            "seconds": runs["quantize/seconds"].astype(float),
            "multiply_adds": runs["transform/multiply_adds"].astype(float),
            "site": [as_text(run.get("activations.clip")) == "site" for _, run in runs.iterrows()],
        }
    ).reset_index(drop=True)
    points["tip"] = [
        f"{point['label']}{', one clip a site' if point['site'] else ''}: {WORDS[quality].format(point['quality'])}, "
        f"{point['multiply_adds'] / 1e6:,.2f} M multiply-adds a token, {point['seconds']:.1f} s ({run})"
        for (_, point), run in zip(points.iterrows(), runs["run_id"], strict=True)
    ]
    parts = [dict.fromkeys(runs[name]) for name in ("model", "bits", "weights")]
    points.attrs["title"] = ", ".join(" and ".join(map(str, part)) for part in parts)
    return points


def _label(run: pd.Series) -> str:
    name = NAMES.get(run["method"], str(run["method"]))
    amount, unit = training(run)
    return f"{name}, {amount:g} {unit}" if unit else name


def _kind(run: pd.Series) -> str:
    if training(run)[0] > 0:
        return "trained"
    return "SingleQuant" if run.get("method._target_") == OURS and not _plain_hadamard(run) else "closed form"


def _plain_hadamard(run: pd.Series) -> bool:
    """SingleQuant with everything that is its own left out."""
    return run["method.order"] == ["hadamard"] and not run["method.balance"] and run["method.mixing"] == "none"
