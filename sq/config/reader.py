"""Typed reading of one config section that notes every mistake instead of stopping at the first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal

_REQUIRED: Any = object()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class Reader:
    """Read the keys of a section; what cannot be read is noted in `problems` and replaced by a harmless value.

    Args:
        where: dotted place of the section ("bits"), "" for the root.
        values: the section's plain content.
        problems: list that mistakes are added to, shared by all sections.
    """

    def __init__(self, where: str, values: Mapping[str, Any], problems: list[str]) -> None:
        self.where, self.values, self.problems = where, values, problems
        self._read: set[str] = set()

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A non-empty string; a number is taken as its text (a name such as 0_5 reads as one)."""
        value = self._get(key, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value:
            return value
        return str(self._wrong(key, value, "a non-empty text", ""))

    def optional_text(self, key: str) -> str | None:
        return None if self._get(key, None) is None else self.text(key)

    def name(self, key: str) -> str:
        """A text that can be part of a folder's name."""
        value = self.text(key)
        if value and not _NAME.fullmatch(value):
            self._wrong(key, value, "letters, digits and any of _ - . + (it becomes part of a folder's name)", "")
        return value

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        value = self._get(key, default)
        return value if isinstance(value, bool) else bool(self._wrong(key, value, "true or false", False))

    def integer(self, key: str, *, low: int, default: Any = _REQUIRED) -> int:
        value = self._get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= low:
            return value
        return int(self._wrong(key, value, f"a whole number of at least {low}", 0))

    def optional_integer(self, key: str, *, low: int) -> int | None:
        if self._get(key, None) is None:
            return None
        value = self.values[key]
        if isinstance(value, int) and not isinstance(value, bool) and value >= low:
            return value
        self._wrong(key, value, f"null or a whole number of at least {low}", None)
        return None

    def number(
        self,
        key: str,
        *,
        above: float = -inf,
        low: float = -inf,
        most: float = inf,
        default: Any = _REQUIRED,
        also: str = "",
    ) -> float:
        """A finite number in (above, most], or in [low, most]."""
        value = self._get(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and isfinite(value) and above < value <= most and value >= low:
            return float(value)
        upper = f" and at most {most:g}" if most != inf else ""
        lower = f"above {above:g}" if low == -inf else f"of at least {low:g}"
        return float(self._wrong(key, value, f"a number {lower}{upper}{' or ' + also if also else ''}", 1.0))

    def clip(self, key: str, default: Any = _REQUIRED) -> float | Literal["search"]:
        """A share of a range in (0, 1], or "search"."""
        if self._get(key, default) == "search":
            return "search"
        return self.number(key, above=0.0, most=1.0, default=default, also="'search'")

    def choice(self, key: str, allowed: Sequence[str], default: Any = _REQUIRED) -> Any:
        """One of the allowed texts; null reads as "none" where that is allowed."""
        value = self._get(key, default)
        if value is None and "none" in allowed:
            value = "none"
        if isinstance(value, str) and value in allowed:
            return value
        return self._wrong(key, value, " | ".join(allowed), allowed[0])

    def one_of(self, key: str, allowed: Sequence[int], words: str, default: Any = _REQUIRED) -> int:
        value = self._get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value in allowed:
            return value
        return int(self._wrong(key, value, words, allowed[-1]))

    def names(self, key: str, default: Any = _REQUIRED) -> tuple[str, ...]:
        """A list of texts; a single text reads as a list of one."""
        value = self._get(key, default)
        if isinstance(value, str):
            value = [value]
        listed = isinstance(value, (list, tuple)) and all(isinstance(item, str) and item for item in value)
        if listed and (value or default is not _REQUIRED):
            return tuple(value)
        self._wrong(key, value, "a list of names such as [a,b]", ())
        return ()

    def integers(self, key: str, *, low: int) -> tuple[int, ...]:
        """A list of distinct whole numbers; a single one reads as a list of one."""
        value = self._get(key, _REQUIRED)
        listed = value if isinstance(value, (list, tuple)) else [value]
        whole = all(isinstance(item, int) and not isinstance(item, bool) and item >= low for item in listed)
        if whole and listed and len(set(listed)) == len(listed):
            return tuple(listed)
        self._wrong(key, value, f"a list of distinct whole numbers of at least {low}, such as [{low},{low + 1}]", ())
        return ()

    def choices(self, key: str, allowed: Sequence[str]) -> tuple[Any, ...]:
        """A list of some of the allowed texts; a single one reads as a list of one."""
        listed = self.names(key)
        if unknown := [item for item in listed if item not in allowed]:
            self._wrong(key, unknown[0], " | ".join(allowed), None)
        return tuple(dict.fromkeys(listed))

    def path(self, key: str) -> Path:
        """A path made absolute; "~" and a relative start are resolved now, so that a later chdir changes nothing."""
        return Path(self.text(key)).expanduser().absolute()

    def optional_path(self, key: str) -> Path | None:
        return None if self._get(key, None) is None else self.path(key)

    def section(self, key: str) -> Reader:
        value = self._get(key, _REQUIRED)
        if not isinstance(value, dict):
            if value is not _REQUIRED:
                self._wrong(key, value, f"a section; choose one with {self._place(key)}=<name>", None)
            return Reader(self._place(key), {}, [])
        return Reader(self._place(key), {str(k): v for k, v in value.items()}, self.problems)

    def optional_section(self, key: str) -> Reader | None:
        return None if self._get(key, None) is None else self.section(key)

    def rest(self) -> dict[str, Any]:
        """The keys not read so far, for sections whose keys are not known here (a method's arguments)."""
        left = {key: value for key, value in self.values.items() if key not in self._read}
        self._read.update(left)
        return left

    def finish(self) -> None:
        """Note the keys that nobody read."""
        for key in self.values:
            if key not in self._read:
                self.say(f"{self._place(key)} is unknown{closest(key, self._read)}")

    def problem(self, key: str, value: object, allowed: str) -> None:
        self.say(f"{self._place(key)}={show(value)}; allowed: {allowed}")

    def say(self, sentence: str) -> None:
        self.problems.append(sentence)

    def _place(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self.values.get(key, default)
        if isinstance(value, str) and value == "???":
            value = _REQUIRED
        if value is _REQUIRED:
            self.say(f"{self._place(key)} is missing; set it with {self._place(key)}=<value>")
        return value

    def _wrong(self, key: str, value: object, allowed: str, instead: Any) -> Any:
        if value is not _REQUIRED:
            self.problem(key, value, allowed)
        return instead


def show(value: object) -> str:
    """A value as it is typed in a config."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def closest(word: str, known: Sequence[str] | set[str]) -> str:
    """ ", did you mean X?", or the known words where none is near."""
    near = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"
