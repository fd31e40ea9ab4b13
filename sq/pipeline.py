"""Quantize a decoder one layer at a time: capture -> transform -> round, in a single pass over the checkpoint."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sq.capture import StackedWeights, capture
from sq.memory import PeakMemory, return_freed
from sq.method import LayerView, Method, SiteStatistics
from sq.models.families import SITES
from sq.models.fold import fold_norm_gains, rotate_ends, rotate_residual
from sq.models.stream import DecoderStream, Ends
from sq.quant import ActivationQuantizer
from sq.quantize_layer import (
    WeightRecipe,
    install_transforms,
    peak_over_rms,
    round_weights,
)
from sq.rotation.transform import Transform
from sq.site import SiteTransform

RESIDUAL_SAMPLE = 1024  # tokens a site and layer kept for a residual rotation: 64 sites of 7B stay under 1.1 GB


@dataclass
class Report:
    """What a pass measured.

    Attributes:
        seconds: "capture" (reading and the calibration forward), "transform", "weights".
        sites: one entry a layer and site: peak over rms of the tokens before and after, online multiply-adds a token.
        peak_memory: highest bytes in use while one of the three went on; evaluation between layers is not counted.
        start_memory: bytes in use when the first began.
        packed_bytes: size of the model with integer weights packed, ends in 16 bits.
        full_bytes: size of the original in 16 bits.
    """

    seconds: dict[str, float] = field(default_factory=lambda: {"capture": 0.0, "transform": 0.0, "weights": 0.0})
    sites: list[dict[str, float | int | str]] = field(default_factory=list)
    peak_memory: int = 0
    start_memory: int = 0
    packed_bytes: int = 0
    full_bytes: int = 0

    @property
    def multiply_adds(self) -> int:
        """Online multiply-adds a token, all layers and sites."""
        return sum(int(site["multiply_adds"]) for site in self.sites)


class Pipeline:
    """One quantization of one model by one method.

    Args:
        stream: the model.
        method: says the transforms.
        weights: how weights are rounded.
        make_quantizer: makes the activation quantizer of a site; None for 16-bit activations.
        ids: calibration windows (count, window).
        batch: windows a forward.
        sample: tokens a site that transforms are built from.
    """

    def __init__(
        self,
        stream: DecoderStream,
        method: Method,
        weights: WeightRecipe,
        make_quantizer: Callable[[], ActivationQuantizer | None],
        ids: Tensor,
        *,
        batch: int = 8,
        sample: int = 4096,
    ) -> None:
        self.stream, self.method, self.weights, self.make_quantizer = stream, method, weights, make_quantizer
        self.ids, self.batch, self.sample = ids, batch, sample
        self.report = Report()
        return_freed()
        self.rotation: Transform | None = None
        self.ends: Ends = stream.ends()
        self._count_bytes(self.ends.embedding.numel() + self.ends.head.numel() + self.stream.geometry.hidden)

    @torch.no_grad()
    def prepare(self) -> None:
        """Build the residual rotation, where the method has one, and transform the model's ends."""
        if not (self.method.quantizes and self.method.fold_norms):
            return
        if self.method.needs_residual:
            samples = self._residual_samples()
            with self._timed("transform"):
                self.rotation = self.method.residual_rotation(samples, self.stream.geometry)
        self.ends = rotate_ends(self.ends, self.rotation)

    @torch.no_grad()
    def layers(self) -> Iterator[nn.Module]:
        """Yield each quantized layer in order; call `prepare` first. Nothing of a yielded layer is kept here."""
        with self._timed("capture"):
            hidden = self._embedded(self.ends)
        for index in range(self.stream.count):
            layer, hidden = self._layer(index, hidden)
            yield layer

    def _layer(self, index: int, hidden: list[Tensor]) -> tuple[nn.Module, list[Tensor]]:
        with self._timed("capture"):
            layer = self.stream.layer(index)
            elements = sum(p.numel() for p in layer.parameters())
            if not self.method.quantizes:
                self._count_bytes(elements)
                return layer, hidden
            layer = self._folded(layer)
            statistics, outputs = self._capture(index, layer, hidden)
        with self._timed("transform"):
            weights = StackedWeights(self.stream.family, layer)
            transforms = self.method.layer_transforms(LayerView(index, statistics, weights, self.stream.geometry))
        with self._timed("weights"):
            inputs = install_transforms(self.stream.family, self.stream.geometry, layer, transforms)
            moments = self._moments(statistics, transforms)
            run = self._as_run(index, layer, hidden)
            rounded = round_weights(
                self.stream.family, layer, inputs, self.weights, index=index, moments=moments, run=run
            )
            layer.to(self.stream.dtype)
            if self.weights.propagate == "quantized":
                outputs = run()
            for site in inputs.values():
                site.quantizer = self.make_quantizer()
        self._describe(index, statistics, transforms)
        integer = sum(weight.nbytes() for weight in rounded.values())
        others = elements - sum(weight.codes.numel() for weight in rounded.values())
        online = [site.transform for site in inputs.values() if site.transform is not None]
        factors = sum(factor.numel() for transform in online for factor in transform.buffers())
        self._count_bytes(elements, integer + 2 * (others + factors))
        return layer, outputs

    def _folded(self, layer: nn.Module) -> nn.Module:
        """The layer in at least float32, gains folded and the residual rotated where the method asks for it."""
        layer = layer.to(torch.promote_types(self.stream.dtype, torch.float32))
        if self.method.fold_norms:
            fold_norm_gains(self.stream.family, layer)
            if self.rotation is not None:
                rotate_residual(self.stream.family, layer, self.rotation)
        return layer

    def _capture(
        self, index: int, layer: nn.Module, hidden: list[Tensor]
    ) -> tuple[dict[str, SiteStatistics], list[Tensor]]:
        moments = set(self.method.needs_second_moment)
        if self.weights.name == "gptq" and not self.weights.sequential:
            moments |= set(SITES)
        running = layer
        if next(layer.parameters()).dtype != self.stream.dtype:
            running = copy.deepcopy(layer).to(self.stream.dtype)
        return capture(
            self.stream.family,
            running,
            lambda batch: self.stream.forward(index, running, batch),
            hidden,
            index=index,
            sites=SITES,
            second_moment=moments,
            sample=self.sample,
        )

    def _residual_samples(self) -> Mapping[str, list[Tensor]]:
        """Normalized tokens at the sites that the residual stream feeds, all layers: one forward of the original."""
        sites = tuple(self.stream.family.norms)
        samples: dict[str, list[Tensor]] = {site: [] for site in sites}
        with self._timed("capture"):
            hidden = self._embedded(self.ends)
            for index in range(self.stream.count):
                layer = self._folded(self.stream.layer(index)).to(self.stream.dtype)
                found, hidden = capture(
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
        return samples

    def _embedded(self, ends: Ends) -> list[Tensor]:
        return [ends.embed(batch) for batch in self.ids.split(self.batch)]

    def _moments(
        self, statistics: Mapping[str, SiteStatistics], transforms: Mapping[str, SiteTransform]
    ) -> dict[str, Tensor]:
        return {
            site: transforms.get(site, SiteTransform()).moment(found.second_moment, site, self.stream.geometry)
            for site, found in statistics.items()
            if found.second_moment is not None and self.weights.name == "gptq" and not self.weights.sequential
        }

    def _as_run(self, index: int, layer: nn.Module, hidden: list[Tensor]) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            dtype = next(layer.buffers()).dtype
            return [self.stream.forward(index, layer, batch.to(dtype)).to(batch.dtype) for batch in hidden]

        return run

    def _describe(
        self, index: int, statistics: Mapping[str, SiteStatistics], transforms: Mapping[str, SiteTransform]
    ) -> None:
        for site, found in statistics.items():
            transform = transforms.get(site, SiteTransform())
            tokens = found.tokens[:: max(1, len(found.tokens) // 256)]  # enough for a median
            after = transform.tokens(tokens, site, self.stream.geometry)
            self.report.sites.append(
                {
                    "layer": index,
                    "site": site,
                    "peak_over_rms_before": peak_over_rms(tokens),
                    "peak_over_rms_after": peak_over_rms(after),
                    "multiply_adds": 0 if transform.online is None else transform.online.multiply_adds(),
                }
            )

    def _count_bytes(self, elements: int, packed: int | None = None) -> None:
        self.report.full_bytes += 2 * elements
        self.report.packed_bytes += 2 * elements if packed is None else packed

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        memory = PeakMemory(self.stream.device)
        self.report.start_memory = self.report.start_memory or memory.start
        start = time.perf_counter()
        yield
        if self.stream.device.type == "cuda":
            torch.cuda.synchronize(self.stream.device)
        self.report.seconds[part] += time.perf_counter() - start
        self.report.peak_memory = max(self.report.peak_memory, memory.peak())
