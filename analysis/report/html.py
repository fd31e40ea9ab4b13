"""Executed notebooks as one HTML page that needs nothing else: pictures inside, no fonts, no scripts from anywhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt

from sq.analysis.report.notebooks import Executed
from sq.analysis.report.page import MISSING

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; border-top: 1px solid #ccc; padding-top: 1.2rem; }
nav a { margin-right: 1rem; } a { color: #0072b2; }
img { display: block; max-width: 100%; margin: .8rem 0; }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0; display: block; overflow-x: auto; }
th, td { padding: .15rem .7rem; text-align: left; white-space: nowrap; }
thead th { border-bottom: 1px solid #222; border-top: 2px solid #222; }
tbody tr:last-child td { border-bottom: 2px solid #222; }
pre { background: #f5f5f5; padding: .5rem .8rem; overflow-x: auto; font-size: 13px; }
details { margin: .4rem 0; color: #666; font-size: 13px; }
.missing { border-left: 4px solid #e69f00; padding: .1rem .9rem; background: #fdf6e7; }
.error { border-left: 4px solid #d55e00; padding: .1rem .9rem; background: #fdeee7; }
.facts { color: #666; font-size: 13px; }
"""
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
ANSI = re.compile(r"\x1b\[[0-9;]*m")  # colours of a traceback


def report_html(title: str, facts: Mapping[str, str], notebooks: Sequence[Executed]) -> str:
    """The whole report: what it was made from, then each notebook with text, pictures and tables."""
    links = "".join(f'<a href="#{escape(one.name)}">{escape(one.name)}</a>' for one in notebooks)
    items = "".join(f"<li>{escape(key)}: {escape(value)}</li>" for key, value in facts.items())
    body = [f"<h1>{escape(title)}</h1>", f'<ul class="facts">{items}</ul>', f"<nav>{links}</nav>"]
    for one in notebooks:
        body.append(f'<section id="{escape(one.name)}">')
        body += [_cell(cell) for cell in one.cells]
        if one.error:
            body.append(f'<div class="error"><p>This notebook failed.</p>{_pre(one.error)}</div>')
        body.append("</section>")
    return page_html(title, "\n".join(body))


def page_html(title: str, body: str) -> str:
    """A complete document around a body."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>\n{body}\n</body></html>\n"
    )


def markdown_html(text: str) -> str:
    """Markdown with tables as HTML; HTML inside the text is shown and not obeyed."""
    return str(MARKDOWN.render(text))


def picture(svg: str, name: str) -> str:
    """An SVG as an image of its own, so that identifiers of two pictures never meet."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(name)}" src="data:image/svg+xml;base64,{data}">'


def _cell(cell: Any) -> str:
    if cell.cell_type == "markdown":
        # A notebook's own title is a section of the report.
        return markdown_html(re.sub(r"^#", "##", cell.source, flags=re.MULTILINE))
    if cell.cell_type != "code":
        return ""
    shown = "".join(_output(output) for output in cell.outputs)
    return f"{shown}<details><summary>code</summary>{_pre(cell.source)}</details>"


def _output(output: Any) -> str:
    if output.output_type == "error":
        return ""  # stands once, below the notebook
    if output.output_type == "stream":
        return _pre(output.text)
    data, missing = output.data, output.metadata.get(MISSING)
    if "image/svg+xml" in data:
        return picture(data["image/svg+xml"], data.get("text/plain", ""))
    if "text/markdown" in data:
        text = markdown_html(data["text/markdown"])
        return f'<div class="missing">{text}</div>' if missing else text
    return _pre(data.get("text/plain", ""))


def _pre(text: str) -> str:
    return f"<pre>{escape(ANSI.sub('', text))}</pre>"
