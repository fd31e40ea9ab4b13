"""Launches that tuning chose, kept as JSON: one file for each GPU and Triton version. Imports no Triton."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import write_json

PACKAGED = Path(__file__).resolve().parent  # what comes with the package
FOLDER_VARIABLE = "SINGLEQUANT_TUNED"  # a folder of the user's, read first and written to
_SCHEMA = 1

Launch = dict[str, int]  # a config's parameters, with num_warps and num_stages


class Store:
    """What was tuned on one GPU under one Triton version.

    Read from the user's folder and from the package; where both know a launch, the user's counts.

    Args:
        gpu: the device's name, as CUDA reports it.
        triton: its version.

    Attributes:
        target: the folder that `add` writes to; the user's, until set.

    Raises:
        ValueError: a file that is damaged, of another schema, or of another GPU or Triton version.
    """

    def __init__(self, gpu: str, triton: str) -> None:
        self.gpu, self.triton = gpu, triton
        self.target = user_folder()
        self.file_name = f"{slug(gpu)}-triton-{triton}.json"
        self._entries: dict[str, dict[str, Any]] = {}
        self.sources: list[Path] = []
        for folder in (PACKAGED, user_folder()):
            if (path := folder / self.file_name).exists():
                self._entries |= read(path, gpu, triton)
                self.sources.append(path)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, kernel: str, key: Mapping[str, Any]) -> Launch | None:
        """The launch of a kernel for these key values, None where it was not tuned.

        Raises:
            ValueError: the kernel's launches were stored under other key names, by another version of it.
        """
        found = self._entries.get(_name(kernel, key))
        if found is not None:
            return dict(found["launch"])
        for entry in self._entries.values():
            if entry["kernel"] == kernel and entry["key"].keys() != key.keys():
                raise ValueError(
                    f"launches of {kernel} in {self._places()} have the key {sorted(entry['key'])}, and the kernel has "
                    f"{sorted(key)}: they are of another version of it; {self._remedy()}"
                )
        return None

    def refuse(self, kernel: str, launch: Launch, candidates: int) -> ValueError:
        """The error of a stored launch that is not one of the kernel's candidates."""
        return ValueError(
            f"the launch {launch} of {kernel} in {self._places()} is none of its {candidates} candidates for this "
            f"shape; {self._remedy()}"
        )

    def add(self, kernel: str, key: Mapping[str, Any], launch: Launch, microseconds: float) -> None:
        """Keep a launch, here and in the target folder's file; a folder that cannot be written is warned of."""
        entry = {"kernel": kernel, "key": dict(key), "launch": dict(launch), "microseconds": round(microseconds, 3)}
        self._entries[_name(kernel, key)] = entry
        path = self.target / self.file_name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                known = read(path, self.gpu, self.triton) if path.exists() else {}
                known[_name(kernel, key)] = entry
                ordered = [known[name] for name in sorted(known)]
                write_json(path, {"schema": _SCHEMA, "gpu": self.gpu, "triton": self.triton, "entries": ordered})
        except OSError as error:
            warnings.warn(
                f"a tuned launch of {kernel} could not be kept in {path} ({error}); set {FOLDER_VARIABLE} to a folder "
                "that can be written, or every process tunes again",
                stacklevel=2,
            )

    def _places(self) -> str:
        return " or ".join(map(str, self.sources)) or "memory"

    def _remedy(self) -> str:
        return "delete that file, then tune anew with `sq-bench --tune`"


def user_folder() -> Path:
    """$SINGLEQUANT_TUNED, else singlequant/tuned in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "singlequant" / "tuned"


def shared_folder() -> Path:
    """Where `sq-bench --tune` writes: the variable's folder, else the package's, or the user's if that is read-only."""
    return PACKAGED if FOLDER_VARIABLE not in os.environ and os.access(PACKAGED, os.W_OK) else user_folder()


def read(path: Path, gpu: str, triton: str) -> dict[str, dict[str, Any]]:
    """Entries of a file, by kernel and key.

    Raises:
        ValueError: with the path, what is wrong and what to do.
    """

    def refused(reason: str) -> ValueError:
        return ValueError(
            f"{path} cannot be used as tuned launches: {reason}; delete it, then tune anew with `sq-bench --tune`"
        )

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refused(f"it is damaged ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        got = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise refused(f"its schema is {got!r}, and this version reads {_SCHEMA}")
    for name, want in (("gpu", gpu), ("triton", triton)):
        if content.get(name) != want:
            raise refused(f"it is foreign, of {name} {content.get(name)!r}, and this is {want!r}")
    entries = content.get("entries")
    if not isinstance(entries, list):
        raise refused("it has no list of entries")
    found = {}
    for number, entry in enumerate(entries):
        if (mistake := _mistake(entry)) is not None:
            raise refused(f"entry {number} {mistake}")
        found[_name(entry["kernel"], entry["key"])] = entry
    return found


def _mistake(entry: Any) -> str | None:
    if not isinstance(entry, dict) or entry.keys() != {"kernel", "key", "launch", "microseconds"}:
        return "must have kernel, key, launch and microseconds"
    if not isinstance(entry["kernel"], str) or not isinstance(entry["key"], dict):
        return "must name a kernel and its key values"
    launch = entry["launch"]
    if not isinstance(launch, dict) or not launch or not all(type(v) is int and v > 0 for v in launch.values()):
        return f"must have a launch of positive integers, and it has {launch!r}"
    return None


def slug(name: str) -> str:
    """A name as part of a file's: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _name(kernel: str, key: Mapping[str, Any]) -> str:
    return f"{kernel} {json.dumps(key, sort_keys=True)}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time: two processes that tune must not lose each other's launches."""
    import fcntl  # Triton runs on Linux

    with path.with_name(f".{path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
