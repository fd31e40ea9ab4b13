"""The typed settings of one run: frozen dataclasses that `sq.config.parse` returns and everything else receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Scheme = Literal["symmetric", "asymmetric", "midrise"]


@dataclass(frozen=True)
class ModelSettings:
    """What is quantized, and the texts, windows and tasks that go with it."""

    name: str
    path: str  # hub id, local folder, or "embedded"
    revision: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: str  # "auto", "cpu", "cuda", "cuda:1"
    placement: Literal["auto", "memory", "stream"]
    outliers: Literal["planted", "none"]
    outlier_strength: float
    texts: tuple[str, ...]
    window: int
    evaluation_windows: int | None
    calibration_text: str
    calibration_tokens: int
    zeroshot_tasks: tuple[str, ...]
    architecture: Mapping[str, Any] | None = None  # of a model with random weights: a transformers config as plain data


@dataclass(frozen=True)
class MethodSettings:
    """A method's class path and its typed arguments; `quantizes` is false for the full-precision row alone."""

    name: str
    target: str
    arguments: Mapping[str, Any]
    quantizes: bool


@dataclass(frozen=True)
class BitsSettings:
    """Bits of weights, activations, keys, values and queries; 16 means not quantized."""

    name: str
    weights: int
    activations: int
    keys: int
    values: int
    queries: int = 16

    @property
    def label(self) -> str:
        """ "W4A4KV16"; "W4A4K4V8" where keys and values differ; "W4A4Q4KV4" where queries are quantized too."""
        queries = "" if self.queries == 16 else f"Q{self.queries}"
        cache = f"KV{self.keys}" if self.keys == self.values else f"K{self.keys}V{self.values}"
        return f"W{self.weights}A{self.activations}{queries}{cache}"

    @property
    def quantizes_attention(self) -> bool:
        """Whether queries, keys or values are quantized."""
        return (self.queries, self.keys, self.values) != (16, 16, 16)


@dataclass(frozen=True)
class WeightSettings:
    """The weight quantizer; `block` to `sequential` concern GPTQ alone."""

    name: Literal["rtn", "gptq"]
    scheme: Scheme
    group_size: int | None
    clip: float | Literal["search"]
    propagate: Literal["full_precision", "quantized_weights", "quantized"]
    block: int = 128
    damping: float = 0.01
    act_order: bool = False
    sequential: bool = True

    @property
    def arguments(self) -> dict[str, Any]:
        """The rounder's own options."""
        if self.name == "rtn":
            return {}
        return {key: getattr(self, key) for key in ("block", "damping", "act_order", "sequential")}


@dataclass(frozen=True)
class ActivationSettings:
    """The activation quantizer; `clip` is a share of the token's range in (0, 1], or "search"."""

    name: str
    scheme: Scheme
    clip: float | Literal["search"]
    candidates: int
    group_size: int | None


@dataclass(frozen=True)
class CacheSettings(ActivationSettings):
    """The quantizer of queries, keys and values; `group_size` None = a grid a token and head."""


@dataclass(frozen=True)
class CalibrationSettings:
    """The text that statistics are captured on."""

    name: str
    text: str
    path: Path | None
    dataset_path: Path | None
    tokens: int
    window: int
    seed: int


@dataclass(frozen=True)
class PerplexitySettings:
    """Texts that perplexity, KL and top-1 agreement are measured on; `count` windows of each, None = all."""

    texts: tuple[str, ...]
    window: int
    count: int | None
    path: Path | None
    dataset_path: Path | None
    batch_size: int


@dataclass(frozen=True)
class ZeroShotSettings:
    """lm-eval tasks; `limit` questions of each, None = all."""

    tasks: tuple[str, ...]
    limit: int | None
    batch_size: int


@dataclass(frozen=True)
class ActivationRecordSettings:
    """The layer and site whose activations are kept for figures; `tokens` of them, spread over the calibration text."""

    layer: int
    site: Literal["qkv", "o", "gate_up", "down"]
    tokens: int


SpeedKind = Literal["bf16", "bf16_graph", "fake", "packed", "packed_graph"]


@dataclass(frozen=True)
class SpeedSettings:
    """Prefill and decode of the whole model, measured in each of `kinds` and at each of `batches`."""

    kinds: tuple[SpeedKind, ...]
    batches: tuple[int, ...]
    prompt: int  # tokens a sequence
    new_tokens: int  # decoded one by one behind the prompt
    repeats: int
    warmup: int  # passes that are not timed; kernels are tuned and peak memory is taken in them


@dataclass(frozen=True)
class TaskSettings:
    """What is measured after quantization, and what is kept of it."""

    name: str
    perplexity: PerplexitySettings | None
    zeroshot: ZeroShotSettings | None
    activations: ActivationRecordSettings | None = None
    speed: SpeedSettings | None = None


@dataclass(frozen=True)
class TrackerSettings:
    """Who is told about a finished run besides its run directory."""

    name: Literal["offline", "online", "none"]
    project: str
    entity: str | None
    group: str | None
    tags: tuple[str, ...]
    dir: Path | None


@dataclass(frozen=True)
class PathSettings:
    """Where run directories and caches go; both absolute."""

    results: Path
    cache: Path


@dataclass(frozen=True)
class ExperimentSettings:
    """One run, complete and checked."""

    model: ModelSettings
    method: MethodSettings
    bits: BitsSettings
    weights: WeightSettings
    activations: ActivationSettings
    cache: CacheSettings
    calibration: CalibrationSettings
    task: TaskSettings
    tracker: TrackerSettings
    paths: PathSettings
    save_to: Path | None  # folder of the packed checkpoint, made where it is not there yet
    seed: int
    effort: float  # share of their published training that learned methods take; resolved in the method's arguments
    force: bool
    reference_methods: tuple[str, ...]
    executor: str
