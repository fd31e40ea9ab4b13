"""Prefill and decode as explicit loops over `model(...)`: launched call by call, or replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from sq.nn.generation import cache_argument
from sq.nn.kv_cache import Int4Cache

Replay = Callable[[], None]


def new_cache(model: PreTrainedModel, length: int, *, int4: bool) -> Cache:
    """An empty cache of keys and values that grows, as `generate` makes it; for `length` tokens in the end."""
    return Int4Cache(model, most=length) if int4 else DynamicCache(config=model.config)


class Runner(Protocol):
    """One model with what it needs to be timed at one batch size."""

    def rewind(self, positions: int) -> None:
        """Make ready for a prompt (0), or to decode behind the last one (P); not timed."""

    def prefill(self, ids: Tensor) -> Tensor:
        """Run prompts (B, P); the last position's logits (B, 1, vocab)."""

    def decode(self, ids: Tensor) -> Tensor:
        """Run tokens (B, N) one by one behind the prompt; the last one's logits (B, 1, vocab)."""


class EagerRunner:
    """Call by call, with a cache that grows, for `length` tokens a sequence in all; `int4` is the cache's format."""

    def __init__(self, model: PreTrainedModel, length: int, *, int4: bool = False) -> None:
        self.model, self.length, self.int4 = model, length, int4
        self.cache: Cache | None = None

    def rewind(self, positions: int) -> None:
        """See `Runner`; the prompt's keys and values stay in the cache."""
        if positions == 0:
            self.cache = new_cache(self.model, self.length, int4=self.int4)

    def prefill(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        assert self.cache is not None
        return _logits(self.model, ids, self.cache)

    def decode(self, ids: Tensor) -> Tensor:
        """See `Runner`; the cache is released at the end."""
        assert self.cache is not None
        for token in ids.split(1, dim=1):
            logits = _logits(self.model, token, self.cache)
        self.cache = None
        return logits


class GraphRunner:
    """Two graphs: one of the prompt, one of a token behind it, replayed for each.

    A cache of fixed length, which a replayed token needs, is masked to its whole length, and that costs a prompt the
    fast causal attention. So the graph of the prompt has a growing cache, and the fixed one is filled once, here, with
    the same prompts.

    `ids` are the prompts (B, P) that are decoded behind, `length` and `int4` as in `EagerRunner`; tests on a CPU give
    their own `capture`. RuntimeError is raised for a call that a graph cannot hold, such as one that waits for the
    device.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids: Tensor,
        length: int,
        *,
        int4: bool = False,
        capture: Callable[[Replay, Replay], Replay] | None = None,
    ) -> None:
        capture = capture or captured
        self.model, self.length, self.int4, self.prompt = model, length, int4, ids.shape[1]
        self.ids, self.token = ids.clone(), ids[:, :1].clone()
        self.fixed: Int4Cache | StaticCache
        self.fixed = (
            Int4Cache(model, capacity=length) if int4 else StaticCache(config=model.config, max_cache_len=length)
        )
        self.logits = _logits(model, ids, self.fixed)
        self._prefill = capture(self._run_prompt, lambda: None)
        self._decode = capture(self._run_token, lambda: self.rewind(self.prompt))

    def rewind(self, positions: int) -> None:
        """See `Runner`; the fixed cache goes back to the prompt that it holds."""
        if isinstance(self.fixed, Int4Cache):
            self.fixed.rewind(self.prompt)
            return
        for layer in self.fixed.layers:
            length: Any = layer.cumulative_length  # type: ignore[union-attr]  # a tensor in every static layer
            length.fill_(self.prompt)

    def prefill(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        self.ids.copy_(ids)
        self._prefill()
        return self.prompt_logits

    def decode(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        for token in ids.split(1, dim=1):
            self.token.copy_(token)
            self._decode()
        return self.logits

    def _run_prompt(self) -> None:
        cache = new_cache(self.model, self.length, int4=self.int4)
        self.prompt_logits = _logits(self.model, self.ids, cache)

    def _run_token(self) -> None:
        self.logits = _logits(self.model, self.token, self.fixed)


def captured(function: Replay, before: Replay) -> Replay:
    """A CUDA graph of one call of `function`, after three that tune kernels and make workspaces: what replays it.

    `before` is called ahead of each call.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # as torch's documentation of graphs asks
            before()
            function()
    torch.cuda.current_stream().wait_stream(side)
    before()  # what Python counts must be as it is ahead of a replay
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    replay: Replay = graph.replay
    return replay


def _logits(model: PreTrainedModel, ids: Tensor, cache: Cache) -> Tensor:
    given = {cache_argument(type(model).forward): cache}
    logits: Tensor = model(input_ids=ids, use_cache=True, logits_to_keep=1, **given).logits
    return logits
