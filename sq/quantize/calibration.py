"""Calibration windows on their way through a model, one decoder layer at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from sq.models.families import SITES
from sq.models.fold import fold_norm_gains, rotate_residual
from sq.models.stream import DecoderStream, EmbeddingsAndHead
from sq.quantize.collect import collect
from sq.quantize.method import SiteStatistics
from sq.rotation.transform import Transform

LEAST_SAMPLE = 4096  # tokens kept a site; wider models keep as many as their residual stream has channels
WINDOWS = 16  # that a sample is spread over at least: 8 of 32 cost 2.5% of the criterion J on SmolLM2, 16 of them 0.4%
RESIDUAL_SAMPLE = 1024  # tokens a site and layer kept for a residual rotation: 64 sites of 7B stay under 1.1 GB


class Calibration:
    """Forwards of calibration windows, and layers prepared for them.

    Args:
        stream: reads the layers.
        ids: windows (count, window).
        batch: windows a forward.
        sample: tokens a site that statistics keep; None for as many as the residual stream has channels, and at least
            LEAST_SAMPLE.
        fold_norms: whether layers have their norms' gains folded in (`Method.fold_norms`).

    Attributes:
        rotation: of the residual stream, folded into every layer; None until there is one.
    """

    def __init__(self, stream: DecoderStream, ids: Tensor, *, batch: int, sample: int | None, fold_norms: bool) -> None:
        self.stream, self.ids, self.batch, self.fold_norms = stream, ids, batch, fold_norms
        self.sample = sample or max(LEAST_SAMPLE, stream.dimensions.hidden)
        self.rotation: Transform | None = None

    def embedded(self, outer: EmbeddingsAndHead) -> list[Tensor]:
        """The windows as hidden states (B, S, hidden), batch by batch."""
        return [outer.embed(part) for part in self.ids.split(self.batch)]

    def folded(self, layer: nn.Module) -> nn.Module:
        """The layer in at least float32, gains folded and the residual rotated where the method does that."""
        layer = layer.to(torch.promote_types(self.stream.dtype, torch.float32))
        if self.fold_norms:
            fold_norm_gains(self.stream.family, layer)
            if self.rotation is not None:
                rotate_residual(self.stream.family, layer, self.rotation)
        return layer

    def run(self, index: int, layer: nn.Module, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of a layer, computed in its own dtype."""
        dtype = next(layer.parameters()).dtype  # of the norms: linears hold buffers, packed ones integers
        return [self.stream.forward(index, layer, batch.to(dtype)).to(batch.dtype) for batch in hidden]

    def some(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Evenly spaced windows for statistics that keep a sample: of twice its tokens, and at least WINDOWS."""
        count, length = self.ids.shape
        stride = max(1, count // max(WINDOWS, -(-2 * self.sample // length)))
        starts = accumulate((len(batch) for batch in hidden), initial=0)
        parts = [batch[-start % stride :: stride] for start, batch in zip(starts, hidden, strict=False)]
        return [part for part in parts if len(part)]

    def collect(
        self,
        index: int,
        layer: nn.Module,
        hidden: Sequence[Tensor],
        *,
        second_moment: Iterable[str] = (),
        attention: bool = False,
        wants_outputs: bool = True,
    ) -> tuple[dict[str, SiteStatistics], list[Tensor]]:
        """`collect` at every site of a layer, which runs in the model's dtype."""
        running = layer
        if next(layer.parameters()).dtype != self.stream.dtype:
            running = copy.deepcopy(layer).to(self.stream.dtype)
        return collect(
            self.stream.family,
            running,
            lambda batch: self.stream.forward(index, running, batch),
            hidden,
            index=index,
            sites=SITES,
            second_moment=second_moment,
            attention=attention,
            sample=self.sample,
            wants_outputs=wants_outputs,
        )

    def residual_samples(
        self, outer: EmbeddingsAndHead, progress: Callable[[int, int], None]
    ) -> Mapping[str, list[Tensor]]:
        """Normalized tokens at the sites that the residual stream feeds, all layers: one forward of the original.

        Args:
            outer: the model's embeddings.
            progress: is told layers done and layers in all.
        """
        sites, count = tuple(self.stream.family.norms), self.stream.count
        samples: dict[str, list[Tensor]] = {site: [] for site in sites}
        hidden = self.embedded(outer)
        for index in range(count):
            progress(index, count)
            layer = self.folded(self.stream.layer(index)).to(self.stream.dtype)
            found, hidden = collect(
                self.stream.family,
                layer,
                lambda batch, i=index, m=layer: self.stream.forward(i, m, batch),  # type: ignore[misc]
                hidden,
                index=index,
                sites=sites,
                sample=RESIDUAL_SAMPLE,
            )
            for site in sites:
                samples[site].append(found[site].tokens)
        progress(count, count)
        return samples
