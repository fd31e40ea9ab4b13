"""Small random checkpoints, quantized and written as packed folders."""

from __future__ import annotations

from pathlib import Path

import torch
from models.checkpoints import SIZES
from quantizers import activation_quantizer, rounder, weight_quantizer
from recipes import folded
from torch import Tensor

from sq.checkpoint.packed_folder import CheckpointWriter
from sq.models.stream import DecoderStream
from sq.quantize.method import Method
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe

METHOD = folded(order=("orthogonal", "urt"), rank=3)


def ids_of(count: int = 4, length: int = 12) -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (count, length), generator=torch.Generator().manual_seed(0))


def recipe_of(head_dim: int, bits: int = 4) -> Recipe:
    cache = activation_quantizer(4, "asymmetric", group_size=head_dim)
    weights = rounder("rtn", weight_quantizer(bits))
    return Recipe(weights, activation_quantizer(4, "midrise", clip="search"), keys=cache, values=cache)


def write(
    original: Path, folder: Path, method: Method = METHOD, *, stop: int | None = None, bits: int = 4, run: str = "a"
) -> Path:
    """Quantize a checkpoint to `folder`; `stop` ends it after so many layers, as a kill would."""
    stream = DecoderStream(original, dtype=torch.float32)
    writer = CheckpointWriter(folder, stream.config, {"method": "test", "bits": bits}, f"{run}{bits}")

    def saved(index: int) -> tuple[torch.nn.Module, object] | None:
        return writer.read_layer(index, stream.meta_layer(index)) if writer.has(index) else None

    recipe = recipe_of(stream.dimensions.head_dim, bits)
    pipeline = Pipeline(stream, method, recipe, ids_of(), batch=2, packed=True, saved=saved)
    pipeline.prepare()
    for index, layer in enumerate(pipeline.layers()):
        if index == stop:
            return folder
        if not writer.has(index):
            writer.write_layer(index, layer, pipeline.layer_report)
    return writer.finish(pipeline.embeddings_and_head)
