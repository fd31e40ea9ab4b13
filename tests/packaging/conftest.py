"""Wheels of this repository, built once a session from a copy so that nothing is littered here."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
LEFT_OUT_ON_TOP = ("build", "dist", "runs", "wandb")  # sq/runs is a package


def build(source: Path, kind: str, out: Path) -> Path:
    """Call the build backend as `pip wheel --no-deps --no-build-isolation` does; `kind` is wheel, editable or sdist."""
    out.mkdir()
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "repository"

    def left_out(path: str, names: list[str]) -> set[str]:
        on_top = set(LEFT_OUT_ON_TOP).intersection(names) if Path(path) == ROOT else set()
        environments = {name for name in names if Path(path, name, "pyvenv.cfg").is_file()}  # of any name
        return LEFT_OUT(path, names) | on_top | environments

    shutil.copytree(ROOT, folder, symlinks=True, ignore=left_out)
    return folder


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, "wheel", tmp_path_factory.mktemp("wheel") / "out")


@pytest.fixture(scope="session")
def wheel_from_sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(source, "sdist", folder / "out")) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.glob("singlequant-*")
    return build(unpacked, "wheel", folder / "wheel")


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sys.path that holds the unpacked wheel, as a plain install would."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder
