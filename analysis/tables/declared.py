"""All tables, each declared with the cells that it alone has: quality, formats, quantization time, the ablation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from sq.analysis.results import as_text
from sq.analysis.tables.cells import Cell, Value, kl_over_base, measured, perplexity_over_full_precision, value
from sq.analysis.tables.declaration import METHOD, OURS, Declaration, Each
from sq.analysis.tables.table import Column

PERPLEXITY = Declaration(
    experiment="table_perplexity",
    task="perplexity",
    metric="ppl",
    full_precision=True,
    base=OURS,
    columns=(
        METHOD,
        Each(
            ("text", "weights"),
            (
                Column("ppl", measured("ppl"), "{:.3f}"),
                Column("ppl / fp16", perplexity_over_full_precision, "{:.3f}"),
                Column("KL", measured("kl"), "{:.4f}"),
                Column("KL / {base}", kl_over_base, "{:.3f}"),
            ),
        ),
    ),
    title="Perplexity and KL from full precision, {models}, {bits}",
    note="KL in nats per token; intervals: 95% paired bootstrap over windows.",
)
# Titles and formats of table_bits, whose labels of bits always name the KV cache.
METRICS = {
    "kl": ("KL from full precision, nats per token", "{:.4f}"),
    "ppl": ("Perplexity", "{:.3f}"),
    "top1": ("Share of tokens with full precision's most likely token", "{:.3f}"),
}
BITS = [
    Declaration(
        experiment="table_bits",
        task="perplexity",
        metric=metric,
        several=["bits"],
        columns=[METHOD, Each(["text", "bits", "weights"], [Column("", measured(metric), form)])],
        title=f"{title}, {{models}}",
        note="Blank: no such run in the experiment.",
    )
    for metric, (title, form) in METRICS.items()
]


CLIP = "activations.clip"


def _own(runs: pd.DataFrame, site: bool) -> pd.DataFrame:
    """The runs with a clip for each site, or those with the other clip."""
    return runs[(runs[CLIP] == "site") == site]


def _with_clips(metric: str, site: bool) -> Callable[[Cell], Value]:
    """The value function of a metric of the runs with a clip for each site, or of those with the other clip."""
    return lambda cell: measured(metric)(replace(cell, row=_own(cell.row, site)))


def _gain(cell: Cell) -> Value:
    """KL with a clip for each site over the same method's without."""
    return kl_over_base(replace(cell, row=_own(cell.row, True), bases=_own(cell.row, False)))


def _over_base(cell: Cell, site: bool) -> Value:
    """KL over that of the base method, both with clips of one kind."""
    return kl_over_base(replace(cell, row=_own(cell.row, site), bases=_own(cell.bases, site)))


def _other_clip(runs: pd.DataFrame) -> str:
    others = ", ".join(dict.fromkeys(_own(runs, False)[CLIP].map(as_text)))
    return f'Activations are rounded with clip {others}, and with one clip a site (columns "site").' if others else ""


CLIPS = Declaration(
    experiment="table_clips",
    task="perplexity",
    metric="kl",
    several=[CLIP],
    columns=(
        METHOD,
        Each(
            ("text", "weights"),
            (
                Column("KL", _with_clips("kl", site=False), "{:.4f}"),
                Column("KL site", _with_clips("kl", site=True), "{:.4f}"),
                Column("site / without", _gain, "{:.3f}"),
            ),
        ),
    ),
    title="One activation clip a site, {models}, {bits}",
    note="KL in nats per token; ratios of a method to itself, with 95% paired bootstrap over windows.",
    remark=_other_clip,
)
SECONDS, MEMORY = "quantize/seconds", "quantize/peak_memory_bytes"


def _of_plain(name: str, unit: float) -> Callable[[Cell], Value]:
    """The value function of a number of the run without clips: they change none but quality."""

    def shown(cell: Cell) -> Value:
        number = value(cell.newest(_own(cell.row, False)), name)
        return number / unit if isinstance(number, float) else number

    return shown


MAIN = Declaration(
    experiment="table_main",
    task="perplexity",
    metric="kl",
    several=[CLIP],
    base=OURS,
    columns=(
        METHOD,
        Each(
            ("text", "weights"),
            (
                Column("ppl", _with_clips("ppl", site=False), "{:.2f}"),
                Column("KL", _with_clips("kl", site=False), "{:.4f}"),
                Column("KL / {base}", partial(_over_base, site=False), "{:.3f}"),
                Column("ppl site", _with_clips("ppl", site=True), "{:.2f}"),
                Column("KL site", _with_clips("kl", site=True), "{:.4f}"),
                Column("KL site / {base}", partial(_over_base, site=True), "{:.3f}"),
                Column("M MAC/token", _of_plain("transform/multiply_adds", 1e6), "{:.1f}"),
                Column("seconds", _of_plain(SECONDS, 1.0), "{:.0f}"),
                *(Column(part, _of_plain(f"quantize/{part}_seconds", 1.0), "{:.0f}")
                  for part in ("capture", "transform", "weights")),
                Column("MB", _of_plain("model/bytes", 1e6), "{:.1f}"),
            ),
        ),
    ),
    title="Methods on a real model, {models}, {bits}",
    note="KL in nats per token; ratios to {base} with the same clips, with 95% paired bootstrap over windows. "
    "MAC/token, seconds and bytes are those of the runs without clips, which are free at run time; 1 MB = 10^6 bytes.",
    remark=_other_clip,
)  # fmt: skip
# One over the number of choices; lambada wants a word of the whole vocabulary.
CHANCE = {
    **dict.fromkeys(("next_line", "docstring", "hellaswag", "arc_easy", "arc_challenge"), 1 / 4),
    **dict.fromkeys(("piqa", "winogrande", "boolq"), 1 / 2),
    **dict.fromkeys(("lambada_openai", "lambada_standard"), 0.0),
}


