"""Round the weights of one decoder layer, site by site, with what its rounder needs of calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sq.formats.qtensor import QTensor
from sq.models.families import Family
from sq.models.memory import total_memory
from sq.models.parts import weight_of
from sq.nn.hooks import observed
from sq.nn.site_input import SiteInput
from sq.quantize.rounders.hessian import HessianAccumulator
from sq.quantize.rounders.rounder import RoundingStatistics, WeightRounder

# All calibration windows go through a layer at once if so many copies of its widest activations fit this share of the
# device's memory: the residual stream, the two halves of a gated MLP, their product and temporaries.
_COPIES, _SHARE = 6, 0.25


class LayerRounding:
    """Rounds the weights of a layer whose plan is installed, in place.

    Args:
        family, layer, inputs: names, a layer with `QuantizedLinear`s, and its input modules by site.
        rounder: of the run.
        index: of the layer, for messages.
        ranges: linear -> (low, high), see `LayerPlan.weight_ranges`.
    """

    def __init__(
        self,
        family: Family,
        layer: nn.Module,
        inputs: Mapping[str, SiteInput],
        rounder: WeightRounder,
        *,
        index: int,
        ranges: Mapping[str, tuple[Tensor, Tensor]],
    ) -> None:
        self.family, self.layer, self.inputs, self.rounder = family, layer, inputs, rounder
        self.index, self.ranges = index, ranges
        self.rounded: dict[str, QTensor] = {}

    def from_statistics(self, hessians: Mapping[str, Tensor]) -> None:
        """Round every site, with statistics that were collected before; none where the rounder needs none."""
        for site in self.family.linears:
            self._round(site, hessians.get(site))

    def site_by_site(self, run: Callable[[list[Tensor]], list[Tensor]], hidden: list[Tensor]) -> list[Tensor] | None:
        """Round each site on the activations that the sites before it, rounded already, give it.

        All windows go through the layer at once and each site is rounded when its input comes by: one forward, whose
        outputs are those of the rounded layer. Where that takes too much memory each site has a forward of its own,
        batch by batch; the statistics are the same.

        Args:
            run: forwards batches of hidden states (B, S, hidden) through the layer.

        Returns:
            Outputs of the layer with rounded weights; None where they were not computed.
        """
        sizes = [len(batch) for batch in hidden]
        if self._fits(hidden):
            with observed(self.inputs, {site: self._round_when_seen(site, sizes) for site in self.family.linears}):
                (outputs,) = run([torch.cat(hidden)])
            return list(outputs.split(sizes))
        for site in self.family.linears:
            accumulator = self._accumulator(site)
            with observed(self.inputs, {site: accumulator.update}):
                run(hidden)
            self._round(site, accumulator.value)
        return None

    def _round_when_seen(self, site: str, sizes: Sequence[int]) -> Callable[[Tensor], None]:
        def round_site(x: Tensor) -> None:
            accumulator = self._accumulator(site)
            for batch in x.split(list(sizes)):
                accumulator.update(batch)
            self._round(site, accumulator.value)

        return round_site

    def _accumulator(self, site: str) -> HessianAccumulator:
        weight = weight_of(self.layer, self.family.linears[site][0])
        return HessianAccumulator(weight.shape[1], weight.device)

    def _fits(self, hidden: Sequence[Tensor]) -> bool:
        tokens = sum(batch.shape[0] * batch.shape[1] for batch in hidden)
        names = [name for names in self.family.linears.values() for name in names]
        widest = max(max(weight_of(self.layer, name).shape) for name in names)
        device, size = hidden[0].device, weight_of(self.layer, names[0]).element_size()
        return _COPIES * tokens * widest * size <= _SHARE * total_memory(device)

    def _round(self, site: str, hessian: Tensor | None) -> None:
        """Round the linears of a site together; those with a range are clamped to it and need no clip search."""
        names, statistics = self.family.linears[site], RoundingStatistics(f"layer {self.index}, {site}", hessian)
        clamped = [name for name in names if name in self.ranges]
        for name in clamped:
            weight = weight_of(self.layer, name)
            low, high = self.ranges[name]
            weight.copy_(weight.clamp(low.to(weight), high.to(weight)))
        unclipped = replace(self.rounder, quantizer=replace(self.rounder.quantizer, clip=1.0))
        others = [name for name in names if name not in self.ranges]
        for part, rounder in ((clamped, unclipped), (others, self.rounder)):
            if not part:
                continue
            weights = [weight_of(self.layer, name) for name in part]
            for name, weight, found in zip(part, weights, rounder.round(weights, statistics), strict=True):
                weight.copy_(found.dequantize(weight.dtype))
                self.rounded[name] = found
