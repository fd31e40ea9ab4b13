"""What the full-precision model makes of the evaluation texts, kept for the next run of the same process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from torch import Tensor

from sq.models.stream import DecoderStream

# Bytes kept in host memory at the most. 64 windows of the embedded model are 17 MB, WikiText2 through a 7B model in
# bfloat16 2.8 GB; the reference is half of an evaluation's forwards.
LIMIT = 2**32

_kept: OrderedDict[Hashable, list[Tensor]] = OrderedDict()


def kept_states(stream: DecoderStream, ids: Sequence[Tensor]) -> list[Tensor] | None:
    """Hidden states behind the last layer, one tensor (B, S, hidden) a batch of ids, or None if they are not kept."""
    key = _key(stream, ids)
    if key not in _kept:
        return None
    _kept.move_to_end(key)
    return list(_kept[key])


def keep_states(stream: DecoderStream, ids: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    """Keep them, in host memory; the oldest make room. Nothing is kept that is larger than `LIMIT`."""
    size = sum(state.nbytes for state in states)
    if size > LIMIT:
        return
    while _kept and size + sum(state.nbytes for kept in _kept.values() for state in kept) > LIMIT:
        _kept.popitem(last=False)
    _kept[_key(stream, ids)] = [state.cpu() for state in states]


def _key(stream: DecoderStream, ids: Sequence[Tensor]) -> Hashable:
    """The checkpoint as it is now, how it is computed, and the tokens."""
    tokens = tuple((tuple(part.shape), part.cpu().numpy().tobytes()) for part in ids)
    model = (stream.name, stream.source.fingerprint(), stream.config.to_json_string(use_diff=False))
    return *model, str(stream.dtype), str(stream.device), tokens