def _chance(texts: Sequence[str]) -> dict[str, Value]:
    """Chance of each task; their mean where all of them are known."""
    chance: dict[str, float | None] = {task: CHANCE.get(task) for task in texts if task != "mean"}
    known = [share for share in chance.values() if share is not None]
    mean = sum(known) / len(known) if len(known) == len(chance) > 0 else None
    return {"method": "chance", "weights": "-", **chance, "mean": mean}


def _standard_error(runs: pd.DataFrame) -> str:
    errors = runs[[name for name in runs if str(name).startswith("acc_stderr/")]]
    return f"Standard error of a task: up to {errors.max().max():.1%}." if errors.size else ""


ZEROSHOT = Declaration(
    experiment="table_zeroshot",
    task="zeroshot",
    metric="acc",
    full_precision=True,
    split="weights",
    columns=(
        METHOD,
        Column("weights", lambda cell: cell.row["weights"].iloc[0].replace("none", "-")),
        Each(["text"], [Column("", measured("acc"), "{:.1%}")]),
    ),
    above=_chance,
    title="Zero-shot accuracy, {models}, {bits}",
    remark=_standard_error,
    published=["acc/mean"],
)


def _median(name: str, cell: Cell, unit: float = 1.0) -> Value:
    """The median of the finished runs; where there are none, whether they failed or are missing."""
    done = _finished(cell.row)
    if done.empty:
        there = set(cell.row["status"])
        return next((status for status in ("failed", "damaged") if status in there), "missing")
    return float(done[name].median()) / unit


def _ratio(name: str, cell: Cell) -> Value:
    own = _median(name, cell)
    return own / float(_finished(cell.bases)[name].median()) if isinstance(own, float) else own


def _finished(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["status"] == "finished"]


def _missing(runs: pd.DataFrame) -> str:
    undone = Counter(runs.loc[runs["status"] == "missing", "row"])
    return " ".join(f"{name}: {count} missing." for name, count in undone.items())


TIME = Declaration(
    experiment="table_time",
    task="none",
    metric="quantize",
    several=["seed"],
    base=OURS,
    sort=partial(_median, SECONDS),
    columns=(
        METHOD,
        Column("runs", lambda cell: len(_finished(cell.row)), "{:.0f}"),
        Column("seconds", partial(_median, SECONDS), "{:.2f}"),
        Column("ratio", partial(_ratio, SECONDS), "{:.2f}"),
        *(Column(f"{part} s", partial(_median, f"quantize/{part}_seconds"), "{:.2f}")
          for part in ("capture", "transform", "weights")),
        Column("peak MB", partial(_median, MEMORY, unit=1e6), "{:.0f}"),
        Column("memory ratio", partial(_ratio, MEMORY), "{:.2f}"),
    ),
    title="Quantization time and peak memory, {models}",
    note="Medians over seeds; ratios to {base}; 1 MB = 10^6 bytes.",
    remark=_missing,
    published=("quantize/minutes", "quantize/gpu_hours"),
)  # fmt: skip


def _run(cell: Cell) -> pd.Series:
    """A run of the recipe, finished where one is."""
    done = _finished(cell.row)
    return (cell.row if done.empty else done).iloc[0]


def _part(shown: Callable[[pd.Series], str]) -> Callable[[Cell], str]:
    """A part of the recipe; "-" for a method that is no recipe of SingleQuant."""
    return lambda cell: shown(_run(cell)) if isinstance(_run(cell).get("method.order"), list) else "-"


def _order(run: pd.Series) -> str:
    sweeps = f" x{run['method.urt_sweeps']:.0f}" if run["method.urt_sweeps"] > 1 else ""
    stages = {"art": f"ART {run['method.art_steps']:.0f}", "urt": f"URT {run['method.urt_target']}{sweeps}"}
    return ", ".join(stages.get(stage, str(stage)) for stage in run["method.order"])


def _balance(run: pd.Series) -> str:
    parts = ["diagonal"] if run["method.balance"] else []
    parts += [f"rank {run['method.rank']:.0f}"] if run["method.rank"] else []
    parts += [run["method.mixing"]] if run["method.mixing"] != "none" else []
    return " + ".join(parts) or "none"


def _placement(run: pd.Series) -> str:
    return f"{run['method.placement']}{'' if run['method.kronecker'] else ', full width'}"


ABLATION = Declaration(
    experiment="table_ablation",
    task="perplexity",
    metric="kl",
    base="hadamard",
    columns=(
        Column("recipe", lambda cell: cell.name),
        Column("order", _part(_order)),
        Column("balance", _part(_balance)),
        Column("placement", _part(_placement)),
        Column("online MAC/token", lambda cell: value(_run(cell), "transform/multiply_adds"), "{:,.0f}"),
        Each(
            ["text", "weights"],
            [Column("KL", measured("kl"), "{:.4f}"), Column("/ {base}", kl_over_base, "{:.3f}")],
        ),
    ),
    title="Recipes, {models}, {bits}",
    note="KL in nats per token; ratios to {base} with 95% paired bootstrap over windows.",
)
