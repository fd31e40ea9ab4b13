"""Rotations of the residual stream and of every layer's heads: learned together, kept in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sq.errors import CheckpointError, FileError
from sq.io import read_safetensors, write_safetensors
from sq.learn.cayley import orthogonality_error
from sq.models.families import ModelDimensions
from sq.rotation import orthonormalize

ORTHOGONAL = 1e-6  # allowed |R^T R - I| of what is put into a model
RESIDUAL, HEAD = "R1", "model.layers.{}.self_attn.R2"  # names in SpinQuant's R.bin


@dataclass(frozen=True)
class Rotations:
    """R1 of the residual stream, (hidden, hidden), and R2 of each layer's heads, (layers, head_dim, head_dim)."""

    residual: Tensor
    heads: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Rotations:
        """Both cast and moved."""
        return Rotations(self.residual.to(device, dtype), self.heads.to(device, dtype))

    def error(self) -> float:
        """Largest entry of |R^T R - I|, in the dtype of the rotations."""
        return max(orthogonality_error(self.residual), orthogonality_error(self.heads))

    def projected(self) -> Rotations:
        """The nearest orthogonal matrices, float64; those that are orthogonal to 1e-12 stay as they are."""
        exact = self.to(torch.float64)
        heads = torch.stack([orthonormalize(head, 1e-12) for head in exact.heads])
        return Rotations(orthonormalize(exact.residual, 1e-12), heads)

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write them, and facts about them as JSON."""
        tensors = {RESIDUAL: self.residual} | {HEAD.format(i): head for i, head in enumerate(self.heads)}
        write_safetensors(path, tensors, {"facts": json.dumps(facts)})


def load_rotations(path: Path, dimensions: ModelDimensions) -> tuple[Rotations, dict[str, Any]]:
    """Rotations of a file, float64 and orthogonal to 1e-12, and the facts saved with them; or CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"there are no rotations at {path}")
    try:
        tensors, words = read_safetensors(path)
    except (OSError, SafetensorError, FileError) as error:
        raise CheckpointError(f"the rotations of {path} cannot be read as safetensors: {error}") from error
    sizes = {RESIDUAL: dimensions.hidden} | {HEAD.format(i): dimensions.head_dim for i in range(dimensions.layers)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [
        f"{name} is {found.get(name, 'missing')}, needed is ({size}, {size})"
        for name, size in sizes.items()
        if found.get(name) != (size, size)
    ]
    wrong += [f"{name} is too much: the model has {dimensions.layers} layers" for name in found if name not in sizes]
    if wrong:
        rest = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"the rotations of {path} are of another model: {'; '.join(wrong[:3])}{rest}")
    heads = torch.stack([tensors[HEAD.format(index)] for index in range(dimensions.layers)])
    rotations = Rotations(tensors[RESIDUAL], heads).to(torch.float64)
    if not rotations.error() < 1e-3:
        raise CheckpointError(
            f"the rotations of {path} are not orthogonal: |R^T R - I| reaches {rotations.error():.1e}, a learned "
            "float32 rotation has about 1e-5"
        )
    return rotations.projected(), json.loads(words.get("facts", "{}"))
