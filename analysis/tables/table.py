"""One table: laid out from rows and columns, and printed as Markdown, LaTeX or CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd

from sq.evaluate.bootstrap import Interval
from sq.io import write_text

LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
}  # fmt: skip
SUFFIXES = {"markdown": "md", "latex": "tex", "csv": "csv"}
Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column.

    Attributes:
        head: its name.
        value: the cell of a row: a number, an `Interval`, a text, or None for a blank.
        format: of numbers, such as "{:.4f}"; None for a column of texts, which is aligned to the left.
    """

    head: str
    value: Callable[[Row], Any]
    format: str | None = None


def lay_out(rows: Sequence[Row], columns: Sequence[Column[Row]], title: str, note: str) -> Table:
    """The table with a line for each row; without rows, its heads alone."""
    cells = [[column.value(row) for column in columns] for row in rows]
    frame = pd.DataFrame(cells, columns=[column.head for column in columns], dtype=object)
    return Table(frame, title, note, {column.head: column.format for column in columns if column.format is not None})


@dataclass(frozen=True)
class Table:
    """Cells as measured, and how they are shown.

    Attributes:
        frame: one row a line. A cell is a number, an `Interval`, a text ("failed", "missing"), or None for a blank.
        title: one line.
        note: what holds for all rows, and what is not there.
        formats: column -> format such as "{:.4f}", for the columns of numbers; the others are texts.
        published: results of others, shown below as a block of its own.
    """

    frame: pd.DataFrame
    title: str
    note: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)
    published: Table | None = None

    def markdown(self) -> str:
        """GitHub's Markdown; numbers are aligned to the right."""
        heads = [str(column) for column in self.frame]
        lines = ["| " + " | ".join(heads) + " |"]
        lines.append("|" + "".join("---:|" if head in self.formats else "---|" for head in heads))
        lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in self._shown()]
        blocks = [f"**{self.title}**", "\n".join(lines), self.note]
        blocks += [self.published.markdown()] if self.published else []
        return "\n\n".join(block for block in blocks if block) + "\n"

    def latex(self) -> str:
        """A `table` environment with booktabs rules (package booktabs); others' results follow as a second one."""
        columns = "".join("r" if str(column) in self.formats else "l" for column in self.frame)
        rows = [[_escape(cell) for cell in row] for row in self._shown()]
        heads, *body = [" & ".join(row) + " \\\\" for row in ([_escape(str(head)) for head in self.frame], *rows)]
        lines = [r"\begin{table}[t]", r"\centering", rf"\caption{{{_escape(f'{self.title}. {self.note}'.strip())}}}"]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", heads, r"\midrule", *body, r"\bottomrule"]
        lines += [r"\end{tabular}", r"\end{table}"]
        return "\n".join(lines) + "\n" + (f"\n{self.published.latex()}" if self.published else "")

    def csv(self) -> str:
        """Full precision; an interval takes three columns. Others' results are apart: `published.csv()`."""
        columns: dict[str, list[Any]] = {}
        for name in map(str, self.frame):
            cells = list(self.frame[name])
            columns[name] = [cell.mean if isinstance(cell, Interval) else _no_formula(cell) for cell in cells]
            if any(isinstance(cell, Interval) for cell in cells):
                for end in ("low", "high"):
                    columns[f"{name} {end}"] = [getattr(cell, end, None) for cell in cells]
        return pd.DataFrame(columns, dtype=object).to_csv(index=False, lineterminator="\n")

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write `<name>.md`, `.tex` and `.csv` (and `<name>_published.csv`) into a folder; return the files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {folder / f"{name}.{suffix}": self.text(form) for form, suffix in SUFFIXES.items()}
        if self.published:
            texts[folder / f"{name}_published.csv"] = self.published.csv()
        for path, text in texts.items():
            write_text(path, text)
        return list(texts)

    def text(self, form: str) -> str:
        """The table in one of the forms "markdown", "latex" and "csv"."""
        return {"markdown": self.markdown, "latex": self.latex, "csv": self.csv}[form]()

    def _shown(self) -> list[list[str]]:
        shapes = [self.formats.get(str(column), "{}") for column in self.frame]
        rows = self.frame.itertuples(index=False, name=None)
        return [[show(cell, shape) for cell, shape in zip(row, shapes, strict=True)] for row in rows]


def show(cell: Any, shape: str) -> str:
    """A cell as it is printed; a blank where there is nothing."""
    if isinstance(cell, Interval):
        low, high = (shape.format(value) for value in (cell.low, cell.high))
        return f"{shape.format(cell.mean)} ({low}-{high})"
    if isinstance(cell, str):
        return cell
    return "" if pd.isna(cell) else shape.format(cell)


def _no_formula(cell: Any) -> Any:
    """A text that a spreadsheet would compute (it begins with = + - @) with an apostrophe in front, which shows it."""
    computed = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) and len(cell) > 1
    return f"'{cell}" if computed else cell


def _escape(text: str) -> str:
    return re.sub(r"[&%$#_{}~^\\]", lambda found: LATEX[found.group()], text)
