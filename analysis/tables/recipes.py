"""Every baseline with its published recipe of quantizers, and below them all methods with the shared one."""

from __future__ import annotations

from collections.abc import Callable

from sq.analysis.results import as_text
from sq.analysis.tables.cells import Cell, kl_over_base, measured
from sq.analysis.tables.declaration import METHOD, OURS, Declaration, Each
from sq.analysis.tables.table import Column


def _grid(part: str) -> Callable[[Cell], str]:
    """How weights or activations are rounded: "asymmetric, clip 0.9"; "-" for full precision."""

    def shown(cell: Cell) -> str:
        run = cell.row.iloc[0]
        if run["weights"] == "none":
            return "-"
        by_head = ", by head at o" if as_text(run.get(f"{part}.o_group")) == "head" else ""
        return f"{run[f'{part}.scheme']}, clip {as_text(run[f'{part}.clip'])}{by_head}"

    return shown


RECIPES = Declaration(
    experiment="table_recipes",
    beside="table_perplexity",
    task="perplexity",
    metric="kl",
    full_precision=True,
    base=OURS,
    several=[
        "activations",
        *(f"{part}.{key}" for part in ("activations", "weights") for key in ("scheme", "clip")),
        "activations.o_group",
    ],
    columns=(
        METHOD,
        Column("weights", _grid("weights")),
        Column("activations", _grid("activations")),
        Each(
            ("text", "weights"),
            (
                Column("ppl", measured("ppl"), "{:.3f}"),
                Column("KL", measured("kl"), "{:.4f}"),
                Column("KL / {base}", kl_over_base, "{:.3f}"),
            ),
        ),
    ),
    title="Published recipes beside the shared one, {models}, {bits}",
    note="Rows X_published: X with its paper's own grids, clips and groups; all others share one recipe. "
    "KL in nats per token; ratios to {base} under the shared recipe, with 95% paired bootstrap over windows.",
)
