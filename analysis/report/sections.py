"""Executed notebooks as parts of the report's page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from sq.analysis.report.html import code, folded, markdown_html, picture
from sq.analysis.report.notebooks import Executed
from sq.analysis.report.page import ABSENT, MISSING

ANSI = re.compile(r"\x1b\[[0-9;]*m")  # colours of a traceback


def section(one: Executed) -> str:
    """A notebook with its text, tables and pictures; parts that show nothing are left out, and so is an empty whole."""
    parts, told = [], ""
    title, *rest = [cell for cell in one.cells if cell.cell_type in ("markdown", "code")] or [None]
    if title is not None and title.cell_type == "code":
        title, rest = None, [title, *rest]
    for number, cell in enumerate(rest):
        if cell.cell_type == "markdown":
            told += _text(cell)
        else:
            name = f"{one.name}-{number}"
            shown = "".join(_output(output, f"{name}-{place}") for place, output in enumerate(cell.outputs))
            if shown:
                parts.append(told + shown + f'<div class="code">{folded("code", code(cell.source))}</div>')
            if shown or cell.outputs:  # the heading of what is absent goes with it
                told = ""
    if one.error:
        text = f"<p>The notebook {escape(one.name)} failed.</p>{code(ANSI.sub('', one.error))}"
        parts.append(f'<div class="error">{text}</div>')
    head = _text(title) if title is not None else ""
    return f'<section id="{escape(one.name)}">{head}{"".join(parts)}</section>' if parts else ""


def absent(notebooks: Sequence[Executed]) -> list[str]:
    """What is not there and was not asked for, as the cells told it, in Markdown."""
    outputs = [output for one in notebooks for cell in one.cells for output in cell.get("outputs", ())]
    return [output.data["text/markdown"] for output in outputs if output.get("metadata", {}).get(ABSENT)]


def _text(cell: Any) -> str:
    """A cell of Markdown; a notebook's title is that of a section."""
    return markdown_html(re.sub(r"^#", "##", cell.source, flags=re.MULTILINE))


def _output(output: Any, name: str) -> str:
    if output.output_type == "error" or output.get("metadata", {}).get(ABSENT):
        return ""  # an error stands once, below the notebook; what is absent is folded away at the end of the page
    if output.output_type == "stream":
        text = code(ANSI.sub("", output.text))
        return folded("warnings", text) if output.name == "stderr" else text
    data = output.data
    if "image/svg+xml" in data:
        return picture(data["image/svg+xml"], name)
    if "text/html" in data:
        return str(data["text/html"])
    if "text/markdown" in data:
        text = markdown_html(data["text/markdown"])
        if command := output.metadata.get(MISSING):  # what is missing of something that is shown
            return (
                f'<div class="missing">{folded(data["text/markdown"].partition(". Make them")[0], code(command))}</div>'
            )
        return f'<div class="missing">{text}</div>' if MISSING in output.metadata else text
    return code(data.get("text/plain", ""))
