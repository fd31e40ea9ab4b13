"""Weight rounders by name. Plain data: a config is checked before anything heavy is imported."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sq.errors import QuantizationError

if TYPE_CHECKING:
    from sq.quantize.rounders.rounder import WeightRounder

_registry: dict[str, str] = {
    "rtn": "sq.quantize.rounders.rtn:Rtn",
    "gptq": "sq.quantize.rounders.gptq:Gptq",
    "gptaq": "sq.quantize.rounders.gptaq:Gptaq",
    "qronos": "sq.quantize.rounders.qronos:Qronos",
}


def register_rounder(name: str, target: str) -> None:
    """Make a `WeightRounder` known by its name (weights=<name>, with a file conf/weights/<name>.yaml).

    `target` is its class, "module:Class", imported when it is first used. QuantizationError where the name stands for
    another one.
    """
    if _registry.setdefault(name, target) != target:
        raise QuantizationError(f"a rounder named {name!r} is registered already: {_registry[name]}")


def rounder_names() -> list[str]:
    """Names of all registered rounders, in the order of their registration."""
    return list(_registry)


def rounder_class(name: str) -> type[WeightRounder]:
    """The class of a registered rounder; QuantizationError where there is none of this name."""
    if name not in _registry:
        raise QuantizationError(f"rounder {name!r} is unknown; there are {', '.join(_registry)}")
    module, _, attribute = _registry[name].partition(":")
    found: Any = getattr(import_module(module), attribute)
    return found  # type: ignore[no-any-return]
