"""Weights of a GGUF file, read tensor by tensor and dequantized when they are asked for."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from importlib.util import find_spec
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sq.digest import stat_of
from sq.errors import CheckpointError
from sq.models.families import Family, ModelDimensions, family_of
from sq.models.gguf_config import ROPE_FREQUENCIES, architecture_of
from sq.models.gguf_header import GgufHeader, read_header, truncated
from sq.models.random_source import config_of
from sq.models.source import refuse_non_finite


class GgufSource:
    """Tensors of a GGUF file by the names that transformers has for them; nothing stays resident between reads.

    Files of the `llama` architecture hold rows of q and k in another order, pairs that RoPE turns side by side; they
    come back in transformers' order, halves apart: row (h, i, j) of (heads, head_dim / 2, 2) is row (h, j, i).

    Attributes:
        config: the transformers config that the file's metadata describe.

    Raises:
        CheckpointError: the library gguf is not installed; a truncated or damaged file; an unknown type of tensors,
            architecture or tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if find_spec("gguf") is None:
            raise CheckpointError(f"{self.path} needs the library gguf, which is not installed: `pip install gguf`")
        header = read_header(self.path)
        self.config = config_of(architecture_of(header))
        self._family, self._dimensions = family_of(self.config), ModelDimensions.of(self.config)
        self._tensors = header.tensors
        self._bytes = _sizes(header)
        self._names = _names(header, self._family, self._dimensions.layers)

    def names(self) -> list[str]:
        """Names of all tensors, as in transformers' model."""
        return list(self._names)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Copies of the named tensors in float32, on the CPU; CheckpointError for one that is missing, NaN or inf."""
        found = {}
        for name in names:
            if name not in self._names:
                raise CheckpointError(
                    f"{self.path} has no tensor for {name!r}: the file is incomplete. Fetch it again."
                )
            found[name] = self._read(name)
            refuse_non_finite(name, found[name], self.path)
        return found

    def fingerprint(self) -> Hashable:
        """The file's size, times and inode."""
        return self.path.name, *stat_of(self.path)

    def _read(self, name: str) -> Tensor:
        import gguf
        import numpy as np

        entry = self._tensors[self._names[name]]
        kind = gguf.GGMLQuantizationType(entry.type)
        shape = gguf.quant_shape_to_byte_shape(entry.shape, kind)
        # Mapped for this tensor alone: touched pages count as resident until the map is closed.
        mapped = np.memmap(self.path, np.uint8, "r", offset=entry.start, shape=(self._bytes[self._names[name]],))
        # As a plain array: each slice of a memmap takes a constructor in Python, a third of the time of reading.
        values = np.array(gguf.dequantize(np.asarray(mapped).reshape(shape), kind), dtype=np.float32)
        tensor = torch.from_numpy(values)
        linear = name.rpartition(".")[0].removeprefix(f"{self._family.layers}.").partition(".")[2]
        if linear not in self._family.gguf_interleaved:
            return tensor
        heads = self._dimensions.heads if linear == self._family.linears["qkv"][0] else self._dimensions.kv_heads
        pairs: Tensor = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)


def _names(header: GgufHeader, family: Family, layers: int) -> dict[str, str]:
    """Name in transformers -> name in the file, of all tensors that are there; CheckpointError for unknown ones."""
    parts = {family.embedding: "token_embd", family.final_norm: "output_norm", family.head: "output"}
    for index in range(layers):
        for ours, theirs in family.gguf_names.items():
            parts[f"{family.layers}.{index}.{ours}"] = f"blk.{index}.{theirs}"
    found = {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in parts.items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in header.tensors
    }
    unknown = sorted(set(header.tensors).difference(found.values(), {ROPE_FREQUENCIES}))
    if unknown:
        raise CheckpointError(
            f"{header.path} has {len(unknown)} tensors that {family.model_type!r} models have not, {unknown[0]!r} for "
            "one. This variant of the architecture is not supported; use a folder with the model's safetensors."
        )
    return found


def _sizes(header: GgufHeader) -> dict[str, int]:
    """Bytes of each tensor; CheckpointError for a type that cannot be read, and for tensors behind the file's end."""
    import gguf
    import numpy as np

    known = {}
    for number in {entry.type for entry in header.tensors.values()}:
        try:
            kind = gguf.GGMLQuantizationType(number)
            block, size = gguf.GGML_QUANT_SIZES[kind]
            gguf.dequantize(np.zeros((1, size), dtype=np.uint8), kind)  # whether the library can
        except (ValueError, KeyError, NotImplementedError) as error:
            names = [name for name, entry in header.tensors.items() if entry.type == number]
            raise CheckpointError(
                f"{header.path}: {len(names)} tensors, {names[0]!r} for one, have type {number}, which the library "
                "gguf cannot dequantize: `pip install -U gguf`, or take a file with other types, such as Q8_0"
            ) from error
        known[number] = block, size
    sizes = {}
    for name, entry in header.tensors.items():
        block, size = known[entry.type]
        if not entry.shape or entry.shape[-1] % block:
            raise CheckpointError(
                f"{header.path} has a damaged header: tensor {name!r} has shape {entry.shape}, whose rows are no "
                f"multiple of the {block} entries of a block. Fetch it again."
            )
        sizes[name] = prod(entry.shape) // block * size
        if entry.start + sizes[name] > header.size:
            raise truncated(header.path, f"tensor {name!r} ends at byte {entry.start + sizes[name]}", header.size)
    return sizes
