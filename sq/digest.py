"""Digests of files: what a file holds, whatever its name, place and time.

A digest that was made is kept beside size, times and inode of its file, so that a second look reads nothing.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from sq.errors import FileError
from sq.io import read_json, write_text
from sq.progress import shown

SETTLED_SECONDS = 2.0  # a file changed so lately may change again without another time: its digest is not kept
READING = "digests of files, MB"
SHOWN_BYTES = 2**30  # a bar is shown where so much is to be read: about a second
HEADER_LIMIT = 100_000_000  # bytes of a safetensors header, as the library has it

_known: dict[Path, tuple[list[int], dict[str, str]]] = {}


def digest_of(files: Iterable[Path], cache: Path | None = None) -> str:
    """sha256 (hex) of what files hold together: tensors by name, other files by their own name.

    Safetensors count tensor by tensor (name, dtype, shape, bytes), so weights that are cut into other shards have the
    same digest; all other files, and those that are no safetensors, count byte by byte.

    Args:
        files: in any order.
        cache: folder in which digests are kept, in `digests/`; None keeps them for this process alone.

    Raises:
        FileError: a file that cannot be read.
    """
    parts = [f"{name}\0{value}" for found in _parts(list(dict.fromkeys(files)), cache) for name, value in found.items()]
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def content_digest(file: Path, cache: Path | None = None) -> str:
    """sha256 (hex) of a file's bytes, whatever its name. Arguments and errors: see `digest_of`."""
    (found,) = _parts([file], cache, by_tensor=False)
    return found[_WHOLE]


SEAL = "sha256"  # the key that `sealed` adds


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON-ready record with the sha256 of the rest of it as its last entry, by which `is_sealed` sees damage."""
    return {**record, SEAL: record_digest(record)}


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether a record that was read is the one that `sealed` made."""
    rest = {key: value for key, value in record.items() if key != SEAL}
    return bool(record.get(SEAL) == record_digest(rest))


def record_digest(record: Mapping[str, Any]) -> str:
    """sha256 (hex) of a JSON-ready record, whatever the order of its keys."""
    try:
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    except RecursionError:  # brackets without end in a damaged file
        text = ""
    return hashlib.sha256(text.encode()).hexdigest()


_WHOLE = "bytes"


def _parts(files: list[Path], cache: Path | None, *, by_tensor: bool = True) -> list[dict[str, str]]:
    """What each file is made of: name of the part -> digest."""
    kinds = [by_tensor and file.suffix == ".safetensors" for file in files]
    kept = [_kept(file, cache, tensors) for file, tensors in zip(files, kinds, strict=True)]
    new = [file for file, found in zip(files, kept, strict=True) if found is None]
    sizes = {file: stat_of(file)[0] for file in new}
    done, total = 0, sum(sizes.values())
    result = []
    with shown() if total >= SHOWN_BYTES else nullcontext() as show:
        if show is not None:
            show(READING, 0, total >> 20)
        for file, tensors, found in zip(files, kinds, kept, strict=True):
            if found is None:
                found = _read(file, cache, tensors)
                done += sizes[file]
                if show is not None:
                    show(READING, done >> 20, total >> 20)
            whole = by_tensor and _WHOLE in found
            result.append({file.name: found[_WHOLE]} if whole else found)
    return result


def _kept(file: Path, cache: Path | None, tensors: bool) -> dict[str, str] | None:
    """A digest that was made before of the file as it is now."""
    stat, place = stat_of(file), file.absolute()
    if (found := _known.get(place)) is None and cache is not None:
        with suppress(FileError, KeyError, TypeError, AttributeError):
            content = read_json(_entry(place, cache))
            found = (content["stat"], content["parts"]) if is_sealed(content) else None
    if found is None or found[0] != stat or (_WHOLE in found[1]) == (tensors and _header(file) is not None):
        return None
    _known[place] = found
    return dict(found[1])


def _read(file: Path, cache: Path | None, tensors: bool) -> dict[str, str]:
    before, place = stat_of(file), file.absolute()
    header = _header(file) if tensors else None
    try:
        parts = {_WHOLE: _whole(file)} if header is None else _by_tensor(file, *header)
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror or error}") from error
    if before != stat_of(file):
        raise FileError(f"{file} changed while it was read; wait until it is written, then start again")
    if time.time() - max(before[1], before[2]) / 1e9 < SETTLED_SECONDS:
        return parts
    _known[place] = before, parts
    if cache is not None:
        with suppress(OSError):  # the next process reads the file again
            entry = _entry(place, cache)
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_text(entry, json.dumps(sealed({"file": str(place), "stat": before, "parts": parts})))
    return dict(parts)


def _whole(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _by_tensor(file: Path, header: Mapping[str, Any], start: int) -> dict[str, str]:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:

        def one(name: str) -> str:
            about = header[name]
            first, last = (start + offset for offset in about["data_offsets"])
            digest = hashlib.sha256(json.dumps([about["dtype"], about["shape"]]).encode())
            with memoryview(content) as view, view[first:last] as part:
                digest.update(part)  # without Python's lock where it is long: threads run at once
            return digest.hexdigest()

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            return dict(zip(header, pool.map(one, header), strict=True))


def _header(file: Path) -> tuple[dict[str, Any], int] | None:
    """The tensors of a safetensors file and where their bytes begin; None for a file that is not one."""
    try:
        with file.open("rb") as stream:
            size, length = file.stat().st_size, int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                return None
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            ends = [offset for about in header.values() for offset in about["data_offsets"]]
            sound = all(isinstance(end, int) and 0 <= end <= size - 8 - length for end in ends)
            named = all("dtype" in about and "shape" in about for about in header.values())
            return (header, 8 + length) if header and sound and named else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def stat_of(file: Path) -> list[int]:
    """Size, time of the content, time of the entry (which nobody sets by hand), inode and device; FileError."""
    try:
        found = file.stat()
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror or error}") from error
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _entry(place: Path, cache: Path) -> Path:
    return cache / "digests" / f"{hashlib.sha256(str(place).encode()).hexdigest()[:32]}.json"
