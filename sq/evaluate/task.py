"""What is measured, as the section `task` of a config says it. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from sq.quantize import typed as t

SpeedKind = Literal["bf16", "bf16_graph", "fake", "packed", "packed_graph"]


@dataclass(frozen=True, config=t.CONFIG)
class PerplexitySettings:
    """Texts that perplexity, KL and top-1 agreement are measured on; `count` windows of each, None = all. `untrained`
    lets a full-precision model pass that is no better than guessing."""

    texts: t.Names
    window: t.Pair
    count: t.Count | None = None
    path: t.Place | None = None
    dataset_path: t.Place | None = None
    batch_size: t.Count = 8
    untrained: bool = False


@dataclass(frozen=True, config=t.CONFIG)
class ZeroShotSettings:
    """lm-eval tasks; `limit` questions of each, None = all. batch_size "auto": as many as fit, which lm-eval tries.
    device_map "auto" spreads a model that is larger than one device over all of them; None keeps it on model.device."""

    tasks: t.Names
    limit: t.Count | None = None
    batch_size: t.Count | Literal["auto"] = 8
    device_map: Literal["auto"] | None = None


@dataclass(frozen=True, config=t.CONFIG)
class ActivationRecordSettings:
    """The layer and site whose activations are kept for figures; `tokens` of them, spread over the calibration text."""

    layer: Annotated[int, Ge(0)]
    site: Literal["qkv", "o", "gate_up", "down"]
    tokens: t.Count


@dataclass(frozen=True, config=t.CONFIG)
class SpeedSettings:
    """Prefill and decode of the whole model, measured in each of `kinds` and at each of `batches`."""

    kinds: Annotated[tuple[SpeedKind, ...], BeforeValidator(t.listed), MinLen(1)]
    batches: t.Distinct
    prompt: t.Count  # tokens a sequence
    new_tokens: t.Count  # decoded one by one behind the prompt
    repeats: t.Count
    warmup: t.Count  # passes that are not timed; kernels are tuned and peak memory is taken in them


@dataclass(frozen=True, config=t.CONFIG)
class TaskSettings:
    """What is measured after quantization, and what is kept of it."""

    name: t.Name
    perplexity: PerplexitySettings | None = None
    zeroshot: ZeroShotSettings | None = None
    activations: ActivationRecordSettings | None = None
    speed: SpeedSettings | None = None
