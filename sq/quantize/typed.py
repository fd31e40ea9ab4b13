"""Plain data to typed values: every mistake becomes a sentence, and what a type allows is said in words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)

from sq.errors import QuantizationError
from sq.formats.labels import Bits, parse_bits
from sq.models.device import ALLOWED, DEVICE

CONFIG = ConfigDict(extra="forbid", defer_build=True)  # of every section's dataclass
_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}


@dataclass(frozen=True)
class Note:
    """A note in Annotated.

    Attributes:
        words: the allowed values, where the type alone does not say them well.
        key: the field's name in a config, where it is another.
        rest: the field takes the keys that no other field has.
    """

    words: str = ""
    key: str = ""
    rest: bool = False


def _text(value: Any) -> Any:
    """A number as its text: a name such as 0_5 reads as one."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def listed(value: Any) -> Any:
    """A single text or number as a list of one."""
    return (value,) if isinstance(value, (str, int)) else tuple(value) if isinstance(value, list) else value


def _absolute(value: Any) -> Path:
    """ "~" and a relative start are resolved now, so that a later chdir changes nothing."""
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("not a path")
    return Path(value).expanduser().absolute()


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if min(values) < 1 or len(set(values)) < len(values):
        raise ValueError("not distinct, or below 1")
    return values


def _bits(value: Any) -> Bits:
    if isinstance(value, dict):
        raise QuantizationError("bits is a label, not a section; write for example bits=w5a4 or bits=w4a4kv4")
    return value if isinstance(value, Bits) else parse_bits(value)


Text = Annotated[str, BeforeValidator(_text), MinLen(1), Note("a non-empty text")]
Name = Annotated[
    Text,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"),
    Note("letters, digits and any of _ - . + (it becomes part of a folder's name)"),
]
AnyNames = Annotated[
    tuple[Annotated[str, MinLen(1)], ...], BeforeValidator(listed), Note("a list of names such as [a,b]")
]
Names = Annotated[AnyNames, MinLen(1)]
Place = Annotated[Path, PlainValidator(_absolute), Note("a path")]
Count = Annotated[int, Ge(1)]
Pair = Annotated[int, Ge(2)]
# Seeds that all generators take: SpinQuant draws windows with seed * 1,000,003 + epoch, and torch takes 64 bits.
Seed = Annotated[int, Ge(0), Lt(2**44)]
Clip = Annotated[float, Gt(0), Le(1)] | Literal["search"]
SiteClip = Annotated[float, Gt(0), Le(1)] | Literal["search", "site"]
Device = Annotated[str, Field(pattern=rf"^({DEVICE})$"), Note(ALLOWED)]
Distinct = Annotated[
    tuple[int, ...],
    BeforeValidator(listed),
    MinLen(1),
    AfterValidator(_distinct),
    Note("a list of distinct whole numbers of at least 1, such as [1,2]"),
]
Label = Annotated[Bits, PlainValidator(_bits), PlainSerializer(lambda bits: bits.label.lower())]
NullIsNone = BeforeValidator(lambda value: "none" if value is None else value)  # for choices that have `none`


def read(hint: Any, value: Any, place: str, problems: list[str]) -> Any:
    """A value as its type has it, or None with its mistakes in `problems`.

    Nothing is converted but whole numbers to floats and lists to tuples, as in strict JSON.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    section = next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)
    if section is not None and isinstance(value, dict):
        before = len(problems)
        found = read_keys(section, value, place, problems)
        return section(**found) if len(problems) == before else None
    try:
        return _adapter(hint).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if isinstance(reason := first.get("ctx", {}).get("error"), QuantizationError):
            problems.append(str(reason))
        elif isinstance(value, list) and first["loc"] and isinstance(index := first["loc"][-1], int):
            problems.append(f"{place}={show(value[index])}; allowed: {_describe_items(hint)}")
        else:
            problems.append(f"{place}={show(value)}; allowed: {describe(hint, place)}")
    return None


def read_keys(
    callable: Callable[..., Any], values: Mapping[str, Any], place: str, problems: list[str], skip: Iterable[str] = ()
) -> dict[str, Any]:
    """The arguments of a dataclass by the names of its fields; those that do not fit are left out and noted.

    Args:
        skip: fields that are not set from the config.
    """
    hints = get_type_hints(callable, include_extras=True)
    wanted = {field.name: field for field in fields(callable) if field.init and field.name not in skip}  # type: ignore[arg-type]
    keys = {note.key or name: name for name in wanted for note in [_note(hints[name])] if not note.rest}
    rest = next((name for name in wanted if _note(hints[name]).rest), None)
    dot = f"{place}." if place else ""
    values = {str(key): value for key, value in values.items() if value != "???"}  # ???: still to be given
    others = {key: value for key, value in values.items() if key not in keys}
    if rest is None:
        problems.extend(f"{dot}{key} is unknown{closest(key, keys)}" for key in others)
    found: dict[str, Any] = {} if rest is None else {rest: others}
    for key, name in keys.items():
        if key in values:
            before = len(problems)
            value = read(hints[name], values[key], dot + key, problems)
            if len(problems) == before:
                found[name] = value
        elif wanted[name].default is MISSING and wanted[name].default_factory is MISSING:
            problems.append(f"{dot}{key} is missing; set it with {dot}{key}=<value>")
    return found


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _note(hint: Any) -> Note:
    """The last note of a type."""
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((note for note in reversed(notes) if isinstance(note, Note)), Note())


def _describe_items(hint: Any) -> str:
    return describe(get_args(get_args(hint)[0] if get_origin(hint) is Annotated else hint)[0])


def describe(hint: Any, place: str = "<group>") -> str:
    """The values that a type allows, in words: "a number above 0 and at most 1 or 'search'"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds: list[str] = []
        for note in inner[1:]:
            match note:
                case Ge(ge):
                    bounds.append(f"of at least {ge}")
                case Gt(gt):
                    bounds.append(f"above {gt}")
                case Le(le):
                    bounds.append(f"at most {le}")
                case Lt(lt):
                    bounds.append(f"below {lt}")
        return _note(hint).words or " ".join([describe(inner[0]), " and ".join(bounds)]).strip()
    if origin in (Union, UnionType):
        return " or ".join(describe(one) for one in sorted(inner, key=lambda one: one is not NoneType))
    if origin is Literal:
        return f"'{inner[0]}'" if len(inner) == 1 else " | ".join(map(show, inner))
    if is_dataclass(hint):
        return f"a section; choose one with {place}=<name>"
    if inner:
        return f"a list of {describe(inner[0])}"
    return _PLAIN.get(hint, getattr(hint, "__name__", str(hint)))


def show(value: object) -> str:
    """A value as it is typed in a config."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(show, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def closest(word: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """ "; did you mean X?", or the known words where none is near; those of `also` are not listed."""
    known = sorted(known)
    near = difflib.get_close_matches(word, [*known, *also], n=1)
    if not known and not near:
        return "; there is nothing to set"
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
