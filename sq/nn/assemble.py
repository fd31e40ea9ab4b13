"""A whole model in memory from its quantized layers."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from sq.models.stream import DecoderStream, EmbeddingsAndHead
from sq.nn.generation import generate_in_int4


def assemble(stream: DecoderStream, layers: list[nn.Module], outer: EmbeddingsAndHead) -> PreTrainedModel:
    """The model of `DecoderStream.assemble`, whose `generate` keeps 4-bit keys and values as int4."""
    model = stream.assemble(layers, outer)
    generate_in_int4(model)
    return model
