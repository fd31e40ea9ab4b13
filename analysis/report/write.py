"""The body of the report: all runs first, then the notebooks that have runs, and at the end what has none."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from sq.analysis.expected import command
from sq.analysis.figures import save
from sq.analysis.figures.all_runs import figure_all_runs
from sq.analysis.report.html import folded, markdown_html, overview_html, picture
from sq.analysis.report.notebooks import Executed, experiments_of
from sq.analysis.report.overview import overview
from sq.analysis.report.sections import absent, section

PICTURED = 4  # models whose quality and cost are drawn, those with the most runs
WORDS = (
    "Groups are runs of one model, quantizer and evaluation; inside, the lowest KL comes first. KL is the mean KL(full "
    "precision || quantized) in nats per token, and its ratio to singlequant of the same group has a 95% paired "
    "bootstrap interval over windows. 1 MB = 10^6 bytes."
)


def report_facts(runs: pd.DataFrame, results: Path, overrides: Sequence[str] | None) -> dict[str, str]:
    """What the report was made from."""
    count = runs["status"].value_counts()
    unread, cut, undone = (runs.attrs[name] for name in ("unreadable", "interrupted", "unfinished"))
    parts = [f"{number} {status}" for status, number in count.items()]
    parts += [f"{len(unread)} that cannot be read"] if unread else []
    parts += [f"{len(cut)} interrupted"] if cut else []
    parts += [f"{len(undone)} unfinished"] if undone else []
    return {
        "runs": f"{results}: {', '.join(parts)}",
        "newest run": str(runs["created"].max()),
        "commits": ", ".join(sorted({str(commit)[:10] for commit in runs["git_commit"].dropna()})) or "unknown",
        "overrides": "those of the commands that made the runs" if overrides is None else shlex.join(overrides),
    }


def report_body(
    runs: pd.DataFrame,
    out: Path,
    facts: Mapping[str, str],
    done: Sequence[Executed],
    others: Sequence[Path],
    overrides: Sequence[str] = (),
) -> str:
    """The page's body; figures of the models go to `out`/figures as well.

    Args:
        runs: of `sq.analysis.load`.
        out: the report's folder.
        facts: shown on top.
        done: notebooks that were executed.
        others: notebooks that were not, because they have no runs.
        overrides: of the commands that would make these.
    """
    sections = {one.name: text for one in done if (text := section(one))}
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in ("all", *sections))
    items = "".join(f"<li>{escape(key)}: {escape(value)}</li>" for key, value in facts.items())
    body = [f"<h1>SingleQuant: runs</h1><nav>{links}</nav>", f'<ul class="facts">{items}</ul>']
    body += [f'<h2 id="all">All runs</h2><p>{escape(WORDS)}</p>', overview_html(overview(runs))]
    body += _pictures(runs, out)
    body += sections.values()
    lacking = [*absent(done), *(f"{name}: no runs, or too few\n\n    {command(name, overrides)}\n" for path in others
                                for name in experiments_of(path))]  # fmt: skip
    if lacking:
        text = "".join(markdown_html(one) for one in dict.fromkeys(lacking))
        body.append(f"<h2>Not in this folder</h2>{folded(f'{len(lacking)} tables and figures without runs', text)}")
    return "\n".join(body)


def _pictures(runs: pd.DataFrame, out: Path) -> list[str]:
    """Quality against cost for the models with the most runs, where two or more can be compared."""
    shown: list[str] = []
    models = list(map(str, runs["model"].value_counts().index))
    for model in models[:PICTURED]:
        if (figure := figure_all_runs(runs[runs["model"] == model])) is not None:
            svg = save(figure, out / "figures", f"figure_all_runs_{model}")[0]
            shown.append(picture(svg.read_text(encoding="utf-8"), f"all-runs-{len(shown)}"))
    if left := models[PICTURED:]:
        shown.append(f"<p>Not drawn, since others have more runs: {escape(', '.join(left))}.</p>")
    return shown
