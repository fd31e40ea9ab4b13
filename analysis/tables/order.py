"""What the rows and columns of a table are called, and the order in which they stand."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from sq.formats.format import named
from sq.formats.labels import parse_bits


def row_name(run: pd.Series) -> str:
    """ "quarot"; "spinquant, 25 steps": the same method trained longer is a row of its own.

    "quarot, cross_head none" where the model's sizes decided an option.
    """
    amount, unit = training(run)
    shown = run.get("shown_method")
    name = str(run["method"] if pd.isna(shown) else shown)
    return f"{name}, {amount:.0f} {unit}" if unit else name


def training(run: pd.Series) -> tuple[float, str]:
    """How long a method was trained, and the unit: (25, "steps"); (0, "") for one without training."""
    for unit in ("epochs", "steps"):
        if pd.notna(amount := run.get(f"method.{unit}")):
            return float(amount), unit
    return 0.0, ""


def lines(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """(model, row name) of each line: methods as they come, shorter trainings of a method first."""
    place = {method: number for number, method in enumerate(dict.fromkeys(runs["method"]))}
    models = list(dict.fromkeys(runs["model"]))
    keys = {
        (str(run["model"]), row_name(run)): (models.index(run["model"]), place[run["method"]], training(run)[0])
        for _, run in runs.iterrows()
    }
    return sorted(keys, key=lambda line: keys[line])


def texts_of(runs: pd.DataFrame, metric: str) -> list[str]:
    """Texts (or tasks) that any run has a metric of: "ppl/wikitext2" gives "wikitext2". The mean comes last."""
    columns = [str(column) for column in runs if str(column).startswith(f"{metric}/")]
    found = [column.split("/", 1)[1] for column in columns if runs[column].notna().any()]
    return sorted(found, key=lambda text: text == "mean")


def in_order(labels: Iterable[str]) -> list[str]:
    """W4A4KV16, NVFP4KV16, W4A4KV4, W4A8KV16: fewer bits first, the cache the other way round.

    A named format counts with the bits of its codes, and stands behind integers of as many bits.
    """

    def key(label: str) -> tuple[list[int], list[str]]:
        bits = parse_bits(label)
        cache = [bits.keys] if bits.keys == bits.values else [bits.keys, bits.values]
        inside = cache if bits.queries == "16" else [bits.queries, *cache]
        linears = [bits.weights, bits.activations]
        names = ["" if part.isdigit() else part for part in [*linears, *inside]]
        return [*map(_bits, linears), *(-_bits(part) for part in inside)], names

    return sorted(set(labels), key=key)


def _bits(part: str) -> int:
    return int(part) if part.isdigit() else named(part).bits


def quantizers(runs: pd.DataFrame) -> list[str]:
    """The weight quantizers in use, rtn first."""
    found = set(runs["weights"]) - {"none"}
    return sorted(found, key=lambda name: (name != "rtn", name))
