"""Prefill and decode as explicit loops over `model(...)`: launched call by call, or replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

Replay = Callable[[], None]


def new_cache(model: PreTrainedModel) -> Cache:
    """An empty cache of keys and values that grows, as `generate` makes it."""
    return DynamicCache(config=model.config)


class Runner(Protocol):
    """One model with what it needs to be timed at one batch size."""

    def prefill(self, ids: Tensor) -> Tensor:
        """Run prompts (B, P); the last position's logits (B, 1, vocab)."""

    def rewind(self) -> None:
        """Make ready to decode behind the prompt; not timed."""

    def decode(self, ids: Tensor) -> Tensor:
        """Run tokens (B, N) one by one behind the prompt; the last one's logits (B, 1, vocab)."""


class EagerRunner:
    """Call by call, with a cache that grows. `rewind` keeps what the last prefill left.

    Args:
        model: to be timed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.cache: Cache | None = None

    def prefill(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        self.cache = new_cache(self.model)
        return _logits(self.model, ids, self.cache)

    def rewind(self) -> None:
        """See `Runner`."""

    def decode(self, ids: Tensor) -> Tensor:
        """See `Runner`; the cache is released at the end."""
        assert self.cache is not None
        for token in ids.split(1, dim=1):
            logits = _logits(self.model, token, self.cache)
        self.cache = None
        return logits


class GraphRunner:
    """Two graphs: the prompt with a growing cache, and one token with a static cache, replayed for each.

    A static cache is masked to its whole length, which costs a prompt the fast causal attention; so the graph of the
    prompt has its own, and the static one is filled here, once, with the same prompts.

    Args:
        model: to be timed, on CUDA.
        ids: prompts (B, P) that are decoded behind.
        length: tokens a sequence in all.
        capture: function -> what replays it, calling `before` ahead of each call; tests on a CPU give their own.

    Raises:
        RuntimeError: a call that a graph cannot hold, such as one that waits for the device.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids: Tensor,
        length: int,
        capture: Callable[[Replay, Replay], Replay] | None = None,
    ) -> None:
        capture = captured if capture is None else capture
        self.model, self.prompt = model, ids.shape[1]
        self.ids, self.token = ids.clone(), ids[:, :1].clone()
        self.cache = StaticCache(config=model.config, max_cache_len=length)
        self.logits = _logits(model, ids, self.cache)
        self._prefill = capture(self._run_prompt, lambda: None)
        self._decode = capture(self._run_token, self.rewind)

    def prefill(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        self.ids.copy_(ids)
        self._prefill()
        return self.prompt_logits

    def rewind(self) -> None:
        """See `Runner`."""
        for layer in self.cache.layers:
            length: Any = layer.cumulative_length  # type: ignore[union-attr]  # a tensor in every static layer
            length.fill_(self.prompt)

    def decode(self, ids: Tensor) -> Tensor:
        """See `Runner`."""
        for token in ids.split(1, dim=1):
            self.token.copy_(token)
            self._decode()
        return self.logits

    def _run_prompt(self) -> None:
        self.prompt_logits = _logits(self.model, self.ids, new_cache(self.model))

    def _run_token(self) -> None:
        self.logits = _logits(self.model, self.token, self.cache)


def captured(function: Replay, before: Replay) -> Replay:
    """A CUDA graph of one call, behind calls that tune kernels and make workspaces; returns what replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # as torch's documentation of graphs asks
            before()
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    replay: Replay = graph.replay
    return replay


def _logits(model: PreTrainedModel, ids: Tensor, cache: Cache) -> Tensor:
    logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits
