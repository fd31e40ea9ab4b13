"""One page about one run: settings, quality, outliers before and after, error of each layer, time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from sq.analysis.figures import save
from sq.analysis.figures.one_run import figure_run_layers, figure_run_sites, figure_run_time
from sq.analysis.report.html import markdown_html, page_html, picture
from sq.errors import DataError
from sq.io import write_text
from sq.runs.results import RESULT, Result, examine

GROUPS = ("model", "method", "calibration", "activations", "kv_cache", "task")
NAMED = {
    "ppl": ("perplexity", "{:.3f}"), "kl": ("KL from full precision (nats/token)", "{:.4f}"),
    "top1": ("top-1 agreement", "{:.1%}"), "acc": ("accuracy", "{:.1%}"),
}  # fmt: skip


def write_run_report(folder: Path, out: Path, console: Console) -> list[Path]:
    """Print the page and write <out>/runs/<run id>/: summary.md, summary.html, pictures; return the files.

    Raises:
        DataError: the folder is no run directory.
    """
    result, wrong = examine(folder)
    if result is None:
        reason = f" ({wrong})" if wrong else ""
        raise DataError(
            f"{folder} has no {RESULT} that can be read{reason}; give the directory of a run, such as runs/<run id>, "
            "or make one with `python run.py`"
        )
    text = summary(result)
    console.print(Markdown(text))
    place = out / "runs" / result.run_id
    place.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(result)
    files = [path for name, figure in pictures.items() for path in save(figure, place, name)]
    shown = "\n".join(picture((place / f"{name}.svg").read_text(encoding="utf-8"), name) for name in pictures)
    links = "\n\n".join(f"![{name}]({name}.svg)" for name in pictures)
    write_text(place / "summary.md", f"{text}\n{links}\n" if links else text)
    write_text(place / "summary.html", page_html(result.run_id, markdown_html(text) + shown))
    return [place / "summary.md", place / "summary.html", *files]


def summary(result: Result) -> str:
    """The page as Markdown; parts that the run did not measure are left out."""
    made = f"{result.created}, commit {(result.git_commit or 'unknown')[:10]}, {result.seconds:.0f} s in all"
    parts = [f"# {result.run_id}", f"{result.status}, {made}", f"    {result.command}"]
    if result.error is not None:
        parts.append(f"**It failed:** {result.error}")
    heads = {name: getattr(result, name) for name in ("model", "method", "bits", "weights", "activations", "seed")}
    chosen = {group: _settings(result.config.get(group) or {}) for group in GROUPS}
    parts += ["## Settings", _table(["", "value"], heads.items()), _table(["group", "settings"], chosen.items())]
    if quality := _quality(result.metrics):
        parts += ["## Quality", _table(["measured", "value"], quality)]
    if sites := result.extras.get("sites"):
        parts += ["## Outliers: median peak over rms of a site's tokens, and online multiply-adds", _sites(sites)]
    if layers := result.extras.get("layers"):
        rows = [(layer["layer"], f"{layer['error']:.3%}") for layer in layers]
        parts += ["## Error of each layer's output, relative, squared", _table(["layer", "error"], rows)]
    if cost := _cost(result.metrics):
        parts += ["## Time, memory and size", _table(["part", "value"], cost)]
    return "\n\n".join(parts) + "\n"


def _pictures(result: Result) -> dict[str, Figure]:
    """Of what the run measured, by the name of the file."""
    metrics: Any = result.metrics if "quantize/seconds" in result.metrics else None
    sites, layers = result.extras.get("sites"), result.extras.get("layers")
    drawn = (
        ("sites", figure_run_sites, sites),
        ("layers", figure_run_layers, layers),
        ("time", figure_run_time, metrics),
    )
    return {name: draw(measured) for name, draw, measured in drawn if measured}


def _quality(metrics: Mapping[str, float | None]) -> list[tuple[str, str]]:
    rows = []
    for name, value in metrics.items():
        metric, _, text = name.partition("/")
        if metric in NAMED:
            title, shape = NAMED[metric]
            rows.append((f"{title}, {text}", "nan" if value is None else shape.format(value)))
    return rows


def _sites(sites: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for name in dict.fromkeys(site["site"] for site in sites):
        own = [site for site in sites if site["site"] == name]
        before, after = ([site[f"peak_over_rms_{when}"] for site in own] for when in ("before", "after"))
        worst = max(own, key=lambda site: site["peak_over_rms_after"])
        highest = f"{worst['peak_over_rms_after']:.2f} (layer {worst['layer']})"
        online = f"{sum(site['multiply_adds'] for site in own):,}"
        rows.append((name, f"{median(before):.2f}", f"{median(after):.2f}", highest, online))
    return _table(["site", "before", "after", "worst after", "multiply-adds a token"], rows)


def _cost(metrics: Mapping[str, float | None]) -> list[tuple[str, str]]:
    total = metrics.get("quantize/seconds")
    rows = []
    for part in ("capture", "transform", "weights"):
        seconds = metrics.get(f"quantize/{part}_seconds")
        if seconds is not None and total:
            rows.append((part, f"{seconds:.2f} s ({seconds / total:.0%})"))
    for name, title in (("quantize/peak_memory_bytes", "peak memory"), ("model/bytes", "model, packed")):
        if (size := metrics.get(name)) is not None:
            rows.append((title, f"{size / 1e6:,.1f} MB"))
    return rows


def _settings(group: Mapping[str, Any]) -> str:
    """One line; what is null or inside another group is left out."""
    plain = {key: value for key, value in group.items() if value is not None and not isinstance(value, dict)}
    return f"`{', '.join(f'{key}={value}' for key, value in plain.items())}`" if plain else "-"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    lines += [" | ".join(str(cell).replace("|", r"\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
