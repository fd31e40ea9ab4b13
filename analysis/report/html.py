"""Pages that need nothing else: tables, pictures, style and script inside, nothing from anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markdown_it import MarkdownIt
from markupsafe import Markup

from sq.analysis.report.overview import Overview
from sq.analysis.tables.table import Table, show
from sq.evaluate.bootstrap import Interval

LOOK = Path(__file__).parent / "look"
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
TEMPLATES = Environment(loader=FileSystemLoader(LOOK), autoescape=True, trim_blocks=True)
TABLES: Any = TEMPLATES.get_template("tables.html").module  # its macros
# Colours of the figures' style -> variables of page.css, so that pictures follow a page that is light or dark.
THEME = {
    "#ffffff": "paper", "#000000": "ink", "#222222": "ink", "#333333": "ink", "#555555": "muted", "#777777": "muted",
    **dict.fromkeys(("#999999", "#aaaaaa", "#bbbbbb", "#cccccc", "#dddddd"), "rule"),
    "#0072b2": "blue", "#d55e00": "red", "#009e73": "green", "#cc79a7": "purple", "#e69f00": "orange",
    "#56b4e9": "sky",
}  # fmt: skip


def page_html(title: str, body: str) -> str:
    """A complete document around a body."""
    css, js = (Markup((LOOK / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    return TEMPLATES.get_template("page.html").render(title=title, body=Markup(body), css=css, js=js)


def overview_html(view: Overview) -> str:
    """The table of all runs, with its filter, and what has no result folded below it."""
    count = sum(len(group.rows) for group in view.groups)
    beside = ""
    if view.beside:
        table = _plain(["status", "run", "reason"], [[(text, None) for text in row] for row in view.beside], {})
        beside = folded(f"{len(view.beside)} without a result", table)
    return f"{TABLES.all_runs(view, count) if count else '<p>No run is finished.</p>'}{beside}"


def table_html(table: Table) -> str:
    """A table that can be sorted, with its title and note; folded below it are rows without any run, and what others
    published."""
    heads = [str(head) for head in table.frame]
    shapes = [table.formats.get(head) for head in heads]
    rows, missing = [], []
    for row in table.frame.itertuples(index=False, name=None):
        cells = [(show(cell, shape or "{}"), _key(cell)) for cell, shape in zip(row, shapes, strict=True)]
        measured = {text for (text, _), shape in zip(cells, shapes, strict=True) if shape is not None}
        if "missing" in measured and measured <= {"missing", "", "0"}:
            missing.append(" ".join(text for text, _ in cells[: 2 if heads[0] == "model" else 1]))
        else:
            rows.append(cells)
    body = _plain(heads, rows, table.formats)
    if missing:
        body += folded(f"{len(missing)} rows without a run", f"<p>{escape(', '.join(missing))}</p>")
    published = folded(table.published.title, table_html(table.published)) if table.published else ""
    return f"<p><strong>{escape(table.title)}</strong></p>{body}<p>{escape(table.note)}</p>{published}"


def markdown_html(text: str) -> str:
    """Markdown with tables as HTML; HTML inside the text is shown and not obeyed."""
    tables = str(MARKDOWN.render(text)).replace("<table>", '<div class="scroll"><table>')
    return tables.replace("</table>", "</table></div>")


def picture(svg: str, name: str) -> str:
    """An SVG inside the page: it follows light and dark, and its marks tell their numbers. `name` is unlike others'."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{re.sub(r'[^A-Za-z0-9]', '-', name)}-", svg)
    svg = re.sub("|".join(THEME), lambda found: f"var(--{THEME[found[0].lower()]})", svg, flags=re.IGNORECASE)
    points = float(re.search(r'width="([\d.]+)pt"', svg)[1])  # type: ignore[index]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 role="img"', svg, count=1)
    kind = "wide" if points > 300 else "narrow"
    return f'<figure class="{kind}" aria-label="{escape(name)}">{svg}</figure>'


def folded(title: str, body: str) -> str:
    """A part of a page that opens at a click."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def code(text: str) -> str:
    """Text in fixed width, as it is."""
    return f"<pre>{escape(text)}</pre>"


def _plain(heads: Sequence[str], rows: Sequence[Sequence[tuple[str, Any]]], numbers: Mapping[str, Any]) -> str:
    table = {
        "heads": [{"name": head, "number": head in numbers} for head in heads],
        "rows": [
            [
                {"text": text, "key": key, "head": head, "number": head in numbers}
                for (text, key), head in zip(row, heads, strict=True)
            ]
            for row in rows
        ],
    }
    return str(TABLES.plain(table))


def _key(cell: Any) -> float | None:
    """What a cell is sorted by; None for a text, which is sorted by itself."""
    if isinstance(cell, Interval):
        return cell.mean
    return float(cell) if isinstance(cell, int | float) and cell == cell else None
