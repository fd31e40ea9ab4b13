"""Quantize a decoder one layer at a time, in a single pass over the checkpoint.

Four steps a layer: collect statistics from one calibration forward (collect.py), let the method plan its transforms
(method.py), apply them to the weights (apply.py), round the weights (round.py). Nothing else sees a calibration batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sq.errors import ConfigError, QuantizationError, SQError
from sq.formats.qtensor import QTensor
from sq.models.families import SITES
from sq.models.fold import rotate_embeddings_and_head
from sq.models.memory import return_freed
from sq.models.site_transform import SiteTransform
from sq.models.stream import DecoderStream, EmbeddingsAndHead
from sq.nn.hooks import without_quantizers
from sq.nn.site_input import SiteInput
from sq.quantize.apply import install_plan, install_quantizers, pack_weights, site_quantizers
from sq.quantize.calibration import Calibration
from sq.quantize.collect import StackedWeights
from sq.quantize.method import LayerPlan, LayerView, Method, SiteStatistics, on_device
from sq.quantize.pass_record import PassRecord
from sq.quantize.recipe import Recipe
from sq.quantize.round import LayerRounding
from sq.quantize.site_clips import with_site_clips
from sq.quantize.site_peaks import with_site_peaks
from sq.quantize.training import Training
from sq.quantize.training_block import TrainingBlock
from sq.quantize.training_log import TrainingLog

STATISTICS = "statistics for the residual rotation"


class Pipeline:
    """One quantization of one model by one method.

    Args:
        stream, method, recipe: the model, its transforms and its quantizers.
        ids: calibration windows (count, window).
        batch: windows a forward.
        sample: tokens a site that transforms are built from; see `Calibration`.
        log: of trainings; one that keeps nothing on disk unless given.
        packed: yield layers with integer weights (`PackedLinear`) in the place of fake ones.
        saved: index -> a packed layer that an interrupted run left, and its report; None where there is none.
        watch: is shown each layer as the method sees it, after its plan is made and before anything is changed.
        coded: is given each finished layer and the codes of its linears by name, before it is packed.

    Attributes:
        record: what the pass measured so far.
        layer_report: the part of it that the layer yielded last has.
    """

    def __init__(
        self,
        stream: DecoderStream,
        method: Method,
        recipe: Recipe,
        ids: Tensor,
        *,
        batch: int = 8,
        sample: int | None = None,
        log: TrainingLog | None = None,
        packed: bool = False,
        saved: Callable[[int], tuple[nn.Module, Mapping[str, Any] | None] | None] = lambda index: None,
        watch: Callable[[LayerView], None] | None = None,
        coded: Callable[[int, nn.Module, Mapping[str, QTensor]], None] | None = None,
    ) -> None:
        self.packed, self.saved, self.watch, self.coded = packed, saved, watch, coded
        self.stream, self.method, self.recipe = stream, method, recipe
        self.calibration = Calibration(stream, ids, batch=batch, sample=sample, fold_norms=method.fold_norms)
        self.log = log or TrainingLog(None, method.name)
        self.record = PassRecord()
        self.layer_report: dict[str, Any] = {}
        return_freed()
        self.propagate = method.propagates or recipe.propagate
        self.reference: list[Tensor] | None = None
        outer = self.embeddings_and_head = stream.embeddings_and_head()
        ends = outer.embedding.numel() + (0 if outer.tied else outer.head.numel())
        self.record.count_bytes(ends + stream.dimensions.hidden)

    def prepare(self) -> None:
        """Train on the whole model, where the method does; rotate the residual stream in embeddings and head."""
        if not self.method.quantizes:
            return
        with self._timed("transform"):
            self.method.learn(self._training())
        if not self.method.fold_norms:
            return
        with torch.no_grad():
            samples: Mapping[str, Sequence[Tensor]] = {}
            if self.method.reads_residual:
                with self._timed("capture"):
                    samples = self.calibration.residual_samples(self.embeddings_and_head, self._residual_progress)
            with self._timed("transform"):
                rotation = self.method.residual_rotation(samples, self.stream.dimensions)
                rotation = None if rotation is None else rotation.to(self.stream.device)
            if rotation is None:  # embedding, final norm and head stay as they are, and a tied head tied
                return
            tied = self.embeddings_and_head.tied
            self.calibration.rotation = rotation
            self.embeddings_and_head = rotate_embeddings_and_head(self.embeddings_and_head, rotation)
            if tied:
                self.record.count_untied(self.embeddings_and_head.head.numel())

    @torch.no_grad()
    def layers(self) -> Iterator[nn.Module]:
        """Yield each quantized layer in order; call `prepare` first. Nothing of a yielded layer is kept here."""
        with self._timed("capture"):
            hidden = self.calibration.embedded(self.embeddings_and_head)
            hidden = self.calibration.some(hidden) if self._leaves_windows_out else hidden
            self.reference = list(hidden) if self._keeps_reference else None
        for index in range(self.stream.count):
            mark = self.record.mark()
            with _named(index):
                layer, hidden = self._layer(index, hidden)
            self.layer_report = self.record.since(mark)
            yield layer

    def _layer(self, index: int, hidden: list[Tensor]) -> tuple[nn.Module, list[Tensor]]:
        """One layer quantized, and the calibration batches of the next one."""
        stream = self.stream
        with self._timed("capture"):
            layer = stream.layer(index)
            elements = sum(p.numel() for p in layer.parameters())
            if not self.method.quantizes:
                self.record.count_bytes(elements)
                return layer, hidden
            layer = self.calibration.folded(layer)
            if (found := self.saved(index)) is not None:
                kept, report = found
                self.record.add(report or {})
                return kept, self._resumed(index, kept, layer, hidden)
            statistics, outputs = self.calibration.collect(
                index,
                layer,
                self.calibration.some(hidden) if self._samples_windows else hidden,
                second_moment=SITES if self._rounds_from_collected_moments else self.method.second_moments,
                attention=self.recipe.quantizes_scores,
                wants_outputs=self.propagate == "full_precision",
            )
            full = outputs[0][:1].clone()
        reference = hidden if self.reference is None else self.reference
        with self._timed("transform"):
            view, plan = self._plan(index, layer, statistics, hidden)
        if self.watch is not None:
            self.watch(view)
        with self._timed("weights"):
            inputs = install_plan(stream.family, stream.dimensions, layer, plan)
            work, rounded_outputs = self._round(index, layer, inputs, plan, statistics, hidden, reference)
            rounded = {} if work is None else work.rounded
            layer.to(stream.dtype)
            if self.propagate == "quantized_weights":
                outputs = rounded_outputs or self.calibration.run(index, layer, hidden)
            install_quantizers(stream.family, layer, inputs, plan, self.recipe)
            if self.propagate == "quantized":
                outputs = self.calibration.run(index, layer, hidden)
        with self.record.recording(stream.device):
            # Of one window: the whole text would cost a forward.
            quantized = (
                outputs if self.propagate == "quantized" else self.calibration.run(index, layer, [hidden[0][:1]])
            )
            self.record.describe_layer(view, plan, full, quantized[0][:1], {} if work is None else work.reports)
        if self.coded is not None:
            self.coded(index, layer, rounded)
        if self.packed and rounded:
            with self._timed("weights"):
                pack_weights(stream.family, layer, rounded)
        online = [*(site.transform for site in inputs.values()), plan.keys]
        self.record.count_bytes(elements, rounded.values(), online)
        return layer, outputs

    def _plan(
        self, index: int, layer: nn.Module, statistics: Mapping[str, SiteStatistics], hidden: list[Tensor]
    ) -> tuple[LayerView, LayerPlan]:
        """The layer as the method sees it, and what the method wants done."""
        reference = self.reference if self.method.reads_reference else None
        block = self._block(index, layer, hidden, hidden if reference is None else reference)
        weights = StackedWeights(self.stream.family, layer)
        view = LayerView(index, statistics, weights, self.stream.dimensions, block)
        plan = on_device(self.method.plan(view), self.stream.device)
        plan = with_site_peaks(view, plan, self.recipe)
        if self.recipe.site_clips:
            plan = with_site_clips(view, plan, self.recipe)
        if reference is not None:
            self.reference = block.targets()
        return view, plan

    def _resumed(self, index: int, found: nn.Module, layer: nn.Module, hidden: list[Tensor]) -> list[Tensor]:
        """What the next layer is calibrated on, behind a layer that was quantized before."""
        if self.reference is not None:
            self.reference = self._block(index, layer, hidden, self.reference).targets()
        if self.propagate == "full_precision":
            return self.calibration.run(index, layer.to(self.stream.dtype), hidden)
        if self.propagate == "quantized":
            return self.calibration.run(index, found, hidden)
        with without_quantizers(self.stream.family, found):
            return self.calibration.run(index, found, hidden)

    def _training(self) -> Training:
        """What `Method.learn` is given; it reads layers when it needs them."""

        def embeddings_and_head() -> EmbeddingsAndHead:
            found = self.stream.embeddings_and_head()
            return rotate_embeddings_and_head(found, None) if self.method.fold_norms else found

        return Training(
            block=lambda index: self._block(index, self.calibration.folded(self.stream.layer(index)), (), ()),
            count=self.stream.count,
            embeddings_and_head=embeddings_and_head,
            dimensions=self.stream.dimensions,
            recipe=self.recipe,
            ids=self.calibration.ids,
            log=self.log,
        )

    def _block(
        self, index: int, layer: nn.Module, inputs: Sequence[Tensor], reference: Sequence[Tensor]
    ) -> TrainingBlock:
        def run(call: Callable[..., Any], hidden: Tensor) -> Tensor:
            return self.stream.forward(index, call, hidden)

        stream = self.stream
        return TrainingBlock(
            index, layer, run, stream.family, stream.dimensions, self.recipe, inputs, reference, self.log
        )

    @property
    def _keeps_reference(self) -> bool:
        """Whether there is a second stream: the method reads it, or the rounder does and it is not the first itself."""
        rounder = self.recipe.weights
        needed = rounder is not None and rounder.reads_reference and self.propagate != "full_precision"
        return self.method.reads_reference or needed

    @property
    def _rounds_from_collected_moments(self) -> bool:
        """Whether the rounder's Hessians come from the forward that statistics are collected in."""
        return self.recipe.weights is not None and self.recipe.weights.takes_collected_moments

    @property
    def _samples_windows(self) -> bool:
        """Whether the forward that statistics come from may leave windows out: nobody else reads what it makes."""
        others = self.propagate == "full_precision" or self._rounds_from_collected_moments
        return self._sample_serves and not others

    @property
    def _leaves_windows_out(self) -> bool:
        """Whether nobody reads the other windows at all: layers see the original's stream and no rounder needs it."""
        rounder = self.recipe.weights
        rounds_without = rounder is None or not rounder.needs
        return self._sample_serves and self.propagate == "full_precision" and rounds_without

    @property
    def _sample_serves(self) -> bool:
        """Whether statistics of some windows do: a static scale has to hold the peaks of all."""
        return self.method.samples_windows and not self.recipe.has_static_scale

    def _round(
        self,
        index: int,
        layer: nn.Module,
        inputs: Mapping[str, SiteInput],
        plan: LayerPlan,
        statistics: Mapping[str, SiteStatistics],
        hidden: list[Tensor],
        reference: list[Tensor],
    ) -> tuple[LayerRounding | None, list[Tensor] | None]:
        """The layer's rounding, and the outputs of the layer with rounded weights where rounding gave them."""
        if self.recipe.weights is None:
            return None, None
        family, rounder = self.stream.family, self.recipe.weights
        quantizers = site_quantizers(inputs, plan, self.recipe)
        work = LayerRounding(family, layer, inputs, rounder, index, plan.weight_ranges, quantizers)
        if rounder.needs and not rounder.takes_collected_moments:
            outputs: list[Tensor] | None = None

            def run(batches: Sequence[Tensor]) -> list[Tensor]:
                return self.calibration.run(index, layer, batches)

            if rounder.sees_rounded_sites:
                wanted = self.propagate == "quantized_weights"
                outputs = work.site_by_site(run, hidden, reference, wants_outputs=wanted)
            else:
                work.at_once(run, hidden, reference)
            if self.reference is not None and not self.method.reads_reference:
                self.reference = work.reference_outputs
            return work, outputs
        hessians: dict[str, Tensor] = {}
        for site, seen in statistics.items() if self._rounds_from_collected_moments else ():
            if seen.second_moment is not None:  # m; the Hessian of transformed activations is 2 T^T m T
                transform = plan.sites.get(site, SiteTransform())
                hessians[site] = 2 * transform.moment(seen.second_moment, site, self.stream.dimensions)
        work.from_statistics(hessians)
        return work, None

    def _residual_progress(self, done: int, count: int) -> None:
        self.log.progress(STATISTICS, done, count)

    def _timed(self, part: str) -> AbstractContextManager[None]:
        return self.record.timed(part, self.stream.device)


@contextmanager
def _named(index: int) -> Iterator[None]:
    """Name the layer in an error that does not."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:  # SQError, and those of transforms
        if f"layer {index}" in str(error):
            raise
        kind = type(error) if isinstance(error, SQError) else QuantizationError
        raise kind(f"layer {index}: {error}") from error
