"""The schema of a config: frozen pydantic dataclasses that `sq.config.parse` returns and everything else receives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, MinLen
from pydantic import AfterValidator, BeforeValidator, FiniteFloat
from pydantic.dataclasses import dataclass

from sq.evaluate.task import TaskSettings as TaskSettings
from sq.formats.elements import GridName
from sq.kernels.schemes import Scheme
from sq.models.place import absolute
from sq.quantize import typed as t


@dataclass(frozen=True, config=t.CONFIG)
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


@dataclass(frozen=True, config=t.CONFIG)
class MethodSettings:
    """A method's class path and its arguments; `quantizes` is false for the full-precision row alone."""

    name: t.Name
    target: Annotated[str, MinLen(1), t.Note("a non-empty text", key="_target_")]
    arguments: Annotated[Mapping[str, Any], t.Note(rest=True)]
    quantizes: bool = True


@dataclass(frozen=True, config=t.CONFIG)
class WeightSettings:
    """The weight quantizer; `arguments` are the rounder's own (sq.quantize.rounders)."""

    name: t.Name
    scheme: Scheme
    arguments: Annotated[Mapping[str, Any], t.Note(rest=True)]
    group_size: t.Pair | None = None
    clip: t.Clip = "search"
    propagate: Literal["full_precision", "quantized_weights", "quantized"] = "quantized_weights"


@dataclass(frozen=True, config=t.CONFIG)
class TokenSettings:
    """A quantizer with a scale for each token; `clip` is a share of the token's range in (0, 1], "search" for each
    token, or "site": one a site, chosen on calibration tokens."""

    name: t.Name
    scheme: GridName
    clip: t.SiteClip
    candidates: t.Pair = 9
    group_size: t.Pair | None = None


@dataclass(frozen=True, config=t.CONFIG)
class ActivationSettings(TokenSettings):
    """The quantizer in front of linears; at o, the features of each head may share a scale instead of all of them."""

    o_group: Literal["head"] | None = None


@dataclass(frozen=True, config=t.CONFIG)
class CacheSettings(TokenSettings):
    """The quantizer inside attention, which has no sites."""

    scheme: Scheme
    clip: t.Clip


@dataclass(frozen=True, config=t.CONFIG)
class CalibrationSettings:
    """The text that statistics are captured on; `sample` of its tokens are kept at each site for transforms (None: as
    many as the residual stream has channels, and at least 4,096)."""

    name: t.Name
    text: t.Text
    tokens: t.Count
    window: t.Pair
    seed: t.Seed
    sample: t.Count | None = None
    path: t.Place | None = None
    dataset_path: t.Place | None = None


@dataclass(frozen=True, config=t.CONFIG)
class TrackerSettings:
    """Who follows a run besides its run directory; offline and online are W&B."""

    name: Annotated[Literal["offline", "online", "tensorboard", "mlflow", "none"], t.NullIsNone]
    project: t.Text = "singlequant"
    entity: t.Text | None = None
    group: t.Text | None = None
    tags: t.AnyNames = ()
    dir: t.Place | None = None
    # Files that it gets as well: those of the run directory, and the packed folder of save_to.
    artifacts: Annotated[tuple[Literal["run", "packed"], ...], BeforeValidator(t.listed)] = ()


@dataclass(frozen=True, config=t.CONFIG)
class PathSettings:
    """Where run directories and caches go; both absolute."""

    results: t.Place
    cache: t.Place


@dataclass(frozen=True, config=t.CONFIG)
class ExperimentSettings:
    """One run, complete and checked."""

    model: ModelSettings
    method: MethodSettings
    bits: t.Label
    weights: WeightSettings
    activations: ActivationSettings
    kv_cache: CacheSettings  # of queries, keys and values; group_size null = a grid a token and head
    calibration: CalibrationSettings
    task: TaskSettings
    tracker: TrackerSettings
    paths: PathSettings
    seed: t.Seed
    save_to: t.Place | None = None  # folder of the packed or exported checkpoint, made where it is not there yet
    export: Literal["compressed-tensors"] | None = None  # the format of save_to for other engines; None packs
    effort: Annotated[FiniteFloat, Ge(0)] = 1.0  # share of their published training that learned methods take
    force: bool = False
    reference_methods: t.AnyNames = ()
    objective: t.AnyNames = ()  # metrics that a job returns to the sweeper of a search
    executor: t.Text = "sq.runs.execute:execute"
