"""Transforms as plain data: what a checkpoint's config says of them, while their factors are tensors of its weights."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from sq.errors import CheckpointError
from sq.rotation.transform import Transform

_PLAIN = (bool, int, float, str, type(None))
_MODULE_ATTRIBUTES = {*vars(nn.Module()), "_is_hf_initialized"}  # transformers marks with the last what it filled


def describe(transform: Transform) -> dict[str, Any]:
    """JSON-ready: class, plain attributes, shapes and dtypes of the factors, and the parts of a composition."""
    own = {key: value for key, value in vars(transform).items() if key not in _MODULE_ATTRIBUTES}
    factors = {
        name: [str(buffer.dtype).removeprefix("torch."), list(buffer.shape)]
        for name, buffer in transform.named_buffers(recurse=False)
    }
    kind = type(transform)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "attributes": {key: value for key, value in own.items() if _is_plain(value)},
        "factors": factors,
        "parts": [describe(part) for part in getattr(transform, "transforms", ())],
    }


def empty_transform(description: dict[str, Any], device: torch.device | str = "meta") -> Transform:
    """The transform of a description, its factors without values; CheckpointError for one that cannot be built."""
    try:
        module, _, name = str(description["class"]).rpartition(".")
        if not module.startswith("sq."):
            raise ImportError(f"{module} is not a module of this package")
        kind = getattr(import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, Transform)):
            raise ImportError(f"{name} is not a transform")
        made: Transform = kind.__new__(kind)
        nn.Module.__init__(made)
        made._casts = {}
        for key, value in description["attributes"].items():
            setattr(made, key, value)
        for key, (dtype, shape) in description["factors"].items():
            made.register_buffer(key, torch.empty(shape, dtype=getattr(torch, dtype), device=device))
        if description["parts"]:
            made.transforms = nn.ModuleList(empty_transform(part, device) for part in description["parts"])
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"the checkpoint describes a transform that cannot be built ({type(error).__name__}: {error}): it was "
            "written by another version of this package, or its config.json is damaged"
        ) from error
    return made


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(item, _PLAIN) for item in items)
