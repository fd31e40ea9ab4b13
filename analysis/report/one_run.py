"""One page about one run: settings, quality, outliers before and after, error of each layer, time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from sq.analysis.figures import save
from sq.analysis.figures.one_run import figure_run_layers, figure_run_sites, figure_run_time
from sq.analysis.report.html import markdown_html, page_html, picture
from sq.analysis.results import cut_off
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
    if result is None and (end := cut_off(folder)) is not None:
        raise DataError(f"{folder} is a run that was interrupted {end}")
    if result is None:
        reason = f" ({wrong})" if wrong else ""
        raise DataError(
            f"{folder} has no {RESULT} that can be read{reason}; give the directory of a run, such as runs/<run id>, "
            "or make one with `python run.py`"
        )
    parts = summary(result)
    console.print(Markdown("\n\n".join(part.text for part in parts)))
    place = out / "runs" / result.run_id
    place.mkdir(parents=True, exist_ok=True)
    files, texts, body = [place / "summary.md", place / "summary.html"], [], []
    for part in parts:
        texts.append(part.text)
        body.append(markdown_html(part.text))
        if part.picture is not None:
            files += save(part.picture, place, part.name)
            texts.append(f"![{part.name}]({part.name}.svg)")
            body.append(picture((place / f"{part.name}.svg").read_text(encoding="utf-8"), part.name))
    write_text(files[0], "\n\n".join(texts) + "\n")
    write_text(files[1], page_html(result.run_id, "\n".join(body)))
    return files


@dataclass(frozen=True)
class Part:
    """A part of the page: Markdown, and the picture that belongs below it under a file's name."""

    text: str
    name: str = ""
    picture: Figure | None = None


def summary(result: Result) -> list[Part]:
    """The page's parts; those that the run did not measure are left out."""
    made = f"{result.created}, commit {(result.git_commit or 'unknown')[:10]}, {result.seconds:.0f} s in all"
    head = [f"# {result.run_id}", f"{result.status}, {made}", f"    {result.command}"]
    if result.error is not None:
        head.append(f"**It failed:** {result.error}")
    heads = {name: getattr(result, name) for name in ("model", "method", "bits", "weights", "activations", "seed")}
    chosen = {group: _settings(result.config.get(group) or {}) for group in GROUPS}
    head += ["## Settings", _table(["", "value"], heads.items()), _table(["group", "settings"], chosen.items())]
    parts = [Part("\n\n".join(head))]
    if quality := _quality(result.metrics):
        parts.append(Part("## Quality\n\n" + _table(["measured", "value"], quality)))
    if sites := result.extras.get("sites"):
        title = "## Outliers: median peak over rms of a site's tokens, and online multiply-adds"
        parts.append(Part(f"{title}\n\n{_sites(sites)}", "sites", figure_run_sites(sites)))
    if layers := result.extras.get("layers"):
        rows = [(layer["layer"], f"{layer['error']:.3%}") for layer in layers]
        title = "## Error of each layer's output, relative, squared"
        parts.append(Part(f"{title}\n\n{_table(['layer', 'error'], rows)}", "layers", figure_run_layers(layers)))
    if cost := _cost(result.metrics):
        timed = "quantize/seconds" in result.metrics
        text = "## Time, memory and size\n\n" + _table(["part", "value"], cost)
        parts.append(Part(text, "time", figure_run_time(result.metrics) if timed else None))
    return parts


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
