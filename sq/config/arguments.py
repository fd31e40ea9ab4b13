"""What decides about itself: methods and weight rounders about their arguments, and which formats they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sq
from sq.config.reader import read, read_keys
from sq.config.settings import ActivationSettings, MethodSettings, ModelSettings, Seed, WeightSettings
from sq.errors import FileError, QuantizationError
from sq.formats.elements import Integers
from sq.formats.format import Format
from sq.formats.labels import SIXTEEN, Bits, format_of
from sq.io import read_json
from sq.quantize.rounders.registry import rounder_class, rounder_names

if TYPE_CHECKING:
    from sq.quantize.method import Method


def integer_weights(bits: Bits) -> bool:
    """Whether weights become integers, which is what packed layers hold."""
    return bits.weights != SIXTEEN and isinstance(format_of(bits.weights).element, Integers)  # type: ignore[union-attr]


def check_arguments(
    model: ModelSettings,
    method: MethodSettings,
    bits: Bits,
    weights: WeightSettings,
    activations: ActivationSettings,
    kv_cache: ActivationSettings,
) -> list[str]:
    """All mistakes in arguments of the method and the rounder, and in formats and groups of the quantizers."""
    problems: list[str] = []
    built = _method(method, problems)
    rounder = _rounder(weights, problems)
    if not method.quantizes:
        return problems
    sizes = model_widths(model)
    linears = [sizes[key] for key in ("hidden", "heads", "intermediate") if key in sizes]
    heads = [sizes["head_dim"]] if "head_dim" in sizes else []
    w = _format("weights", bits.weights, weights, linears, problems)
    a = _format("activations", bits.activations, activations, linears, problems)
    for part in dict.fromkeys((bits.queries, bits.keys, bits.values)):
        _format("kv_cache", part, kv_cache, heads, problems)
    if built is not None and (reason := built.obstacle(w, a)):
        names = " and ".join("16 bits" if one is None else one.name for one in (w, a))
        problems.append(f"method={method.name} does not take weights and activations in {names}: {reason}")
    if w is not None and hasattr(rounder, "obstacle") and (reason := rounder.obstacle(w)):
        problems.append(f"weights={weights.name} does not take the format {w.name}: {reason}")
    return problems


def _method(settings: MethodSettings, problems: list[str]) -> Method | None:
    """The method; None where its class cannot be used. Arguments that do not fit are left at their defaults in it."""
    module, _, name = settings.target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        problems.append(
            f"method._target_={settings.target}; allowed: the import path of a class, such as "
            f"sq.methods.singlequant.SingleQuant ({error})"
        )
        return None
    from sq.quantize.method import Method

    if not (isinstance(found, type) and issubclass(found, Method)):
        problems.append(f"method._target_={settings.target}; allowed: a subclass of sq.quantize.method.Method")
        return None
    return _built(found, settings.arguments, {"name": settings.name}, f"method={settings.name}", "method", problems)


def _rounder(settings: WeightSettings, problems: list[str]) -> Any:
    """The class of the rounder, None where there is none."""
    if settings.name not in rounder_names():
        problems.append(f"weights.name={settings.name}; allowed: {' | '.join(rounder_names())}")
        return None
    found = rounder_class(settings.name)
    _built(found, settings.arguments, {"quantizer": None}, f"weights={settings.name}", "weights", problems)
    return found


def _built(
    found: Any, arguments: Mapping[str, Any], given: dict[str, Any], who: str, place: str, problems: list[str]
) -> Any:
    """An object of a dataclass, which checks the ranges itself."""
    if "seed" in arguments:
        read(Seed, arguments["seed"], f"{place}.seed", problems)
    good = read_keys(found, arguments, place, problems, skip=given)
    try:
        return found(**given, **good)
    except (TypeError, ValueError) as error:
        problems.append(f"{who} refuses its arguments: {error}")
    return None


def _format(
    where: str, part: str, settings: ActivationSettings | WeightSettings, widths: list[int], problems: list[str]
) -> Format | None:
    """The format of one part, checked against the widths it meets; None for 16 bits and for what does not fit."""
    try:
        found = format_of(part, settings.scheme, settings.group_size)
        if found is not None and found.tensor and where != "weights":
            raise QuantizationError(
                f"{found.name} has one scale for a whole tensor, so that a token would depend on its batch; use a format "
                "with a scale for each token or group"
            )
    except QuantizationError as error:
        problems.append(f"{where}: {error}")
        return None
    size = None if found is None else found.group
    if size is not None and (wrong := [str(n) for n in dict.fromkeys(widths) if n % size]):
        own = f"{where}.group_size={size}" if settings.group_size else f"{where}: the groups of {size} of {part}"
        problems.append(f"{own} does not divide the model's {' or '.join(wrong)} features; use a divisor")
    return found


def model_widths(model: ModelSettings) -> dict[str, int]:
    """hidden, heads (times head_dim), intermediate and head_dim, as far as they are known before a model is loaded."""
    folder = Path(sq.__file__).parent / "embedded" / "tiny" if model.path == "embedded" else Path(model.path)
    try:
        config = model.architecture or read_json(folder / "config.json")
    except FileError:  # a hub's model, whose sizes show when it is loaded, or a mistake that another rule names
        return {}
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    size = config.get("head_dim") or (hidden // heads if hidden and heads else None)
    found = {"hidden": hidden, "intermediate": config.get("intermediate_size"), "head_dim": size}
    found["heads"] = heads * size if heads and size else None
    return {key: value for key, value in found.items() if isinstance(value, int)}
