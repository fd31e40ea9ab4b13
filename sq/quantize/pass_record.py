"""What one pass over a model measured: time, memory, sizes, and outliers at each site."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sq.formats.qtensor import QTensor
from sq.models.families import SITES
from sq.models.memory import PeakMemory
from sq.models.site_transform import SiteTransform
from sq.nn.attention import AttentionInput, on_heads
from sq.quantize.method import LayerPlan, LayerView
from sq.rotation.transform import Transform

_SIZES = ("packed_bytes", "full_bytes", "linear_weights", "linear_bytes")
_COUNTED = ("sites", "layers", "seconds", *_SIZES)


@dataclass
class PassRecord:
    """What a pass measured.

    Attributes:
        seconds: "capture" (reading and the calibration forward), "transform" (training included), "weights".
        sites: one entry a layer and site: peak over rms of the tokens before and after, online multiply-adds a token,
            and `activation_clip` where the site has one of its own.
            "keys" is one where keys or queries are quantized.
        layers: one entry a layer: relative squared error of its output with everything quantized, on one window.
        recording_seconds: that making `sites` and `layers` took, which no part of `seconds` counts.
        peak_memory: highest bytes in use while one of the three went on; evaluation between layers is not counted.
        start_memory: bytes in use when the first began.
        packed_bytes: size of the model with integer weights packed, embeddings and head in 16 bits.
        full_bytes: size of the original in 16 bits.
        linear_weights, linear_bytes: entries of the rounded weights, and their bytes with scales and zero points.
    """

    seconds: dict[str, float] = field(default_factory=lambda: {"capture": 0.0, "transform": 0.0, "weights": 0.0})
    sites: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, float | int]] = field(default_factory=list)
    recording_seconds: float = 0.0
    peak_memory: int = 0
    start_memory: int = 0
    packed_bytes: int = 0
    full_bytes: int = 0
    linear_weights: int = 0
    linear_bytes: int = 0

    @property
    def macs(self) -> int:
        """Online multiply-adds a token, all layers and sites."""
        return sum(int(site["multiply_adds"]) for site in self.sites)

    def mark(self) -> dict[str, Any]:
        """What was measured so far, for `since`."""
        return {name: copy.deepcopy(getattr(self, name)) for name in _COUNTED}

    def since(self, mark: Mapping[str, Any]) -> dict[str, Any]:
        """What was measured after a mark: a layer's report, JSON-ready."""
        report: dict[str, Any] = {name: getattr(self, name)[len(mark[name]) :] for name in ("sites", "layers")}
        report["seconds"] = {part: value - mark["seconds"][part] for part, value in self.seconds.items()}
        report |= {name: getattr(self, name) - mark[name] for name in _SIZES}
        return {**report, "peak_memory": self.peak_memory}

    def add(self, report: Mapping[str, Any]) -> None:
        """Take over the report of a layer that an interrupted pass measured."""
        if not report:  # of a checkpoint that was made without a pass
            return
        self.sites += report["sites"]
        self.layers += report["layers"]
        for part, value in report["seconds"].items():
            self.seconds[part] += value
        for name in _SIZES:
            setattr(self, name, getattr(self, name) + report[name])
        self.peak_memory = max(self.peak_memory, report["peak_memory"])

    @contextmanager
    def timed(self, part: str, device: torch.device) -> Iterator[None]:
        """Add the time of a `with` to one of the three parts, and see its peak memory."""
        memory = PeakMemory(device)
        self.start_memory = self.start_memory or memory.start
        start = time.perf_counter()
        yield
        self.seconds[part] += _seconds_since(start, device)
        self.peak_memory = max(self.peak_memory, memory.peak())

    @contextmanager
    def recording(self, device: torch.device) -> Iterator[None]:
        """Add the time of a `with` to `recording_seconds`."""
        start = time.perf_counter()
        yield
        self.recording_seconds += _seconds_since(start, device)

    def count_bytes(
        self, elements: int, rounded: Iterable[QTensor] = (), online: Iterable[Transform | None] = ()
    ) -> None:
        """Add parameters: 2 bytes each in the original; in the result those of rounded weights when packed, and 2 for
        every other parameter and every factor of an online transform."""
        weights, packed = 0, 0
        for weight in rounded:
            weights, packed = weights + weight.codes.numel(), packed + weight.nbytes()
        factors = sum(factor.numel() for part in online if part is not None for factor in part.buffers())
        self.full_bytes += 2 * elements
        self.packed_bytes += packed + 2 * (elements - weights + factors)
        self.linear_weights += weights
        self.linear_bytes += packed

    def count_untied(self, elements: int) -> None:
        """Add a head that the original shares with its embedding, and the result does not: 2 bytes an entry."""
        self.packed_bytes += 2 * elements

    @property
    def bits_per_weight(self) -> float:
        """Effective bits of a rounded weight, scales and zero points included; 16 where none is rounded."""
        return 8 * self.linear_bytes / self.linear_weights if self.linear_weights else 16.0

    def describe_layer(
        self,
        view: LayerView,
        plan: LayerPlan,
        full: Tensor,
        quantized: Tensor,
        reports: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Add a layer's entry, from its outputs (B, S, hidden) in full precision and with everything quantized, and
        those of its sites, from their calibration tokens and with what the rounder reported of them."""
        self.layers.append({"layer": view.index, "error": relative_error(quantized, full)})
        dimensions = view.dimensions
        for site, found in view.statistics.items():
            tokens = found.tokens[:: max(1, len(found.tokens) // 256)]  # enough for a median
            if site in SITES:
                transform = plan.sites.get(site, SiteTransform())
                cost = 0 if transform.online is None else transform.online.macs()
                self._describe(view.index, site, tokens, transform.tokens(tokens, site, dimensions), cost)
                if site in plan.activation_clips:
                    self.sites[-1]["activation_clip"] = plan.activation_clips[site]
                self.sites[-1].update((reports or {}).get(site, {}))
            elif site == "keys":
                heads = tokens.unflatten(-1, (dimensions.kv_heads, -1)).transpose(0, 1)[None]  # (1, H, T, head_dim)
                after = heads if plan.keys is None else on_heads(heads, plan.keys, plan.keys.n, dimensions.kv_heads)
                cost = AttentionInput(plan.keys).macs(dimensions)
                self._describe(view.index, site, heads.flatten(0, 2), after.flatten(0, 2), cost)

    def _describe(self, index: int, site: str, before: Tensor, after: Tensor, macs: int) -> None:
        """Add a site's entry from tokens (T, n) before and after its transform."""
        peaks = {"peak_over_rms_before": peak_over_rms(before), "peak_over_rms_after": peak_over_rms(after)}
        self.sites.append({"layer": index, "site": site, **peaks, "multiply_adds": macs})


def layer_numbers(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one layer's report, flat: its error, seconds of each part, peak over rms behind each transform,
    and the highest memory in bytes so far. A layer that was not quantized has none."""
    if not report["layers"]:
        return {}
    numbers = {"error": report["layers"][0]["error"], "peak_memory_bytes": report["peak_memory"]}
    numbers |= {f"{part}_seconds": seconds for part, seconds in report["seconds"].items()}
    return numbers | {f"peak_over_rms/{one['site']}": one["peak_over_rms_after"] for one in report["sites"]}


def _seconds_since(start: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def relative_error(found: Tensor, expected: Tensor) -> float:
    """sum (found - expected)^2 / sum expected^2 over all entries, accumulated in float64."""
    difference, size = (x.double().square().sum() for x in (found - expected, expected))
    return float(difference / size.clamp_min(torch.finfo(torch.float64).tiny))


def peak_over_rms(tokens: Tensor) -> float:
    """Median over tokens of max |x| / rms(x): 1 is perfectly flat, sqrt(n) a single spike. tokens (T, n)."""
    rms = tokens.square().mean(-1).sqrt().clamp_min(torch.finfo(tokens.dtype).tiny)
    return float((tokens.abs().amax(-1) / rms).median())
