"""The sections of a composed config as typed settings; every mistake is told to the `Reader` and none raises."""

from __future__ import annotations

from typing import Any

from sq.config.checks import (
    check_file,
    check_folder,
    check_model_path,
    check_target,
    check_text,
    check_writable,
)
from sq.config.reader import Reader
from sq.config.settings import (
    ActivationRecordSettings,
    ActivationSettings,
    BitsSettings,
    CacheSettings,
    CalibrationSettings,
    MethodSettings,
    ModelSettings,
    PathSettings,
    PerplexitySettings,
    SpeedSettings,
    TaskSettings,
    TrackerSettings,
    WeightSettings,
    ZeroShotSettings,
)

SCHEMES = ("symmetric", "asymmetric", "midrise")
DTYPES = ("auto", "float32", "bfloat16", "float16")
PLACEMENTS = ("auto", "memory", "stream")
PROPAGATE = ("full_precision", "quantized_weights", "quantized")
KINDS = ("bf16", "bf16_graph", "fake", "packed", "packed_graph")
TRACKERS = ("offline", "online", "none")
SITES = ("qkv", "o", "gate_up", "down")  # sq.models.families.SITES, which would import torch
BITS = (2, 3, 4, 5, 6, 7, 8, 16)


def read_model(read: Reader) -> ModelSettings:
    """The `model` section."""
    path = read.text("path")
    settings = ModelSettings(
        name=read.name("name"),
        path=check_model_path(path, read) if path else path,
        revision=read.optional_text("revision"),
        dtype=read.choice("dtype", DTYPES, default="auto"),
        device=read.text("device", default="auto"),
        placement=read.choice("placement", PLACEMENTS, default="auto"),
        outliers=read.choice("outliers", ("planted", "none"), default="none"),
        outlier_strength=read.number("outlier_strength", above=0.0, default=1.0),
        texts=read.names("texts"),
        window=read.integer("window", low=2),
        evaluation_windows=read.optional_integer("evaluation_windows", low=1),
        calibration_text=read.text("calibration_text"),
        calibration_tokens=read.integer("calibration_tokens", low=1),
        zeroshot_tasks=read.names("zeroshot_tasks", default=()),
        architecture=None if (part := read.optional_section("architecture")) is None else part.rest(),
    )
    device = settings.device
    if device not in ("auto", "cpu", "cuda") and not (device.startswith("cuda:") and device[5:].isdigit()):
        read.problem("device", device, "auto, cpu, cuda, or one card such as cuda:0")
    read.finish()
    return settings


def read_method(read: Reader) -> MethodSettings:
    """The `method` section: a class and its arguments."""
    name, target = read.name("name"), read.text("_target_")
    quantizes = read.boolean("quantizes", default=True)
    if target:
        check_target(target, read)
    return MethodSettings(name, target, read.rest(), quantizes)


def read_bits(read: Reader) -> BitsSettings:
    """The `bits` section."""
    words = "2 to 8, or 16 for no quantization"
    settings = BitsSettings(
        name=read.name("name"),
        weights=read.one_of("weights", BITS, words),
        activations=read.one_of("activations", BITS, words),
        keys=read.one_of("keys", BITS, words),
        values=read.one_of("values", BITS, words),
        queries=read.one_of("queries", BITS, words, default=16),
    )
    read.finish()
    return settings


def read_weights(read: Reader) -> WeightSettings:
    """The `weights` section."""
    settings = WeightSettings(
        name=read.choice("name", ("rtn", "gptq")),
        scheme=read.choice("scheme", SCHEMES),
        group_size=read.optional_integer("group_size", low=2),
        clip=read.clip("clip", default="search"),
        propagate=read.choice("propagate", PROPAGATE, default="quantized_weights"),
        block=read.integer("block", low=1, default=128),
        damping=read.number("damping", above=0.0, default=0.01),
        act_order=read.boolean("act_order", default=False),
        sequential=read.boolean("sequential", default=True),
    )
    read.finish()
    return settings


def read_activations(read: Reader) -> ActivationSettings:
    """The `activations` section."""
    settings = ActivationSettings(**_rounding(read))
    read.finish()
    return settings


