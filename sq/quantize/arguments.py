"""Methods and weight rounders from plain arguments: every mistake in them becomes a sentence.

Nothing here imports torch until a class is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sq.quantize.rounders.registry import rounder_class, rounder_names
from sq.quantize.typed import Seed, read, read_keys

if TYPE_CHECKING:
    from sq.quantize.method import Method


def method_of(target: str, name: str, arguments: Mapping[str, Any], problems: list[str]) -> Method | None:
    """A method from its class path and arguments; None, and its mistakes in `problems`, where it cannot be built.

    Its dataclass says names and types of the arguments, and its constructor the ranges. Arguments of a wrong type are
    left at their defaults for that, so that all mistakes show at once.
    """
    module, _, kind = target.rpartition(".")
    try:
        from sq.quantize.method import Method

        found = getattr(import_module(module), kind)
        if isinstance(found, type) and issubclass(found, Method):
            built: Method | None = _built(found, "method", name, arguments, {"name": name}, problems)
            return built
        reason = f"{kind} is not a subclass of sq.quantize.method.Method"
    except (ImportError, AttributeError, ValueError) as error:
        reason = str(error)
    problems.append(
        f"method._target_={target}; allowed: the import path of a method's class, such as "
        f"sq.methods.singlequant.SingleQuant ({reason})"
    )
    return None


def rounder_mistakes(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """The mistakes in a rounder's name and arguments."""
    if name not in rounder_names():
        return [f"weights.name={name}; allowed: {' | '.join(rounder_names())}"]
    problems: list[str] = []
    _built(rounder_class(name), "weights", name, arguments, {"quantizer": None}, problems)
    return problems


def _built(
    kind: Any, place: str, name: str, arguments: Mapping[str, Any], given: dict[str, Any], problems: list[str]
) -> Any:
    before = len(problems)
    if "seed" in arguments and read(Seed, arguments["seed"], f"{place}.seed", problems) is None:
        arguments = {key: value for key, value in arguments.items() if key != "seed"}
    good = read_keys(kind, arguments, place, problems, skip=given)
    try:
        built = kind(**given, **good)
    except (TypeError, ValueError) as error:
        problems.append(f"{place}={name} refuses its arguments: {error}")
    return built if len(problems) == before else None
