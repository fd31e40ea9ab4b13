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
_REMEDY = "delete that file, then tune anew with `sq-bench --tune`"

Launch = dict[str, int]  # a config's parameters, with num_warps and num_stages


class Store:
    """What was tuned on one GPU, by CUDA's name, under one Triton version, read from the folders of README.md.

    `add` writes to the folder `target`, the user's until it is set. Raises ValueError for a file that `read` refuses.
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

        Raises ValueError where the kernel's launches have other key names: another version of it stored them.
        """
        found = self._entries.get(_name(kernel, key))
        if found is not None:
            return dict(found["launch"])
        for entry in self._entries.values():
            if entry["kernel"] == kernel and entry["key"].keys() != key.keys():
                raise ValueError(
                    f"launches of {kernel} in {self._places()} have the key {sorted(entry['key'])}, and the kernel has "
                    f"{sorted(key)}: they are of another version of it; {_REMEDY}"
                )
        return None

    def refuse(self, kernel: str, launch: Launch, candidates: int) -> ValueError:
        """The error of a stored launch that is not one of the kernel's candidates."""
        return ValueError(
            f"the launch {launch} of {kernel} in {self._places()} is none of its {candidates} candidates for this "
            f"shape; {_REMEDY}"
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


def user_folder() -> Path:
    """$SINGLEQUANT_TUNED, else singlequant/tuned in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "singlequant" / "tuned"


def shared_folder() -> Path:
    """Where `sq-bench --tune` writes: the variable's folder, else the package's, or the user's if that is read-only."""
    return PACKAGED if FOLDER_VARIABLE not in os.environ and os.access(PACKAGED, os.W_OK) else user_folder()


def read(path: Path, gpu: str, triton: str) -> dict[str, dict[str, Any]]:
    """Entries of a file, by kernel and key. Raises ValueError with the path, what is wrong and what to do."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        mistake = _mistake(content, {"schema": _SCHEMA, "gpu": gpu, "triton": triton})
    except (OSError, ValueError) as error:
        mistake = f"it is damaged ({error})"
    if mistake is not None:
        raise ValueError(f"{path} cannot be used as tuned launches: {mistake}; {_REMEDY}")
    return {_name(entry["kernel"], entry["key"]): entry for entry in content["entries"]}


def _mistake(content: Any, head: dict[str, Any]) -> str | None:
    """Why a file's content cannot be used, or None."""
    if not isinstance(content, dict):
        return f"its schema is {type(content).__name__!r}, and this version reads {_SCHEMA}"
    for name, want in head.items():
        if content.get(name) != want:
            other = "its schema is" if name == "schema" else f"it is foreign, of {name}"
            return f"{other} {content.get(name)!r}, and this is {want!r}"
    if not isinstance(content.get("entries"), list):
        return "it has no list of entries"
    for number, entry in enumerate(content["entries"]):
        if not isinstance(entry, dict) or entry.keys() != {"kernel", "key", "launch", "microseconds"}:
            return f"entry {number} must have kernel, key, launch and microseconds"
        if not isinstance(entry["kernel"], str) or not isinstance(entry["key"], dict):
            return f"entry {number} must name a kernel and its key values"
        launch = entry["launch"]
        if not isinstance(launch, dict) or not launch or not all(type(v) is int and v > 0 for v in launch.values()):
            return f"entry {number} must have a launch of positive integers, and it has {launch!r}"
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
