"""The schema of a config: frozen pydantic dataclasses that `sq.config.parse` returns and everything else receives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, MinLen
from pydantic import AfterValidator, BeforeValidator, ConfigDict, FiniteFloat
from pydantic.dataclasses import dataclass

from sq.kernels.schemes import Scheme
from sq.models.place import absolute
from sq.quantize import typed as t

SpeedKind = Literal["bf16", "bf16_graph", "fake", "packed", "packed_graph"]
CONFIG = ConfigDict(extra="forbid", defer_build=True)


@dataclass(frozen=True, config=CONFIG)
class ModelSettings:
    """What is quantized, and the texts, windows and tasks that go with it."""

    name: t.Name
    path: Annotated[t.Text, AfterValidator(absolute)]  # hub id, local folder, "embedded" or "random"
    texts: t.Names
    window: t.Pair
    calibration_text: t.Text
    calibration_tokens: t.Count
    revision: t.Text | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: t.Device = "auto"
    placement: Literal["auto", "memory", "stream"] = "auto"
    outliers: Annotated[Literal["planted", "none"], t.NullIsNone] = "none"
    outlier_strength: Annotated[FiniteFloat, Gt(0)] = 1.0
    evaluation_windows: t.Count | None = None
    zeroshot_tasks: t.AnyNames = ()
    architecture: Mapping[str, Any] | None = None  # of a model with random weights: a transformers config as plain data


@dataclass(frozen=True, config=CONFIG)
class MethodSettings:
    """A method's class path and its arguments; `quantizes` is false for the full-precision row alone."""

    name: t.Name
    target: Annotated[str, MinLen(1), t.Note("a non-empty text", key="_target_")]
    arguments: Annotated[Mapping[str, Any], t.Note(rest=True)]
    quantizes: bool = True


@dataclass(frozen=True, config=CONFIG)
class WeightSettings:
    """The weight quantizer; `arguments` are the rounder's own (sq.quantize.rounders)."""

    name: t.Name
    scheme: Scheme
    arguments: Annotated[Mapping[str, Any], t.Note(rest=True)]
    group_size: t.Pair | None = None
    clip: t.Clip = "search"
    propagate: Literal["full_precision", "quantized_weights", "quantized"] = "quantized_weights"


@dataclass(frozen=True, config=CONFIG)
class ActivationSettings:
    """A quantizer of activations; `clip` is a share of the token's range in (0, 1], or "search"."""

    name: t.Name
    scheme: Scheme
    clip: t.Clip
    candidates: t.Pair = 9
    group_size: t.Pair | None = None


@dataclass(frozen=True, config=CONFIG)
class CalibrationSettings:
    """The text that statistics are captured on."""

    name: t.Name
    text: t.Text
    tokens: t.Count
    window: t.Pair
    seed: t.Seed
    path: t.Place | None = None
    dataset_path: t.Place | None = None


@dataclass(frozen=True, config=CONFIG)
class PerplexitySettings:
    """Texts that perplexity, KL and top-1 agreement are measured on; `count` windows of each, None = all."""

    texts: t.Names
    window: t.Pair
    count: t.Count | None = None
    path: t.Place | None = None
    dataset_path: t.Place | None = None
    batch_size: t.Count = 8


@dataclass(frozen=True, config=CONFIG)
class ZeroShotSettings:
    """lm-eval tasks; `limit` questions of each, None = all."""

    tasks: t.Names
    limit: t.Count | None = None
    batch_size: t.Count = 8


@dataclass(frozen=True, config=CONFIG)
class ActivationRecordSettings:
    """The layer and site whose activations are kept for figures; `tokens` of them, spread over the calibration text."""

    layer: Annotated[int, Ge(0)]
    site: Literal["qkv", "o", "gate_up", "down"]
    tokens: t.Count


@dataclass(frozen=True, config=CONFIG)
class SpeedSettings:
    """Prefill and decode of the whole model, measured in each of `kinds` and at each of `batches`."""

    kinds: Annotated[tuple[SpeedKind, ...], BeforeValidator(t.listed), MinLen(1)]
    batches: t.Distinct
    prompt: t.Count  # tokens a sequence
    new_tokens: t.Count  # decoded one by one behind the prompt
    repeats: t.Count
    warmup: t.Count  # passes that are not timed; kernels are tuned and peak memory is taken in them


@dataclass(frozen=True, config=CONFIG)
class TaskSettings:
    """What is measured after quantization, and what is kept of it."""

    name: t.Name
    perplexity: PerplexitySettings | None = None
    zeroshot: ZeroShotSettings | None = None
    activations: ActivationRecordSettings | None = None
    speed: SpeedSettings | None = None


@dataclass(frozen=True, config=CONFIG)
class TrackerSettings:
    """Who learns of a finished run besides its run directory."""

    name: Annotated[Literal["offline", "online", "none"], t.NullIsNone]
    project: t.Text = "singlequant"
    entity: t.Text | None = None
    group: t.Text | None = None
    tags: t.AnyNames = ()
    dir: t.Place | None = None


@dataclass(frozen=True, config=CONFIG)
class PathSettings:
    """Where run directories and caches go; both absolute."""

    results: t.Place
    cache: t.Place


@dataclass(frozen=True, config=CONFIG)
class ExperimentSettings:
    """One run, complete and checked."""

    model: ModelSettings
    method: MethodSettings
    bits: t.Label
    weights: WeightSettings
    activations: ActivationSettings
    kv_cache: ActivationSettings  # of queries, keys and values; group_size null = a grid a token and head
    calibration: CalibrationSettings
    task: TaskSettings
    tracker: TrackerSettings
    paths: PathSettings
    seed: t.Seed
    save_to: t.Place | None = None  # folder of the packed checkpoint, made where it is not there yet
    effort: Annotated[FiniteFloat, Ge(0)] = 1.0  # share of their published training that learned methods take
    force: bool = False
    reference_methods: t.AnyNames = ()
    executor: t.Text = "sq.runs.execute:execute"
