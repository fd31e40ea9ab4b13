"""The header of a GGUF file: metadata, and where each tensor lies. Nothing here imports torch or numpy.

The layout is that of ggml's gguf.md, versions 2 and 3, little-endian: magic, version, counts, metadata, a description
of each tensor, then the tensors' data, aligned.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from sq.errors import CheckpointError

VERSIONS = (2, 3)
CONVERSION = 1  # of tokenizers: raised when a file that is the same gets other token ids
F32, F16, BF16 = 0, 1, 30  # numbers of tensor types
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class ArrayOf(int):
    """Stands for an array of metadata: its length. Entries are not kept, vocabularies have 100,000s."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's shape as torch has it (the file lists the last axis first), its type's number, and its first byte."""

    shape: tuple[int, ...]
    type: int
    start: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself; `data` is the first byte behind the header, `size` that of the whole file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    data: int
    size: int

    def floats(self, name: str) -> tuple[float, ...]:
        """The entries of a float32 tensor; CheckpointError for another type and for a truncated file."""
        entry = self.tensors[name]
        if entry.type != F32:
            raise CheckpointError(f"tensor {name!r} of {self.path} has type {entry.type}; allowed is float32 ({F32})")
        count = prod(entry.shape)
        with self.path.open("rb") as stream:
            stream.seek(entry.start)
            content = stream.read(4 * count)
        if len(content) < 4 * count:
            raise truncated(self.path, f"tensor {name!r} ends at byte {entry.start + 4 * count}", self.size)
        return struct.unpack(f"<{count}f", content)


def read_header(path: Path) -> GgufHeader:
    """The header of a file, kept for the next call until the file changes.

    CheckpointError is raised for a file that cannot be read, is no GGUF, is of another version, or ends too early.
    """
    try:
        stat = path.stat()
        return _read(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def truncated(path: Path, end: str, size: int) -> CheckpointError:
    """The error of a file that lacks bytes at its end."""
    return CheckpointError(f"{path} is truncated: {end}, the file has {size} bytes. Fetch it again.")


@lru_cache(maxsize=8)
def _read(path: Path, size: int, mtime: int) -> GgufHeader:
    del mtime  # of the key alone
    if size < 4:
        raise truncated(path, "a GGUF file begins with 4 bytes of magic", size)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != b"GGUF":
            raise CheckpointError(f"{path} begins with {content[:4]!r}, a GGUF file with b'GGUF': it is another format")
        cursor = _Cursor(content, 4)
        try:
            return _parse(path, cursor, size)
        except (struct.error, EOFError) as error:
            raise truncated(path, f"its header goes on behind byte {cursor.at}", size) from error
        except (KeyError, TypeError, UnicodeDecodeError, ArithmeticError, MemoryError) as error:
            raise CheckpointError(
                f"{path} has a damaged header near byte {cursor.at}: {type(error).__name__} {error}. Fetch it again."
            ) from error


def _parse(path: Path, cursor: _Cursor, size: int) -> GgufHeader:
    version = cursor.scalar("I")
    if version not in VERSIONS:
        kind = "big-endian" if version & 0xFFFF == 0 else f"of version {version}"
        allowed = " and ".join(map(str, VERSIONS))
        raise CheckpointError(f"{path} is {kind}; read are versions {allowed}, little-endian: convert it anew")
    count, pairs = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("I"))
    described: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = cursor.text()
        shape = tuple(cursor.scalar("Q") for _ in range(cursor.scalar("I")))
        described[name] = (shape[::-1], cursor.scalar("I"), cursor.scalar("Q"))
    alignment = metadata.get("general.alignment", 32)
    data = -(-cursor.at // alignment) * alignment
    tensors = {name: TensorEntry(shape, type_, data + offset) for name, (shape, type_, offset) in described.items()}
    return GgufHeader(path, metadata, tensors, data, size)


class _Cursor:
    """Reads values one after another."""

    def __init__(self, content: mmap.mmap, at: int) -> None:
        self.content, self.at = content, at

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.content, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        return self.skip(self.scalar("Q")).decode("utf-8")

    def skip(self, length: int) -> bytes:
        """The next bytes; EOFError if the file has fewer."""
        if self.at + length > len(self.content):
            raise EOFError
        found = self.content[self.at : self.at + length]
        self.at += length
        return found

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        entries, length = self.scalar("I"), self.scalar("Q")
        if entries in _SCALARS:
            self.skip(length * struct.calcsize(f"<{_SCALARS[entries]}"))
        else:
            for _ in range(length):
                self.skip(self.scalar("Q")) if entries == _STRING else self.value(_ARRAY)
        return ArrayOf(length)
