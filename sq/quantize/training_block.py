"""One decoder layer to train on: run it with other weights and with quantizers in front of its linears."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sq.models.families import Family, ModelDimensions
from sq.models.parts import bias_of, weight_of
from sq.nn.attention import AttentionInput
from sq.nn.hooks import mapped_sites, with_attention_input
from sq.quantize.recipe import Recipe
from sq.quantize.training_log import TrainingLog


class TrainingBlock:
    """A frozen full-precision layer, the hidden states around it, and the quantizers it will get.

    Nothing here changes the layer: weights are exchanged for one call, hooks live as long as a `with`.

    Args:
        index: of the layer.
        layer: in float32 or float64, its norm gains folded and its residual stream rotated, where the method does that.
        run: (layer, hidden states (B, S, hidden)) -> outputs, masks and rotary embeddings included.
        family, dimensions: names and sizes.
        recipe: all quantizers of the run; they pass gradients straight through.
        inputs: batches of hidden states that the quantized layer will be calibrated on, each (B, S, hidden).
        reference_inputs: the same through the full-precision layers; `inputs` itself unless `reads_reference`.
        log: of the run's training; progress and numbers go there.
    """

    def __init__(
        self,
        index: int,
        layer: nn.Module,
        run: Callable[[Callable[..., Any], Tensor], Tensor],
        family: Family,
        dimensions: ModelDimensions,
        recipe: Recipe,
        inputs: Sequence[Tensor],
        reference_inputs: Sequence[Tensor],
        log: TrainingLog,
    ) -> None:
        self.index, self.layer, self._run = index, layer, run
        self.family, self.dimensions, self.recipe = family, dimensions, recipe
        self.inputs, self.reference_inputs, self.log = inputs, reference_inputs, log
        self._targets: list[Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the layer's parameters, float32 or float64; hidden states are cast to it."""
        return next(self.layer.parameters()).dtype

    def weight(self, name: str) -> Tensor:
        """The weight (d_out, n) of a linear, or the gain of a norm."""
        return weight_of(self.layer, name)

    def bias(self, name: str) -> Tensor | None:
        """The bias (d_out,) of a linear, or None."""
        return bias_of(self.layer, name)

    def outputs(self, hidden: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """The layer's output for `hidden`, both (B, S, hidden), differentiable in `parameters` and `hidden`.

        `parameters`, by full name ("self_attn.q_proj.weight"), stand in for the layer's own weights.
        """
        given = dict(parameters or {})

        def call(x: Tensor, **arguments: Any) -> Tensor:
            out: Tensor = functional_call(self.layer, given, (x,), arguments)
            return out

        return self._run(call, hidden.to(self.dtype))

    @torch.no_grad()
    def targets(self) -> list[Tensor]:
        """Full-precision outputs for `reference_inputs`, computed once."""
        if self._targets is None:
            self._targets = [self.outputs(batch) for batch in self.reference_inputs]
        return self._targets

    @contextmanager
    def quantized(
        self, sites: Mapping[str, Callable[[Tensor], Tensor]], attention: AttentionInput | None = None
    ) -> Iterator[None]:
        """Put a map of its features (..., n) (online transform, then quantizer) in front of each of `sites`, once for
        all its readers, and `attention`, if any, in front of attention. Sites left out are read as they are."""
        with mapped_sites(self.family, self.layer, sites), with_attention_input(self.family, self.layer, attention):
            yield
