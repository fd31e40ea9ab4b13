"""Small random models whose attention alone is quantized."""

from __future__ import annotations

from pathlib import Path

import torch
from models.checkpoints import SIZES
from quantizers import activation_quantizer
from torch import Tensor
from transformers import PreTrainedModel

from sq.formats.activation import ActivationQuantizer
from sq.methods.yardsticks import RoundToNearest
from sq.models.stream import DecoderStream
from sq.nn.assemble import assemble
from sq.quantize.method import Method
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe


def ids_of(count: int, length: int, seed: int = 0) -> Tensor:
    """Token ids (count, length)."""
    return torch.randint(3, SIZES["vocab_size"], (count, length), generator=torch.Generator().manual_seed(seed))


def quantized(
    folder: Path,
    method: Method | None = None,
    *,
    bits: int = 4,
    queries: bool = False,
    head: ActivationQuantizer | None = None,
    dtype: torch.dtype = torch.float64,
) -> PreTrainedModel:
    """The model of a folder; in float64, unless told otherwise, so that rounding does not hang on the order of sums.

    head: quantizes keys, values and, where asked, queries; asymmetric for each head if None.
    """
    stream = DecoderStream(folder, dtype=dtype)
    head = head or activation_quantizer(bits, "asymmetric", group_size=stream.dimensions.head_dim)
    recipe = Recipe(queries=head if queries else None, keys=head, values=head, propagate="full_precision")
    pipeline = Pipeline(stream, method or RoundToNearest(), recipe, ids_of(2, 16), batch=2)
    pipeline.prepare()
    return assemble(stream, list(pipeline.layers()), pipeline.embeddings_and_head)
