"""The schema of a config: frozen pydantic dataclasses that `sq.config.parse` returns and everything else receives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, MinLen
from pydantic import AfterValidator, BeforeValidator, ConfigDict, FiniteFloat, PlainSerializer, PlainValidator
from pydantic.dataclasses import dataclass

from sq.errors import QuantizationError
from sq.formats.labels import Bits, parse_bits
from sq.kernels.schemes import Scheme
from sq.models.place import absolute
from sq.quantize.arguments import Seed
from sq.quantize.typed import (
    AnyNames,
    Clip,
    Count,
    Device,
    Distinct,
    Name,
    Names,
    Note,
    NullIsNone,
    Pair,
    Place,
    Text,
    listed,
)

SCHEMA = 1  # part of every run id: raised when a key changes its meaning, so that no run is taken for another


def _bits(value: Any) -> Bits:
    if isinstance(value, dict):
        raise QuantizationError("bits is a label, not a section; write for example bits=w5a4 or bits=w4a4kv4")
    return value if isinstance(value, Bits) else parse_bits(value)


Label = Annotated[Bits, PlainValidator(_bits), PlainSerializer(lambda bits: bits.label.lower())]
SpeedKind = Literal["bf16", "bf16_graph", "fake", "packed", "packed_graph"]
CONFIG = ConfigDict(extra="forbid", defer_build=True)


@dataclass(frozen=True, config=CONFIG)
class ModelSettings:
    """What is quantized, and the texts, windows and tasks that go with it."""

    name: Name
    path: Annotated[Text, AfterValidator(absolute)]  # hub id, local folder, "embedded" or "random"
    texts: Names
    window: Pair
    calibration_text: Text
    calibration_tokens: Count
    revision: Text | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Device = "auto"
    placement: Literal["auto", "memory", "stream"] = "auto"
    outliers: Annotated[Literal["planted", "none"], NullIsNone] = "none"
    outlier_strength: Annotated[FiniteFloat, Gt(0)] = 1.0
    evaluation_windows: Count | None = None
    zeroshot_tasks: AnyNames = ()
    architecture: Mapping[str, Any] | None = None  # of a model with random weights: a transformers config as plain data


@dataclass(frozen=True, config=CONFIG)
class MethodSettings:
    """A method's class path and its arguments; `quantizes` is false for the full-precision row alone."""

    name: Name
    target: Annotated[str, MinLen(1), Note("a non-empty text", key="_target_")]
    arguments: Annotated[Mapping[str, Any], Note(rest=True)]
    quantizes: bool = True


@dataclass(frozen=True, config=CONFIG)
class WeightSettings:
    """The weight quantizer; `arguments` are the rounder's own (sq.quantize.rounders)."""

    name: Name
    scheme: Scheme
    arguments: Annotated[Mapping[str, Any], Note(rest=True)]
    group_size: Pair | None = None
    clip: Clip = "search"
    propagate: Literal["full_precision", "quantized_weights", "quantized"] = "quantized_weights"


@dataclass(frozen=True, config=CONFIG)
class ActivationSettings:
    """A quantizer of activations; `clip` is a share of the token's range in (0, 1], or "search"."""

    name: Name
    scheme: Scheme
    clip: Clip
    candidates: Pair = 9
    group_size: Pair | None = None


@dataclass(frozen=True, config=CONFIG)
class CalibrationSettings:
    """The text that statistics are captured on."""

    name: Name
    text: Text
    tokens: Count
    window: Pair
    seed: Seed
    path: Place | None = None
    dataset_path: Place | None = None


@dataclass(frozen=True, config=CONFIG)
class PerplexitySettings:
    """Texts that perplexity, KL and top-1 agreement are measured on; `count` windows of each, None = all."""

    texts: Names
    window: Pair
    count: Count | None = None
    path: Place | None = None
    dataset_path: Place | None = None
    batch_size: Count = 8


@dataclass(frozen=True, config=CONFIG)
class ZeroShotSettings:
    """lm-eval tasks; `limit` questions of each, None = all."""

    tasks: Names
    limit: Count | None = None
    batch_size: Count = 8


@dataclass(frozen=True, config=CONFIG)
class ActivationRecordSettings:
    """The layer and site whose activations are kept for figures; `tokens` of them, spread over the calibration text."""

    layer: Annotated[int, Ge(0)]
    site: Literal["qkv", "o", "gate_up", "down"]
    tokens: Count


@dataclass(frozen=True, config=CONFIG)
class SpeedSettings:
    """Prefill and decode of the whole model, measured in each of `kinds` and at each of `batches`."""

    kinds: Annotated[tuple[SpeedKind, ...], BeforeValidator(listed), MinLen(1)]
    batches: Distinct
    prompt: Count  # tokens a sequence
    new_tokens: Count  # decoded one by one behind the prompt
    repeats: Count
    warmup: Count  # passes that are not timed; kernels are tuned and peak memory is taken in them


@dataclass(frozen=True, config=CONFIG)
class TaskSettings:
    """What is measured after quantization, and what is kept of it."""

    name: Name
    perplexity: PerplexitySettings | None = None
    zeroshot: ZeroShotSettings | None = None
    activations: ActivationRecordSettings | None = None
    speed: SpeedSettings | None = None


@dataclass(frozen=True, config=CONFIG)
class TrackerSettings:
    """Who learns of a finished run besides its run directory."""

    name: Annotated[Literal["offline", "online", "none"], NullIsNone]
    project: Text = "singlequant"
    entity: Text | None = None
    group: Text | None = None
    tags: AnyNames = ()
    dir: Place | None = None


@dataclass(frozen=True, config=CONFIG)
class PathSettings:
    """Where run directories and caches go; both absolute."""

    results: Place
    cache: Place


@dataclass(frozen=True, config=CONFIG)
class ExperimentSettings:
    """One run, complete and checked."""

    model: ModelSettings
    method: MethodSettings
    bits: Label
    weights: WeightSettings
    activations: ActivationSettings
    kv_cache: ActivationSettings  # of queries, keys and values; group_size null = a grid a token and head
    calibration: CalibrationSettings
    task: TaskSettings
    tracker: TrackerSettings
    paths: PathSettings
    seed: Seed
    save_to: Place | None = None  # folder of the packed checkpoint, made where it is not there yet
    effort: Annotated[FiniteFloat, Ge(0)] = 1.0  # share of their published training that learned methods take
    force: bool = False
    reference_methods: AnyNames = ()
    executor: Text = "sq.runs.execute:execute"
