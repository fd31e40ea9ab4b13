"""A model with packed layers as plain data, and the empty modules that such data describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from sq.errors import CheckpointError
from sq.formats.activation import ActivationQuantizer
from sq.formats.grid import code_dtype
from sq.formats.weight import QuantizedWeight
from sq.models.families import Family
from sq.nn.attention import AttentionInput
from sq.nn.fuse import fuse
from sq.nn.linear import PackedLinear
from sq.nn.parts import replace_linear
from sq.nn.site_input import SiteInput
from sq.rotation.serialize import describe, empty_transform

GUARD = "weight"  # of the first linear: see `guard`


@dataclass(frozen=True)
class LinearData:
    """Shape and integers of one packed linear."""

    shape: tuple[int, int]
    bits: int
    scheme: str
    group_size: int | None
    bias: bool


def describe_layer(family: Family, layer: nn.Module) -> dict[str, Any]:
    """JSON-ready: linears, the transforms and quantizers in front of them, and those inside attention."""
    linears: dict[str, Any] = {}
    sites: dict[str, Any] = {}
    for site, names in family.linears.items():
        for name in names:
            linear = layer.get_submodule(name)
            if not isinstance(linear, PackedLinear):
                raise CheckpointError(
                    f"{name} is a {type(linear).__name__}, not a PackedLinear: weights of 8 bits or fewer can be packed"
                )
            shape = (linear.out_features, linear.in_features)
            bias = linear.bias is not None
            linears[name] = asdict(LinearData(shape, linear.bits, linear.scheme, linear.group_size, bias))
        assert isinstance(linear, PackedLinear)
        inputs = linear.inputs
        sites[site] = {
            "transform": None if inputs.transform is None else describe(inputs.transform),
            "quantizer": _quantizer_data(inputs.quantizer),
        }
    found = getattr(layer.get_submodule(family.attention), "attention_input", None)
    attention = None
    if isinstance(found, AttentionInput):
        attention = {
            "transform": None if found.transform is None else describe(found.transform),
            **{name: _quantizer_data(getattr(found, name)) for name in ("queries", "keys", "values")},
        }
    return {"linears": linears, "sites": sites, "attention": attention}


def empty_layer(family: Family, layer: nn.Module, data: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Give a decoder layer's skeleton the modules that `describe_layer` told of, empty, on the meta device.

    Raises:
        CheckpointError: the data is damaged, or tells of other linears than the family has.
    """
    try:
        for site, names in family.linears.items():
            told = data["sites"][site]
            inputs = SiteInput(_transform(told["transform"]), _quantizer(told["quantizer"]), len(names))
            for name in names:
                linear = LinearData(**data["linears"][name])
                if tuple(linear.shape) != tuple(layer.get_submodule(name).weight.shape):  # type: ignore[arg-type]
                    raise ValueError(f"{name} has shape {tuple(linear.shape)}, config.json makes another")
                bias = torch.empty(linear.shape[0], dtype=dtype, device="meta") if linear.bias else None
                packed = PackedLinear(inputs, _empty_weight(linear), bias, owns_inputs=name == names[0])
                replace_linear(layer, name, packed)
        if data["attention"] is not None:
            told = data["attention"]
            quantizers = (_quantizer(told[name]) for name in ("queries", "keys", "values"))
            layer.get_submodule(family.attention).attention_input = AttentionInput(
                _transform(told["transform"]), *quantizers
            )
        fuse(family, layer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the quantization_config of the checkpoint cannot be used ({type(error).__name__}: {error}): it is "
            "damaged or belongs to another model or version"
        ) from error


def guard(family: Family, layer: nn.Module) -> None:
    """Give the first linear a `weight` of one number.

    Without this package transformers only warns about an unknown quantization and about missing weights, and returns a
    model with random ones. A tensor whose name it knows and whose shape is wrong makes it raise.
    """
    first = layer.get_submodule(family.linears["qkv"][0])
    assert isinstance(first, PackedLinear)
    device = first.weight_packed.device
    first.register_buffer(GUARD, torch.zeros(1, device=device))


def _empty_weight(linear: LinearData) -> QuantizedWeight:
    rows, n = linear.shape
    groups = 1 if linear.group_size is None else n // linear.group_size
    scale = torch.empty(rows, groups, device="meta")
    zero = torch.empty_like(scale) if linear.scheme == "asymmetric" else None
    scheme: Any = linear.scheme
    codes = torch.empty(rows, n, dtype=code_dtype(scheme), device="meta")
    return QuantizedWeight(codes, scale, zero, linear.bits, scheme, linear.group_size)


def _quantizer_data(quantizer: object) -> dict[str, Any] | None:
    if quantizer is None:
        return None
    assert isinstance(quantizer, ActivationQuantizer)
    names = ("bits", "scheme", "clip", "group_size", "candidates")
    return {name: getattr(quantizer, name) for name in names}


def _quantizer(data: Mapping[str, Any] | None) -> ActivationQuantizer | None:
    if data is None:
        return None
    clip = data["clip"]
    return ActivationQuantizer(**{**data, "clip": tuple(clip) if isinstance(clip, list) else clip})


def _transform(data: dict[str, Any] | None) -> Any:
    return None if data is None else empty_transform(data)
