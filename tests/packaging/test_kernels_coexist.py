"""PyPI's own `kernels` package and this repository's folder of that name can live on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
REGULAR = """
__version__ = "0.14.0"
ORIGIN = "PyPI"
def __getattr__(name):  # transformers takes a few classes from here
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__init__": lambda self, *args, **kwargs: None})
"""
CHECK = """
import importlib.util, sys
import sq.kernels
assert "sq" in sq.kernels.__name__
import kernels
print(getattr(kernels, "ORIGIN", None), kernels.__file__ is not None)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages folder with a regular package `kernels` and its metadata."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(REGULAR)
    metadata = tmp_path / "kernels-0.14.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.14.0\n")
    return tmp_path


def run_python(code: str, *, cwd: Path, site: Path | None) -> str:
    """Run code with the repository's root first on sys.path (the current folder) and `site` behind it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *([str(site)] if site else [])])}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_installed_one_wins_even_in_the_repository(site: Path) -> None:
    """A folder without __init__.py is a namespace package, which comes after every regular one on sys.path."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert run_python(CHECK, cwd=ROOT, site=site) == "PyPI True"


def test_ours_is_reached_through_sq_where_the_other_is_missing() -> None:
    assert run_python(CHECK, cwd=ROOT, site=None) == "None False"


@pytest.mark.parametrize("installed", [True, False], ids=["with PyPI's kernels", "without"])
def test_transformers_takes_the_right_one(installed: bool, site: Path) -> None:
    code = (
        "from transformers.utils.import_utils import _is_package_available as found; "
        "import transformers.integrations.hub_kernels, sq.kernels; "
        "print(found('kernels', return_version=True))"
    )
    expected = "(True, '0.14.0')" if installed else "(False, 'N/A')"
    assert run_python(code, cwd=ROOT, site=site if installed else None) == expected