def read_cache(read: Reader) -> CacheSettings:
    """The `cache` section."""
    settings = CacheSettings(**_rounding(read))
    read.finish()
    return settings


def _rounding(read: Reader) -> dict[str, Any]:
    return {
        "name": read.name("name"),
        "scheme": read.choice("scheme", SCHEMES),
        "clip": read.clip("clip"),
        "candidates": read.integer("candidates", low=2, default=9),
        "group_size": read.optional_integer("group_size", low=2),
    }


def read_calibration(read: Reader) -> CalibrationSettings:
    """The `calibration` section."""
    settings = CalibrationSettings(
        name=read.name("name"),
        text=read.text("text"),
        path=check_file(read.optional_path("path"), read, "path"),
        dataset_path=check_folder(read.optional_path("dataset_path"), read, "dataset_path"),
        tokens=read.integer("tokens", low=1),
        window=read.integer("window", low=2),
        seed=read.integer("seed", low=0),
    )
    if settings.path is None:
        check_text(settings.text, read, "text")
    if 0 < settings.tokens < settings.window:
        read.say(
            f"calibration.tokens={settings.tokens} is less than one window (calibration.window={settings.window}); "
            f"ask for at least {settings.window} tokens or shorten the window"
        )
    read.finish()
    return settings


def read_task(read: Reader) -> TaskSettings:
    """The `task` section."""
    perplexity: PerplexitySettings | None = None
    zeroshot: ZeroShotSettings | None = None
    activations: ActivationRecordSettings | None = None
    if (part := read.optional_section("perplexity")) is not None:
        perplexity = _perplexity(part)
    if (part := read.optional_section("zeroshot")) is not None:
        zeroshot = ZeroShotSettings(
            tasks=part.names("tasks"),
            limit=part.optional_integer("limit", low=1),
            batch_size=part.integer("batch_size", low=1, default=8),
        )
        part.finish()
    if (part := read.optional_section("activations")) is not None:
        activations = ActivationRecordSettings(
            layer=part.integer("layer", low=0),
            site=part.choice("site", SITES),
            tokens=part.integer("tokens", low=1),
        )
        part.finish()
    speed = None if (part := read.optional_section("speed")) is None else _speed(part)
    settings = TaskSettings(read.name("name"), perplexity, zeroshot, activations, speed)
    read.finish()
    return settings


def _perplexity(read: Reader) -> PerplexitySettings:
    settings = PerplexitySettings(
        texts=read.names("texts"),
        window=read.integer("window", low=2),
        count=read.optional_integer("count", low=1),
        path=check_file(read.optional_path("path"), read, "path"),
        dataset_path=check_folder(read.optional_path("dataset_path"), read, "dataset_path"),
        batch_size=read.integer("batch_size", low=1, default=8),
    )
    if settings.path is None:
        for text in settings.texts:
            check_text(text, read, "texts")
    elif len(settings.texts) > 1:
        read.say(
            f"task.perplexity.path is one file but task.perplexity.texts names {len(settings.texts)} texts; "
            "name one, for example task.perplexity.texts=[mine]"
        )
    read.finish()
    return settings


def _speed(read: Reader) -> SpeedSettings:
    settings = SpeedSettings(
        kinds=read.choices("kinds", KINDS),
        batches=read.integers("batches", low=1),
        prompt=read.integer("prompt", low=1),
        new_tokens=read.integer("new_tokens", low=1),
        repeats=read.integer("repeats", low=1),
        warmup=read.integer("warmup", low=1),
    )
    read.finish()
    return settings


def read_tracker(read: Reader) -> TrackerSettings:
    """The `tracker` section."""
    settings = TrackerSettings(
        name=read.choice("name", TRACKERS),
        project=read.text("project", default="singlequant"),
        entity=read.optional_text("entity"),
        group=read.optional_text("group"),
        tags=read.names("tags", default=()),
        dir=read.optional_path("dir"),
    )
    read.finish()
    return settings


def read_paths(read: Reader) -> PathSettings:
    """The `paths` section."""
    settings = PathSettings(read.path("results"), read.path("cache"))
    check_writable(settings.results, read, "results")
    read.finish()
    return settings
