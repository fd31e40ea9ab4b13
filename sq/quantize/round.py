"""Round the weights of one decoder layer, site by site, with what its rounder needs of calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from sq.formats.activation import ActivationQuantizer
from sq.formats.qtensor import QTensor
from sq.models.families import Family
from sq.models.memory import total_memory
from sq.models.parts import weight_of
from sq.nn.hooks import SeenAll, observed, up_to_the_last
from sq.nn.site_input import SiteInput
from sq.quantize.rounders.hessian import conjugate_hessian
from sq.quantize.rounders.moments import SiteMoments
from sq.quantize.rounders.rounder import RoundingStatistics, WeightRounder
from sq.rotation.transform import Transform

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
        activations: site -> its quantizer at run time, for a rounder that wants its tokens quantized.

    Attributes:
        rounded: linear -> codes.
        reports: site -> what the rounder reported of it.
        reference_outputs: of the unrounded layer for the full-precision stream, once statistics of it were taken.
    """

    def __init__(
        self,
        family: Family,
        layer: nn.Module,
        inputs: Mapping[str, SiteInput],
        rounder: WeightRounder,
        index: int,
        ranges: Mapping[str, tuple[Tensor, Tensor]],
        activations: Mapping[str, ActivationQuantizer | None] | None = None,
    ) -> None:
        self.family, self.layer, self.inputs, self.rounder = family, layer, inputs, rounder
        self.index, self.ranges, self.activations = index, ranges, activations or {}
        self.rounded: dict[str, QTensor] = {}
        self.reports: dict[str, dict[str, float]] = {}
        self.reference_outputs: list[Tensor] | None = None
        self._left_out: dict[str, Transform] = {}  # site -> transform that its tokens are spared

    def from_statistics(self, hessians: Mapping[str, Tensor]) -> None:
        """Round every site, with statistics that were collected before; none where the rounder needs none."""
        for site in self.family.linears:
            self._round(site, RoundingStatistics(self._name(site), hessians.get(site)))

    def at_once(
        self, run: Callable[[list[Tensor]], list[Tensor]], hidden: list[Tensor], reference: list[Tensor] | None = None
    ) -> None:
        """Round every site, with statistics of the layer as it is before any is rounded: one forward of each stream.

        Args:
            run, hidden, reference: see `site_by_site`.
        """
        reference = reference if self.rounder.reads_reference else None
        moments = {site: self._moments(site, hidden) for site in self.family.linears}
        self._gather(moments, run, hidden, reference)
        for site in self.family.linears:
            self._round(site, moments.pop(site).statistics(self._name(site)))

    def site_by_site(
        self,
        run: Callable[[list[Tensor]], list[Tensor]],
        hidden: list[Tensor],
        reference: list[Tensor] | None = None,
        *,
        wants_outputs: bool = True,
    ) -> list[Tensor] | None:
        """Round each site on the activations that the sites before it, rounded already, give it.

        All windows go through the layer at once and each site is rounded when its input comes by: one forward, whose
        outputs are those of the rounded layer. Where that takes too much memory each site has a forward of its own,
        batch by batch and up to that site; the statistics are the same. The full-precision stream has a forward beside
        each of them, through the unrounded layer; in the first case what all its sites see is kept until they are
        rounded. Where tokens are many and there is one stream, transforms are spared them, see `_without_transforms`.

        Args:
            run: forwards batches of hidden states (B, S, hidden) through the layer.
            hidden: of the quantized stream.
            reference: the same windows in the full-precision stream; left alone where the rounder does not read it.
            wants_outputs: False ends the forward at the last site: a Llama's `down` is a fifth of its operations.

        Returns:
            Outputs of the layer with rounded weights; None where they were not computed.
        """
        reference = reference if self.rounder.reads_reference else None
        if self._fits(hidden, reference):
            full = self._seen(run, reference)
            sizes = [len(batch) for batch in hidden]
            watchers = {site: self._round_when_seen(site, sizes, full.get(site)) for site in self.family.linears}
            if not wants_outputs:
                watchers = up_to_the_last(watchers)
            outputs: Tensor | None = None
            with self._without_transforms(hidden), suppress(SeenAll), observed(self.inputs, watchers):
                (outputs,) = run([torch.cat(hidden)])
            return None if outputs is None else list(outputs.split(sizes))
        unrounded = {} if reference is None else {name: weight_of(self.layer, name).clone() for name in self._names}
        with self._without_transforms(hidden):
            for site in self.family.linears:
                moments = self._moments(site, hidden)
                self._gather({site: moments}, run, hidden, reference, unrounded)
                statistics = self._statistics(site, moments)
                del moments  # its sums are as large as the Hessian
                self._round(site, statistics)
        return None

    @contextmanager
    def _without_transforms(self, hidden: Sequence[Tensor]) -> Iterator[None]:
        """Tokens go through the layer as the transforms find them, inside the block; afterwards as before.

        The Hessian of x T is T^T H T, and a rounded weight q multiplies x as q T^T, since x T q^T = x (q T^T)^T: the
        same numbers within rounding, and T acts on rows of H and q in the place of tokens. Statistics of two streams,
        or of quantized tokens, are taken behind the transform.
        """
        behind = self.rounder.needs != {"hessian"} or self.rounder.sees_quantized_activations
        transforms = {} if behind else {site: self.inputs[site].transform for site in self.family.linears}
        tokens = _tokens(hidden)
        self._left_out = {site: t for site, t in transforms.items() if t is not None and self._rows(site) < tokens}
        for site in self._left_out:
            self.inputs[site].transform = None
        try:
            yield
        finally:
            for site, transform in self._left_out.items():
                self.inputs[site].transform = transform
                for name in self.rounded.keys() & set(self.family.linears[site]):
                    weight = weight_of(self.layer, name)
                    weight.copy_(self.rounded[name].dequantize(weight.dtype))
            self._left_out = {}

    def _rows(self, site: str) -> int:
        """Rows of a Hessian, twice, and of the site's weights."""
        weights = [weight_of(self.layer, name) for name in self.family.linears[site]]
        return 2 * weights[0].shape[1] + sum(len(weight) for weight in weights)

    def _statistics(self, site: str, moments: SiteMoments) -> RoundingStatistics:
        """What was summed, in the basis of the site's weights."""
        statistics = moments.statistics(self._name(site))
        if (transform := self._left_out.get(site)) is None or statistics.hessian is None:
            return statistics
        return replace(statistics, hessian=conjugate_hessian(statistics.hessian, transform))

    def _seen(
        self, run: Callable[[list[Tensor]], list[Tensor]], reference: list[Tensor] | None
    ) -> dict[str, list[Tensor]]:
        """What each site sees of the full-precision stream, batch by batch; nothing where there is no such stream."""
        if reference is None:
            return {}
        full: dict[str, list[Tensor]] = {site: [] for site in self.family.linears}
        with observed(self.inputs, {site: kept.append for site, kept in full.items()}):
            self.reference_outputs = run(reference)
        return full

    def _gather(
        self,
        moments: Mapping[str, SiteMoments],
        run: Callable[[list[Tensor]], list[Tensor]],
        hidden: list[Tensor],
        reference: list[Tensor] | None,
        unrounded: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add what sites see of both streams, one batch at a time; the full-precision one has the unrounded weights."""
        full: dict[str, Tensor] = {}
        outputs: list[Tensor] = []
        of_reference = {site: lambda x, site=site: full.update({site: x}) for site in moments}

        def adds(site: str) -> Callable[[Tensor], None]:
            return lambda x: moments[site].update(x, full.get(site))

        of_hidden = up_to_the_last({site: adds(site) for site in moments})
        for index, batch in enumerate(hidden):
            if reference is not None:
                with observed(self.inputs, of_reference), self._with_weights(unrounded or {}):
                    outputs += run([reference[index]])
            with suppress(SeenAll), observed(self.inputs, of_hidden):
                run([batch])
        if reference is not None:
            self.reference_outputs = outputs

    @contextmanager
    def _with_weights(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """These weights stand in for those of linears, inside the block."""
        linears = {name: self.layer.get_submodule(name) for name in weights}
        before = {name: linear.weight for name, linear in linears.items()}
        for name, linear in linears.items():
            linear.weight = weights[name]
        try:
            yield
        finally:
            for name, linear in linears.items():
                linear.weight = before[name]

    def _round_when_seen(self, site: str, sizes: Sequence[int], full: list[Tensor] | None) -> Callable[[Tensor], None]:
        def round_site(x: Tensor) -> None:
            batches = list(x.split(list(sizes)))
            moments = self._moments(site, batches)
            for index, batch in enumerate(batches):
                moments.update(batch, None if full is None else full[index])
            if full is not None:
                full.clear()
            statistics = self._statistics(site, moments)
            del moments  # its sums are as large as the Hessian
            self._round(site, statistics)

        return round_site

    def _moments(self, site: str, batches: Sequence[Tensor]) -> SiteMoments:
        weight = weight_of(self.layer, self.family.linears[site][0])
        quantizer = self.activations.get(site) if self.rounder.sees_quantized_activations else None
        total = _tokens(batches)
        return SiteMoments(weight.shape[1], self.rounder.needs, total, quantizer=quantizer, device=weight.device)

    def _fits(self, hidden: Sequence[Tensor], reference: Sequence[Tensor] | None) -> bool:
        widest = max(max(weight_of(self.layer, name).shape) for name in self._names)
        kept = (
            0
            if reference is None
            else sum(weight_of(self.layer, names[0]).shape[1] for names in self.family.linears.values())
        )
        device, size = hidden[0].device, weight_of(self.layer, self._names[0]).element_size()
        return (_COPIES * widest + kept) * _tokens(hidden) * size <= _SHARE * total_memory(device)

    @property
    def _names(self) -> list[str]:
        return [name for names in self.family.linears.values() for name in names]

    def _name(self, site: str) -> str:
        return f"layer {self.index}, {site}"

    def _round(self, site: str, statistics: RoundingStatistics) -> None:
        """Round the linears of a site together; those with a range are clamped to it and need no clip search."""
        names = self.family.linears[site]
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
            rounder = replace(rounder, quantizer=rounder.quantizer.joined([weight_of(self.layer, n) for n in names]))
            for name, weight, found in zip(part, weights, rounder.round(weights, statistics), strict=True):
                weight.copy_(found.dequantize(weight.dtype))
                self.rounded[name] = found
        if (transform := self._left_out.get(site)) is not None:  # when all are rounded: a joint scale reads all weights
            for name in names:
                weight = weight_of(self.layer, name)
                weight.copy_(transform.transpose(weight))
        if statistics.report:
            self.reports[site] = dict(statistics.report)


def _tokens(batches: Sequence[Tensor]) -> int:
    """Tokens of batches (B, S, n)."""
    return sum(batch.shape[0] * batch.shape[1] for batch in batches)
