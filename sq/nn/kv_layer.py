"""One layer's keys and values as int4 codes, and attention over them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sq.errors import QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.kernels.coded import Coded
from sq.kernels.kv4_attention import Kv4Cache, dequantized, kv4_append, kv4_attention, kv4_cache
from sq.models.attention import HeldKeys
from sq.nn.attention import AttentionInput
from sq.nn.mask_runs import MaskRuns, causal
from sq.nn.site_input import scheme_of

_LEAST_ROOM = 64  # positions that a growing cache adds at least


class Int4Layer(CacheLayerMixin):
    """One layer of an `Int4Cache` (sq/nn/kv_cache.py).

    Attributes:
        arrays: codes, scales and zeros; None before the first token.
        position: (B,) int64 on the device: positions that are filled.
        count: the same number where Python counts it (at least it, where a CUDA graph is replayed).
    """

    is_croppable = True
    is_sliding = False

    def __init__(self, source: AttentionInput, runs: MaskRuns, capacity: int | None, most: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        assert isinstance(source.keys, ActivationQuantizer)
        self.source, self.runs, self.capacity, self.most = source, runs, capacity, most
        self.scheme = scheme_of(source.keys.format)
        self.clips, self.include_zero = source.keys.clips, source.keys.format.include_zero
        self.arrays: Kv4Cache | None = None
        self.position: Tensor | None = None
        self.count = 0
        self.empty = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for the shapes (B, H_kv, N, head_dim) of the first tokens."""
        batch, kv_heads, tokens, head_dim = key_states.shape
        room = self.capacity or self._room(max(tokens, 1))
        device = key_states.device
        self.arrays = kv4_cache(batch, kv_heads, room, head_dim, self.scheme, device, include_zero=self.include_zero)
        self.position = torch.zeros(batch, dtype=torch.int64, device=device)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """Round and hold keys (behind RoPE) and values (B, H_kv, N, head_dim)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.arrays is not None
        assert self.position is not None
        tokens, room = key_states.shape[2], self.arrays.keys.scale.shape[2]
        if self.count + tokens > room:
            if self.capacity is not None:
                held = f"the cache holds {self.count} of {self.capacity} positions and {tokens} more are to come"
                raise QuantizationError(f"{held}: make it with a larger capacity")
            self._grow(self._room(self.count + tokens))
        first, key = self.empty, self.source.transform_keys(key_states)
        kv4_append(self.arrays, key, value_states, self.position, clip=self.clips)
        self.position.add_(tokens)
        self.count, self.empty = self.count + tokens, False
        return _Held(self, key, value_states, first), value_states

    def dequantized(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H_kv, S, head_dim) as plain attention rounds them; S is the filled positions, or a
        fixed capacity with zeros where no token is."""
        assert self.arrays is not None
        assert self.position is not None
        shown = self.arrays if self.capacity is not None else _each(self.arrays, lambda part: part[:, :, : self.count])
        # in float32, and rounded to dtype at the end, as ActivationQuantizer does
        keys, values = (dequantized(side, shown.scheme).to(dtype) for side in (shown.keys, shown.values))
        if self.capacity is not None:  # a mask does not hide the NaN of a token that was cropped
            beyond = torch.arange(self.capacity, device=keys.device) >= self.position[:, None]
            keys, values = (side.masked_fill_(beyond[:, None, :, None], 0) for side in (keys, values))
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Positions that a mask for new tokens must cover, and where they begin."""
        return self.capacity or self.count + query_length, 0

    def get_seq_length(self) -> int:
        """Filled positions; with a fixed capacity a tensor on the device once there are any."""
        if self.capacity is None or self.position is None:
            return self.count
        length: Any = self.position[0]  # of StaticCache's kind, which transformers types as int
        return length  # type: ignore[no-any-return]

    def get_max_length(self) -> int:
        """The capacity, -1 without one."""
        return self.capacity or -1

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        if self.arrays is None:
            return 0
        return sum(part.nbytes for side in (self.arrays.keys, self.arrays.values) for part in side if part is not None)

    def reset(self) -> None:
        """Forget all tokens; the arrays of a fixed capacity stay where they are, others are freed."""
        self.count, self.empty = 0, True
        if self.capacity is None:
            self.arrays, self.position, self.is_initialized = None, None, False
        elif self.arrays is not None and self.position is not None:
            self.position.zero_()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove tokens; QuantizationError for a positive number, which transformers once
        took as the length to keep."""
        if tokens_to_remove > 0:
            raise QuantizationError(f"crop({tokens_to_remove}): give the tokens to remove as a negative number")
        if self.position is None or tokens_to_remove == 0:
            return
        self.position.add_(tokens_to_remove).clamp_min_(0)
        self._counted(max(self.count + tokens_to_remove, 0))

    def rewind(self, positions: int) -> None:
        """Forget all tokens behind the first `positions`."""
        if self.position is not None:
            self.position.clamp_max_(positions)
            self._counted(min(self.count, positions))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b becomes row beam_idx[b]."""
        if self.capacity is None:
            self.batch_select_indices(beam_idx)
        elif self.arrays is not None:  # in place: addresses stay
            _each(self.arrays, lambda part: part.copy_(part.index_select(0, beam_idx.to(part.device))))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self._rows(lambda part: part.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in their order."""
        self._rows(lambda part: part[indices.to(part.device)])

    def __deepcopy__(self, memo: dict[int, Any]) -> Int4Layer:
        """A copy of keys and values; quantizers and transforms stay the model's."""
        memo[id(self.source)] = self.source
        made = copy.copy(self)
        made.__dict__ = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()}
        return made

    def _counted(self, count: int) -> None:
        # with a fixed capacity Python may not have counted every token, and only `reset` makes sure that there are none
        self.count, self.empty = count, self.capacity is None and count == 0

    def _rows(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.arrays is not None and self.position is not None:
            self.arrays, self.position = _each(self.arrays, function), function(self.position)

    def _room(self, needed: int) -> int:
        room = needed + max(_LEAST_ROOM, needed // 4)
        return room if self.most is None else max(needed, min(room, self.most))

    def _grow(self, room: int) -> None:
        def grown(part: Tensor) -> Tensor:
            larger = part.new_zeros((*part.shape[:2], room, *part.shape[3:]))
            larger[:, :, : self.count] = part[:, :, : self.count]
            return larger

        assert self.arrays is not None
        self.arrays = _each(self.arrays, grown)


@dataclass(eq=False)
class _Held(HeldKeys):
    """New keys, transformed, and values beside all of their layer, themselves included; for one call of attention."""

    layer: Int4Layer
    key: Tensor
    value: Tensor
    first: bool  # the cache was empty before

    def attend(self, module: nn.Module, query: Tensor, attention_mask: Tensor | None, **arguments: Any) -> Tensor:
        layer, tokens = self.layer, self.key.shape[2]
        assert layer.arrays is not None
        assert layer.position is not None
        query = layer.source.round_queries(query, self.key.shape[1])
        if self.first:
            keys, values = layer.source.round_keys_and_values(self.key, self.value)
            attention_mask = None if attention_mask is None else attention_mask[..., :tokens]
        else:
            decodes = tokens == 1 and query.dtype != torch.float64 and not arguments.get("dropout")
            run = layer.runs.of(attention_mask, layer.position) if decodes else None
            if run is not None:
                one, scale = query[:, :, 0], arguments.get("scaling")
                return kv4_attention(one, layer.arrays, run.ends, starts=run.starts, scale=scale)[:, None]
            keys, values = layer.dequantized(query.dtype)
            if attention_mask is None:
                attention_mask = causal(layer.position, tokens, keys.shape[2])
        attended: Tensor = sdpa_attention_forward(module, query, keys, values, attention_mask, **arguments)[0]
        return attended


def _each(arrays: Kv4Cache, function: Callable[[Tensor], Tensor]) -> Kv4Cache:
    """A function of every array, whose first axes are B, H_kv and positions."""
    keys, values = (
        Coded(function(side.codes), function(side.scale), None if side.zero is None else function(side.zero))
        for side in (arrays.keys, arrays.values)
    )
    return arrays._replace(keys=keys, values=values)
