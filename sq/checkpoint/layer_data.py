"""A model with packed layers as plain data, and the empty modules that such data describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import sq.formats.catalog  # noqa: F401  (registers the formats)
from sq.errors import CheckpointError
from sq.formats.activation import ActivationQuantizer
from sq.formats.format import Format, integer, named
from sq.formats.packing import packed_size
from sq.formats.qtensor import QTensor
from sq.models.families import Family
from sq.nn.attention import AttentionInput
from sq.nn.fuse import fuse
from sq.nn.hooks import attention_input, replace_linear, set_attention_input
from sq.nn.linear import PackedLinear
from sq.nn.site_input import SiteInput
from sq.rotation.serialize import describe, empty_transform
from sq.rotation.transform import Transform

_GUARD = "weight"  # of the first linear of the first layer


def describe_layer(family: Family, layer: nn.Module) -> dict[str, Any]:
    """JSON-ready: linears, the transforms and quantizers in front of them, and those inside attention."""
    linears: dict[str, Any] = {}
    sites: dict[str, Any] = {}
    for site, names in family.linears.items():
        for name in names:
            linear = layer.get_submodule(name)
            if not isinstance(linear, PackedLinear):
                found = f"{name} is a {type(linear).__name__}, not a PackedLinear"
                raise CheckpointError(f"{found}: weights of 8 bits or fewer can be packed")
            shape = [linear.out_features, linear.in_features]
            linears[name] = {"shape": shape, "format": format_data(linear.format), "bias": linear.bias is not None}
        assert isinstance(linear, PackedLinear)
        inputs = linear.inputs
        quantizer = _quantizer_data(inputs.quantizer)
        sites[site] = {"transform": _transform_data(inputs.transform), "quantizer": quantizer}
    attention = None
    if (inside := attention_input(family, layer)) is not None:
        quantizers = {name: _quantizer_data(getattr(inside, name)) for name in ("queries", "keys", "values")}
        attention = {"transform": _transform_data(inside.transform), **quantizers}
    return {"linears": linears, "sites": sites, "attention": attention}


def empty_layer(family: Family, layer: nn.Module, data: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Give a decoder layer's skeleton the modules that `describe_layer` described, empty, on the meta device.

    Raises:
        CheckpointError: the data is damaged, or describes other linears than the family has.
    """
    try:
        for site, names in family.linears.items():
            described = data["sites"][site]
            inputs = SiteInput(_transform(described["transform"]), _quantizer(described["quantizer"]), len(names))
            for name in names:
                linear = data["linears"][name]
                rows, n = linear["shape"]
                if (rows, n) != tuple(layer.get_submodule(name).weight.shape):  # type: ignore[arg-type]
                    raise ValueError(f"{name} has shape {(rows, n)}, config.json makes another")
                bias = torch.empty(rows, dtype=dtype, device="meta") if linear["bias"] else None
                weight = empty_weight(format_from(linear["format"]), rows, n)
                packed = PackedLinear(inputs, weight, bias, owns_inputs=name == names[0])
                replace_linear(layer, name, packed)
        if data["attention"] is not None:
            described = data["attention"]
            quantizers = (_quantizer(described[name]) for name in ("queries", "keys", "values"))
            set_attention_input(family, layer, AttentionInput(_transform(described["transform"]), *quantizers))
        fuse(family, layer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the quantization_config of the checkpoint cannot be used ({type(error).__name__}: {error}): it is "
            "damaged or belongs to another model or version"
        ) from error


def guard_of(family: Family) -> dict[str, Tensor]:
    """A tensor by its name in the first layer, which a file holds beside those of the layer: a `weight` of one number.

    Without this package transformers only warns about an unknown quantization and about missing weights, and returns a
    model with random ones. A tensor whose name it knows and whose shape is wrong makes it raise.
    """
    return {f"{family.linears['qkv'][0]}.{_GUARD}": torch.zeros(1)}


def expect_guard(family: Family, layer: nn.Module) -> None:
    """Give the first layer of a model that transformers is about to fill a place for what `guard_of` made."""
    ((name, tensor),) = guard_of(family).items()
    first = layer.get_submodule(name.removesuffix(f".{_GUARD}"))
    assert isinstance(first, PackedLinear)
    first.register_buffer(_GUARD, tensor.to(first.weight_packed.device))


def empty_weight(format: Format, rows: int, n: int) -> QTensor:
    """A packed weight (rows, n) on the meta device, for a file to fill."""
    scale = torch.empty((1, 1) if format.tensor else (rows, format.groups(n)), device="meta")
    zero = torch.empty_like(scale) if format.element.has_zero else None
    second = torch.empty((), device="meta") if format.second else None
    size = (rows, packed_size(n, format.bits))
    stored = torch.empty(scale.shape, dtype=format.scale.dtype, device="meta")
    return QTensor(format, torch.empty(size, dtype=torch.uint8, device="meta"), stored, zero, second, n)


def format_data(format: Format) -> dict[str, Any]:
    """A format in a file: a registered one by its name, an integer by its bits, scheme and group."""
    if format == integer(format.bits, format.grid or "symmetric", format.group):
        return {"bits": format.bits, "scheme": format.grid, "group": format.group}
    return {"name": format.name}


def format_from(data: Mapping[str, Any]) -> Format:
    """The format that `format_data` wrote; QuantizationError for an unknown name or integers that do not exist."""
    return named(data["name"]) if "name" in data else integer(data["bits"], data["scheme"], data["group"])


def _transform_data(transform: Transform | None) -> dict[str, Any] | None:
    return None if transform is None else describe(transform)


def _quantizer_data(quantizer: object) -> dict[str, Any] | None:
    if quantizer is None:
        return None
    assert isinstance(quantizer, ActivationQuantizer)
    data = {"format": format_data(quantizer.format), "clip": quantizer.clip, "candidates": quantizer.candidates}
    return data if quantizer.peak is None else {**data, "peak": quantizer.peak}


def _quantizer(data: Mapping[str, Any] | None) -> ActivationQuantizer | None:
    if data is None:
        return None
    clip = data["clip"]
    clip = tuple(clip) if isinstance(clip, list) else clip
    return ActivationQuantizer(format_from(data["format"]), clip, data["candidates"], data.get("peak"))


def _transform(data: dict[str, Any] | None) -> Any:
    return None if data is None else empty_transform(data)
