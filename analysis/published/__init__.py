"""Results that others published, with source, setting and note (published.csv; columns in README.md)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FILE = Path(__file__).parent / "published.csv"
SETTING = ["model", "method", "bits", "weights", "metric", "protocol"]  # equal in rows that measured the same thing


def load_published() -> pd.DataFrame:
    """One row a published number: columns of published.csv, `value` as a number and `printed` as the source prints it.

    Models, methods, bits, weights and metrics are named as in `sq.analysis.load`; empty = the source does not say.
    Accuracies are in percent, as everybody prints them.
    """
    frame = pd.read_csv(FILE, dtype=str, keep_default_na=False)
    return frame.assign(printed=frame["value"], value=frame["value"].astype(float))
