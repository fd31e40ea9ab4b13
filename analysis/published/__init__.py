"""Results that others published, with source, setting and note (published.csv; columns in README.md)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FILE = Path(__file__).parent / "published.csv"
SETTING = ["model", "method", "bits", "weights", "metric", "protocol"]  # equal in rows that measured the same thing


def load_published() -> pd.DataFrame:
    """One row a published number: columns of published.csv, `value` as a number and `printed` as the source prints it.

    Models, methods, bits, weights and metrics are named as in `sq.analysis.load`; empty = the source does not say.
    Accuracies are in percent, as everybody prints them. `origin` is the repository or paper of the source:
    two tables of one README are not two witnesses.
    """
    frame = pd.read_csv(FILE, dtype=str, keep_default_na=False)
    return frame.assign(
        printed=frame["value"], value=frame["value"].astype(float), origin=frame["source"].str.split(":").str[0]
    )
