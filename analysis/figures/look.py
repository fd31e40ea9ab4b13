"""The look that all figures share: sizes, colours, the style file, and how a figure is written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from sq.io import write_bytes

STYLE = Path(__file__).with_name("paper.mplstyle")
SINGLE, DOUBLE = 3.3, 6.9  # inches: one column and both columns of a page
# Okabe and Ito's palette without its yellow, which is too light for lines.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#777777"
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"

TIP = "tip:"
KINDS: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None}}

styled = style.context(STYLE)  # decorates a function that draws: the caller's own settings neither count nor change


def blank(width: float, height: float) -> Figure:
    """An empty figure, inches; one that pyplot does not keep, so nothing has to be closed."""
    return Figure(figsize=(width, height), layout="constrained")


def note(
    axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], color: str = "#555555", **place: Any
) -> None:
    """Small text beside a point; offset in printer's points."""
    axes.annotate(text, point, offset, textcoords="offset points", color=color, fontsize=7, **place)


def decade_labels(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis at 1, 2 and 5 of a decade."""

    def label(value: float, _: object) -> str:
        return f"{value:g}" if round(float(f"{value:e}".split("e")[0]), 6) in (1, 2, 5) else ""

    axis.set_major_formatter(label)
    axis.set_minor_formatter(label)


def tip(artist: Artist, text: str) -> None:
    """Give an artist a text that an SVG shows in a browser when the pointer is on it (`save` writes it as <title>)."""
    artist.set_gid(f"{TIP}{text}")


def tips(axes: Axes, x: Iterable[float], y: Iterable[float], texts: Iterable[str]) -> None:
    """Invisible targets with a text each, on the points of a curve."""
    for number, (left, above, text) in enumerate(zip(x, y, texts, strict=True)):
        (target,) = axes.plot([left], [above], "o", ms=9, alpha=0, label=f"_tip {number}", clip_on=False)
        tip(target, text)


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write `name`.svg and .pdf (text stays text) and `name`.png (300 dots an inch at print size); return the paths.

    The same figure gives the same bytes: no date is written, and identifiers do not depend on chance.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, metadata in KINDS.items():
        drawn = BytesIO()
        with style.context(STYLE):
            figure.savefig(drawn, format=kind, metadata=metadata)
        content = drawn.getvalue()
        paths.append(place / f"{name}.{kind}")
        write_bytes(paths[-1], _titled(content.decode()).encode() if kind == "svg" else content)
    return paths


def _titled(svg: str) -> str:
    """The texts of `tip`, which matplotlib writes as identifiers, as titles of their groups."""
    return re.sub(f'<g id="{TIP}([^"]*)">', r'<g class="tip"><title>\1</title>', svg)
