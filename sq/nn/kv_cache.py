"""A transformers cache that keeps keys and values as int4 codes: the very ones that plain attention rounds to."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedModel

from sq.errors import QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.kernels.kv4_attention import obstacle
from sq.models.attention import ATTENTION
from sq.models.families import FAMILIES, ModelDimensions, family_of
from sq.nn.hooks import attention_input
from sq.nn.kv_layer import Int4Layer
from sq.nn.mask_runs import MaskRuns


class Int4Cache(Cache):
    """Keys (behind RoPE and the layer's transform) and values in 4 bits, for a model that rounds both to 4 bits.

    `generate` makes one by itself (sq/nn/generation.py); to keep it, or to share a prompt, pass your own:

        >>> cache = sq.Int4Cache(model)
        >>> model.generate(**inputs, cache=cache)  # past_key_values=cache before transformers 5.24

    A prompt on an empty cache attends with the keys and values it has just rounded. One token on a filled cache attends
    to the codes (sq/kernels/kv4_attention: Triton on CUDA, torch elsewhere) wherever its mask shows one run of
    positions a row: all, all behind left padding, a sliding window. Everything else, and float64, which the kernel does
    not compute in, reads the codes back and takes SDPA with the mask. Layers with a sliding window keep every position
    and leave it to the mask: any crop can be undone, and a text longer than 3.7 windows costs more than in bfloat16.
    Gradients do not pass.

    With a capacity the arrays are made once and never move, and a step of one token can be captured in a CUDA graph:
    positions are counted on the device (`get_seq_length` is a tensor there, as StaticCache's), nothing waits for the
    GPU, and a replayed step goes to the next position. Run the prompt and one step outside of the graph first, and pass
    either no attention mask or a bool one (B, 1, 1, capacity) of one run a row: transformers reads a 2-D mask on the
    host. What Python does not run it does not count: a GPU drops replayed tokens beyond the capacity. `crop`, `rewind`,
    `reset` and `reorder_cache` keep all addresses, other operations on the batch do not.

    Args:
        model: whose layers' quantizers and transforms are used; they are shared, not copied.
        capacity: positions, if fixed. None grows by a quarter at a time.
        most: a growing cache makes no room beyond it before it is needed.

    Raises:
        QuantizationError: the model's keys or values are not on grids that the cache has (`int4_obstacle`); later, more
            than `capacity` tokens.
    """

    def __init__(self, model: PreTrainedModel, *, capacity: int | None = None, most: int | None = None) -> None:
        if (reason := int4_obstacle(model)) is not None:
            raise QuantizationError(f"keys and values cannot be kept in int4: {reason}. Use transformers' DynamicCache")
        if capacity is not None and capacity < 1:
            raise QuantizationError(f"capacity is {capacity}; use the most positions there will be, or None to grow")
        self._runs = MaskRuns(checked=capacity is None)
        super().__init__(layers=[Int4Layer(found, self._runs, capacity, most) for found in _inputs(model)])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Tensor]:
        """Hold new keys and values; returns what attends to them all, and the values."""
        if layer_idx == 0:
            self._runs.forget()
        found: tuple[Any, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return found

    def rewind(self, positions: int) -> None:
        """Forget all tokens behind the first `positions`, those of replayed graphs too."""
        for layer in self.layers:
            assert isinstance(layer, Int4Layer)
            layer.rewind(positions)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, room for tokens to come included."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, Int4Layer))


def int4_obstacle(model: PreTrainedModel) -> str | None:
    """Why a model's keys and values cannot be kept in int4, None if they can.

    Both must be rounded to 4 bits, a whole head on one grid, with the same scheme and clip.
    """
    if model.config.model_type not in FAMILIES or model.config._attn_implementation != ATTENTION:
        return f"attention is {model.config._attn_implementation!r}, not {ATTENTION!r}: it was not quantized here"
    head_dim = ModelDimensions.of(model.config).head_dim
    for index, found in enumerate(_inputs(model)):
        keys, values = (getattr(found, name, None) for name in ("keys", "values"))
        if not (isinstance(keys, ActivationQuantizer) and isinstance(values, ActivationQuantizer)):
            return f"layer {index} leaves keys or values in 16 bits"
        if (reason := obstacle(keys.format, values.format, head_dim)) is not None:
            return f"layer {index}: {reason}"
        if keys.clips != values.clips or isinstance(keys.clip, tuple):
            return f"layer {index} rounds keys with clip={keys.clip}, values with clip={values.clip}"
    return None


def _inputs(model: PreTrainedModel) -> list[Any]:
    family = family_of(model.config)
    layers = (model.get_submodule(f"{family.layers}.{index}") for index in range(model.config.num_hidden_layers))
    return [attention_input(family, layer) for layer in layers]
