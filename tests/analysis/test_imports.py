"""Analysis reads files: it imports no model, nothing that quantizes, no torch and no command line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sq.quantize import training_log
from sq.runs import results

ANALYSIS = Path(__file__).resolve().parents[2] / "analysis"
FILES = sorted(path.relative_to(ANALYSIS).as_posix() for path in ANALYSIS.rglob("*.py"))
ALLOWED = ("sq.analysis", "sq.config", "sq.errors", "sq.evaluate.bootstrap", "sq.formats", "sq.io", "sq.runs")
IMPORTS = """
import pkgutil, sys
import sq.analysis
for found in pkgutil.walk_packages(sq.analysis.__path__, "sq.analysis."):
    if not found.name.endswith("__main__"):
        __import__(found.name)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_rooms_that_analysis_may_use(name: str) -> None:
    tree = ast.parse((ANALYSIS / name).read_text(encoding="utf-8"))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [module for module in imported if module.split(".")[0] in ("sq", "torch", "transformers")]
    assert not [module for module in ours if not any(f"{module}.".startswith(f"{room}.") for room in ALLOWED)]


@pytest.mark.slow
def test_importing_all_of_analysis_loads_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_training_is_read_from_the_file_that_it_is_written_to() -> None:
    assert results.TRAINING == training_log.TRAINING
