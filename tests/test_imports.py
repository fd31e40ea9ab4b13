"""Imports go one way: the table in docs/house.md is what every file keeps to."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPEN = {"errors", "io", "digest", "finite"}  # to every room but kernels
SINGLE = {"api", "io", "digest", "errors", "finite", "progress", "__init__"}  # modules of sq/ that are no rooms


def allowed() -> dict[str, set[str]]:
    """The second table of docs/house.md: room -> rooms that it may import."""
    lines = (ROOT / "docs" / "house.md").read_text(encoding="utf-8").split("## Arrows")[1].splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("| `")]
    return {re.findall(r"`(\w+)`", room)[0]: set(re.findall(r"`(\w+)`", rest)) for room, rest in rows}


def sources() -> Iterator[tuple[str, Path]]:
    """Module name and file of everything in sq/ and the folders that it links to."""
    for top in ("sq", "kernels", "baselines", "analysis"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                parts = path.relative_to(ROOT).with_suffix("").parts
                yield ".".join(parts if top == "sq" else ("sq", *parts)), path


def imported(path: Path) -> Iterator[str]:
    """Modules of the project that a file imports anywhere, but for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"sq.{alias.name}" for alias in node.names] if node.module == "sq" else [node.module]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "sq")


def room(module: str) -> str:
    """ "quantize" of sq.quantize.pipeline; a package that is run as a command belongs to "cli"."""
    parts = module.split(".")
    return "cli" if parts[-1] == "__main__" and parts[1] != "kernels" else parts[1] if len(parts) > 1 else "sq"


def arrows() -> dict[tuple[str, str], str]:
    """(room, room) -> an example; the package's own __init__ offers the API and imports it when asked."""
    found = {}
    for module, path in sources():
        for other in imported(path):
            here, there = room(module), room(other)
            if module != "sq.__init__" and there != "sq" and here != there:
                found[here, there] = f"{path.relative_to(ROOT)} imports {other}"
    return found


def test_every_arrow_is_in_the_table() -> None:
    table = allowed()
    wrong = [
        example
        for (here, there), example in arrows().items()
        if here not in SINGLE - {"api"} and there not in table.get(here, set()) | (OPEN if here != "kernels" else set())
    ]
    assert not wrong, "\n".join(wrong)


def test_the_table_has_no_circle() -> None:
    table = allowed()

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in table.get(waiting.pop(), set()) - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    assert [name for name in table if name in reached(name)] == []


def test_the_table_allows_nothing_that_nobody_uses() -> None:
    used = arrows()
    idle = [f"{here} -> {there}" for here, rooms in allowed().items() for there in rooms if (here, there) not in used]
    assert not idle, f"docs/house.md allows what no file does: {idle}"


def test_sq_has_no_loose_module() -> None:
    assert {path.stem for path in (ROOT / "sq").glob("*.py")} <= SINGLE
    rooms = {path.name for path in (ROOT / "sq").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(allowed()) | {"conf"}


@pytest.mark.parametrize("module", ["sq", "sq.config.compose", "sq.formats.labels", "sq.io", "sq.analysis"])
def test_what_a_command_line_reads_first_does_not_load_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_kernels_import_nothing_of_the_project() -> None:
    outside = {name for module, path in sources() if room(module) == "kernels" for name in imported(path)}
    assert {name for name in outside if not name.startswith("sq.kernels")} == set()
