"""Python source text that every interpreter carries: the standard library, split into train and held-out modules."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

INSTALLED = frozenset({"site-packages", "dist-packages"})  # tens of thousands of files that need not be walked
# Left out besides: test suites, two applications, and tables that are not prose (encodings).
EXCLUDED_FOLDERS = frozenset({"test", "tests", "idlelib", "lib2to3", "encodings", "__pycache__"})
HELD_OUT_SHARE = 16  # one module in sixteen is held out


def stdlib_modules(root: Path | None = None) -> dict[str, Path]:
    """Dotted module name -> source file of the standard library (that below `root`, if given), sorted by name.

    FileNotFoundError is raised for an interpreter without source files (stripped or zipped).
    """
    found: dict[str, Path] = {}
    for path, parts in _sources(root):
        # config-3.x-* holds build settings of one machine.
        if EXCLUDED_FOLDERS.intersection(parts) or parts[0].startswith("config-") or path.name.startswith("_sysconfig"):
            continue
        found[".".join(parts).removesuffix(".py")] = path
    if not found:
        raise FileNotFoundError(
            f"no Python source under {_base(root)}: this interpreter ships without its standard library's source. "
            "Use a full CPython build, or a text of your own: calibration.text=mytext calibration.path=<file> and "
            "task.perplexity.texts=[mytext] task.perplexity.path=<file>"
        )
    return dict(sorted(found.items()))


def is_held_out(module: str) -> bool:
    """Whether a module belongs to the held-out split: sha256(name) mod 16 == 0, the same on every machine."""
    return int(hashlib.sha256(module.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0


def stdlib_text(split: str, root: Path | None = None) -> list[tuple[str, str]]:
    """List (module name, source) of one split, "train" or "held_out", in order of name."""
    if split not in ("train", "held_out"):
        raise ValueError(f"split={split!r} is unknown; allowed: 'train', 'held_out'")
    modules = stdlib_modules(root).items()
    return [(name, _text(path)) for name, path in modules if is_held_out(name) == (split == "held_out")]


def suite_text(root: Path | None = None) -> list[tuple[str, str]]:
    """List (name, source) of the library's own test suite, in order of name: more text to train on, never evaluated.

    Files about a held-out module are left out: those with its name as a word of theirs (test_tarfile). Empty where the
    interpreter ships without its tests.
    """
    held_out = {name.rpartition(".")[2].strip("_") for name in stdlib_modules(root) if is_held_out(name)} - {"init"}
    texts = []
    for path, parts in sorted(_sources(root)):
        if not {"test", "tests"}.intersection(parts):
            continue
        words = {word for part in parts for word in part.removesuffix(".py").split("_")}
        if not words & held_out:
            texts.append((".".join(parts).removesuffix(".py"), _text(path)))
    return texts


def _base(root: Path | None) -> Path:
    return Path(sysconfig.get_paths()["stdlib"]) if root is None else Path(root)


def _sources(root: Path | None) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Every Python file that comes with the interpreter, and the parts of its path below the root."""
    base = _base(root)
    for folder, below, files in os.walk(base):
        below[:] = [name for name in below if name not in INSTALLED]
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            yield path, path.relative_to(base).parts


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
