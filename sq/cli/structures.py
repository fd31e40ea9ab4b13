"""`python -m sq.cli.structures model=smollm2`: which structure of balance suits a model, in seconds.

Prints J over the least J (sq.methods.criterion) by site, the geometric mean over layers, from one forward of the
calibration text; nothing is quantized. Overrides are those of run.py; `--layers 1 8 16` measures some layers alone and
stops behind the last, `--block` and `--ranks` choose the structures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from sq.config.compose import compose
from sq.data.windows import calibration_windows
from sq.errors import ConfigError, SQError
from sq.methods.criterion import Observer, Structure, structures
from sq.models.families import SITES
from sq.progress import shown
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.runs.build import load_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line, measure, print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sq.cli.structures", description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for run.py: model=smollm2 seed=1")
    parser.add_argument("--layers", type=int, nargs="+", default=[], help="measured layers; all unless given")
    parser.add_argument("--block", type=int, default=128, help="most channels of a block")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32], help="of the low-rank balance")
    options = parser.parse_args(arguments)
    compared = structures(options.block, options.ranks)
    try:
        Console(width=120).print(_table(measure(options.overrides, compared, options.layers), compared))
    except SQError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@torch.no_grad()
def measure(overrides: Sequence[str], compared: Sequence[Structure], layers: Sequence[int] = ()) -> pd.DataFrame:
    """One row a layer and site: J over the least J of each structure, and n.

    Raises:
        SQError: as run.py; ConfigError for layers that the model has not.
    """
    settings = compose(list(overrides))
    tokenizer, stream = load_model(settings.model, settings.paths.cache)
    if tokenizer is None:
        raise ConfigError([f"{settings.model.name} has random weights, which have no structure; choose another model"])
    chosen = settings.calibration
    windows = calibration_windows(
        chosen.text, tokenizer, tokens=chosen.tokens, window=chosen.window, seed=chosen.seed, path=chosen.path,
        dataset_path=chosen.dataset_path, cache_dir=settings.paths.cache,
    )  # fmt: skip
    observer = Observer(compared=compared, layers=layers)
    pipeline = Pipeline(stream, observer, Recipe(propagate="full_precision"), windows.ids)
    pipeline.prepare()
    last = max(layers, default=stream.count - 1)
    with shown() as show:
        show("layers", 0, last + 1)
        for index, _ in enumerate(pipeline.layers()):
            show("layers", index + 1, last + 1)
            if index == last:
                break
    rows = [
        {"layer": layer, "site": site, "n": stream.dimensions.width(site), **found}
        for (layer, site), found in observer.found.items()
    ]
    return pd.DataFrame(rows)


def _table(measured: pd.DataFrame, compared: Sequence[Structure]) -> Table:
    """Geometric means over layers, by site and of all."""
    table = Table(title="J over the least J; cost in multiply-adds a feature, without the rotation behind")
    for head in ("structure", "cost", "all", *SITES):
        table.add_column(head, justify="left" if head == "structure" else "right")
    for each in compared:
        logs = measured.set_index("site")[each.name].map(lambda value: torch.tensor(value).log().item())
        means = [logs.mean(), *(logs[site].mean() for site in SITES)]
        costs = sorted({round(each.cost(n)) for n in measured["n"]})
        shown = f"{costs[0]}" if len(costs) == 1 else f"{costs[0]}-{costs[-1]}"
        table.add_row(each.name, shown, *(f"{torch.tensor(mean).exp().item():.2f}" for mean in means))
    return table


if __name__ == "__main__":
    sys.exit(main())
