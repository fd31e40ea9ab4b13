"""A plain install carries everything below `sq`, scatters nothing beside it, and works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CARRIED = (
    ".py", ".yaml", ".json", ".jsonl", ".safetensors", ".md", ".csv", ".ipynb", ".mplstyle", ".html", ".css", ".js",
)  # fmt: skip
IMPORTS = """
import importlib, pathlib, sys
import sq
for name in ("sq.kernels", "sq.baselines", "sq.analysis", "sq.conf", "sq.embedded", "sq.config", "sq.runs"):
    importlib.import_module(name)
from sq.config.parse import CONF, options
assert (CONF / "config.yaml").is_file(), CONF
assert len(options("model")) > 20, options("model")
print(pathlib.Path(sq.__file__).resolve().parent)
"""


def files_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def source_files() -> set[str]:
    """What lies below sq/, links followed, that a wheel must carry."""
    found = set()
    for folder, folders, files in os.walk(ROOT / "sq", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {(Path(folder) / name).relative_to(ROOT).as_posix() for name in files if name.endswith(CARRIED)}
    return found


def test_everything_below_sq_is_in_the_wheel(wheel: Path) -> None:
    missing = source_files() - files_in(wheel)
    assert not missing
    assert any(name.startswith("sq/conf/model/") for name in files_in(wheel))


def test_the_wheel_has_one_top_level_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in files_in(wheel)}
    assert tops == {"sq", next(top for top in tops if top.endswith(".dist-info"))}


def test_a_wheel_made_from_the_sdist_is_the_same(wheel: Path, wheel_from_sdist: Path) -> None:
    assert files_in(wheel_from_sdist) == files_in(wheel)


def run_python(code: str, *, cwd: Path, path: list[Path]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("where", ["elsewhere", "repository"])
def test_the_plain_install_works_from_any_folder(where: str, installed: Path, tmp_path: Path) -> None:
    """In the repository's root the checkout itself comes first: Python puts the current folder before site-packages."""
    cwd = tmp_path if where == "elsewhere" else ROOT
    expected = installed / "sq" if where == "elsewhere" else ROOT / "sq"
    assert run_python(IMPORTS, cwd=cwd, path=[installed]) == str(expected.resolve())


def test_the_checkout_works_from_any_folder(tmp_path: Path) -> None:
    """What an editable install points at is the checkout, links and all."""
    assert run_python(IMPORTS, cwd=tmp_path, path=[ROOT]) == str((ROOT / "sq").resolve())


def test_the_installed_package_composes_its_own_configs(installed: Path, tmp_path: Path) -> None:
    code = "from sq.config.compose import compose; print(compose(['method=rtn', 'bits=w4a8']).bits.label)"
    assert run_python(code, cwd=tmp_path, path=[installed]) == "W4A8KV16"


def test_the_version_is_written_once() -> None:
    import sq

    assert f'version = "{sq.__version__}"' in (ROOT / "pyproject.toml").read_text()
