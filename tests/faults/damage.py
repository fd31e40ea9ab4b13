"""Ways to damage a file, drawn at random."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRONG: tuple[Any, ...] = (None, -1, 0, 10**9, 1e30, float("nan"), "x", "", [], {}, True, [[1]], {"a": 1})


def flip(file: Path, dice: random.Random) -> str:
    """One bit."""
    content = bytearray(file.read_bytes())
    if not content:
        return delete(file, dice)
    place = dice.randrange(len(content))
    content[place] ^= 1 << dice.randrange(8)
    file.write_bytes(content)
    return f"a bit of byte {place} flipped"


def cut(file: Path, dice: random.Random) -> str:
    """The end is missing."""
    content = file.read_bytes()
    length = dice.randrange(len(content)) if content else 0
    file.write_bytes(content[:length])
    return f"cut to {length} bytes"


def zero(file: Path, dice: random.Random) -> str:
    """A block of zeros, as after a crash of a file system."""
    content = bytearray(file.read_bytes())
    start = dice.randrange(len(content)) if content else 0
    length = min(dice.choice((1, 512, 4096)), len(content) - start)
    content[start : start + length] = bytes(length)
    file.write_bytes(content)
    return f"{length} zeros at byte {start}"


def delete(file: Path, dice: random.Random) -> str:
    """The file is gone."""
    file.unlink()
    return "deleted"


def rubbish(file: Path, dice: random.Random) -> str:
    """Something else in its place."""
    file.write_bytes(dice.choice((b"", b"{", b"null", b"[" * 100_000, b"\xff\xfe", b"PK\x03\x04", dice.randbytes(300))))
    return "rubbish"


def retyped(file: Path, dice: random.Random) -> str:
    """A value of a JSON file becomes another."""
    try:
        content = json.loads(file.read_text())
    except ValueError:
        return flip(file, dice)
    holder, key = dice.choice(list(_places(content)) or [({"": None}, "")])
    value = dice.choice(WRONG)
    if isinstance(holder[key], (int, float)) and dice.random() < 0.5:
        value = holder[key] + dice.choice((1, -1, 0.5, 1e-9))
    holder[key] = value
    file.write_text(json.dumps(content))
    return f"{key!r} is {str(value)[:20]}"


BYTES: tuple[Callable[[Path, random.Random], str], ...] = (flip, cut, zero, delete, rubbish)


def any_damage(file: Path, dice: random.Random) -> str:
    """One of all; values of JSON files most of all."""
    if file.suffix == ".json" and dice.random() < 0.6:
        return f"{file.name}: {retyped(file, dice)}"
    return f"{file.name}: {dice.choice(BYTES)(file, dice)}"


def _places(content: Any) -> Any:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key
        yield from _places(value)
