"""Transforms as plain data: what a checkpoint's config says of them, while their factors are tensors of its weights."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from sq.errors import CheckpointError
from sq.rotation.transform import Transform

# What a file may name: nothing else is imported. A new kind of transform that packed layers hold goes in here.
CLASSES = frozenset(
    {
        *(f"sq.rotation.transform.{name}" for name in ("Identity", "Diagonal", "Dense", "PerHead", "Compose")),
        "sq.rotation.kronecker.Kronecker",
        "sq.rotation.block_kronecker.BlockKronecker",
        "sq.rotation.block_hadamard.BlockHadamard",
        "sq.rotation.low_rank.LowRank",
        "sq.rotation.hadamard.Hadamard",
        "sq.rotation.permutation.Permutation",
        "sq.baselines.quarot.CrossHead",
        "sq.learn.affine.AffineKronecker",
        "sq.learn.affine.Scaling",
    }
)
DEPTH = 8  # of compositions
DTYPES = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "bool")  # of factors
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


def empty_transform(
    description: dict[str, Any], device: torch.device | str = "meta", *, depth: int = DEPTH
) -> Transform:
    """The transform of a description, its factors without values; CheckpointError for one that cannot be built.

    Only classes of `CLASSES` are made, and only attributes set that their own instances have.
    """
    try:
        if (named := description["class"]) not in CLASSES:
            raise ValueError(f"{named!r} is none of the transforms that a checkpoint may hold")
        if depth < 1:
            raise ValueError(f"more than {DEPTH} compositions inside one another")
        module, _, name = named.rpartition(".")
        kind = getattr(import_module(module), name)
        made: Transform = kind.__new__(kind)
        nn.Module.__init__(made)
        made._casts = {}
        for key, value in description["attributes"].items():
            if hasattr(made, key) or not _is_plain(value):  # a method or a part of torch's module
                raise ValueError(f"{name} has no attribute {key!r} with the value {str(value)[:40]!r}")
            setattr(made, key, value)
        for key, (dtype, shape) in description["factors"].items():
            if dtype not in DTYPES:
                raise ValueError(f"factor {key!r} is {dtype}; allowed: {', '.join(DTYPES)}")
            made.register_buffer(key, torch.empty(shape, dtype=getattr(torch, dtype), device=device))
        if description["parts"]:
            made.transforms = nn.ModuleList(
                empty_transform(part, device, depth=depth - 1) for part in description["parts"]
            )
    except (KeyError, TypeError, ValueError, AttributeError, ImportError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint describes a transform that cannot be built ({type(error).__name__}: {error}): it was "
            "written by another version of this package, or its config.json is damaged"
        ) from error
    return made


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(item, _PLAIN) for item in items)
