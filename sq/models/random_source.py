"""Models with random weights of a named shape: nothing is on disk or downloaded, a layer is drawn when it is read.

They stand in for a checkpoint where only sizes matter, for speed and memory. What they score says nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from sq.errors import CheckpointError
from sq.models.families import FAMILIES

INITIALIZER_RANGE = 0.02  # of transformers, where an architecture says none


class RandomSource:
    """Tensors of an architecture, read by name as from a checkpoint: entries of matrices N(0, initializer_range^2),
    gains 1, biases 0, as transformers initializes.

    A tensor is a function of its name, `seed`, the dtype and the device: the same whenever it is read.

    Args:
        architecture: of `config_of`.
        device: that tensors are drawn on; a GPU draws 70 billion numbers in seconds, a CPU in minutes.
    """

    def __init__(self, architecture: Mapping[str, Any], *, seed: int = 0, device: str | torch.device = "cpu") -> None:
        self.config = config_of(architecture)
        self.seed, self.device = seed, torch.device(device)
        self.dtype: torch.dtype = getattr(self.config, "dtype", None) or torch.float32
        self.std: float = getattr(self.config, "initializer_range", INITIALIZER_RANGE)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(self.config)
        self._shapes = {name: parameter.shape for name, parameter in skeleton.named_parameters()}

    def names(self) -> list[str]:
        """Names of all tensors; a tied head is not one."""
        return list(self._shapes)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors in the config's dtype; CheckpointError for a name that the architecture has not."""
        return {name: self._draw(name) for name in names}

    def fingerprint(self) -> Hashable:
        """The seed; sizes are the config's."""
        return self.seed

    def _draw(self, name: str) -> Tensor:
        shape = self._shapes.get(name)
        if shape is None:
            raise CheckpointError(f"the architecture {self.config.model_type!r} has no tensor {name!r}")
        if len(shape) == 1:
            constant = 0.0 if name.endswith("bias") else 1.0
            return torch.full(shape, constant, dtype=self.dtype, device=self.device)
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        # float32 first: its numbers are drawn in vectors, four times as fast as bfloat16's on a CPU
        drawn = torch.empty(shape, device=self.device).normal_(std=self.std, generator=generator)
        return drawn.to(self.dtype)


def config_of(architecture: Mapping[str, Any]) -> PretrainedConfig:
    """The transformers config of plain data (model_type, hidden_size, ...); CheckpointError if it is refused."""
    sizes = dict(architecture)
    model_type = sizes.pop("model_type", None)
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"model.architecture.model_type is {model_type!r}; supported: {', '.join(FAMILIES)} "
            "(an entry in sq.models.families.FAMILIES)"
        )
    try:
        return AutoConfig.for_model(model_type, **sizes)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"transformers refuses model.architecture: {reason}") from error
