"""From a composed config to typed settings: `parse` finds every mistake before anything is loaded.

`as_config` is its inverse and writes the run directory's config.yaml. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import sq.config.resolvers  # noqa: F401  (configs compute with it)
from sq.config.checks import (
    check_file,
    check_folder,
    check_model_path,
    check_random,
    check_speed,
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
    ExperimentSettings,
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
from sq.errors import ConfigError

__all__ = [
    "ActivationRecordSettings",
    "ActivationSettings",
    "BitsSettings",
    "CacheSettings",
    "CalibrationSettings",
    "ExperimentSettings",
    "MethodSettings",
    "ModelSettings",
    "PathSettings",
    "PerplexitySettings",
    "SpeedSettings",
    "TaskSettings",
    "TrackerSettings",
    "WeightSettings",
    "ZeroShotSettings",
    "as_config",
    "options",
    "parse",
    "reference",
]

SCHEMES = ("symmetric", "asymmetric", "midrise")
DTYPES = ("auto", "float32", "bfloat16", "float16")
PLACEMENTS = ("auto", "memory", "stream")
PROPAGATE = ("full_precision", "quantized_weights", "quantized")
KINDS = ("bf16", "bf16_graph", "fake", "packed", "packed_graph")
# Left out of a config, and so of run ids, where they are null: adding a section leaves every other run's id as it was.
OPTIONAL = {"model": ("architecture",), "task": ("activations", "speed")}
TRACKERS = ("offline", "online", "none")
SITES = ("qkv", "o", "gate_up", "down")  # sq.models.families.SITES, which would import torch
BITS = (2, 3, 4, 5, 6, 7, 8, 16)
FULL_PRECISION = BitsSettings("w16a16", 16, 16, 16, 16)
CONF = Path(__file__).resolve().parents[1] / "conf"


def parse(cfg: DictConfig) -> ExperimentSettings:
    """Check a composed config and turn it into settings.

    Raises:
        ConfigError: with every mistake of the config, one sentence each.
    """
    problems: list[str] = []
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise ConfigError([str(error).splitlines()[0]]) from error
    assert isinstance(values, dict)
    root = Reader("", {str(key): value for key, value in values.items()}, problems)
    method = _method(root.section("method"))
    bits = _bits(root.section("bits"))
    parsed = ExperimentSettings(
        model=_model(root.section("model")),
        method=method,
        bits=bits if method.quantizes else FULL_PRECISION,
        weights=_weights(root.section("weights")),
        activations=_activations(root.section("activations")),
        cache=_cache(root.section("cache")),
        calibration=_calibration(root.section("calibration")),
        task=_task(root.section("task")),
        tracker=_tracker(root.section("tracker")),
        paths=_paths(root.section("paths")),
        save_to=root.optional_path("save_to"),
        seed=root.integer("seed", low=0),
        effort=root.number("effort", low=0.0, default=1.0),
        force=root.boolean("force", default=False),
        reference_methods=root.names("reference_methods", default=()),
        executor=root.text("executor", default="sq.execute:execute"),
    )
    for name in parsed.reference_methods:
        if not (CONF / "method" / f"{name}.yaml").is_file():
            problems.append(f"reference_methods names {name!r}; allowed: {', '.join(options('method'))}")
    if parsed.save_to is not None and not 2 <= parsed.bits.weights <= 8:
        problems.append(f"save_to packs integer weights, {parsed.bits.label} has none; use 2 to 8 bits, or omit it")
    if parsed.task.activations is not None and parsed.save_to is not None:
        problems.append(
            "save_to takes layers over from an interrupted run, task.activations must see them; make two runs"
        )
    if parsed.task.zeroshot is not None and parsed.model.placement == "stream":
        problems.append("zero-shot tasks need the whole model: set model.placement=memory, or task=perplexity")
    problems += check_random(parsed) + check_speed(parsed)
    root.finish()
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    # Full precision is one of the kinds that task=speed measures, beside the others and in the same minutes.
    return parsed if parsed.task.speed is None else replace(parsed, reference_methods=())


def options(group: str) -> list[str]:
    """The choices of a config group: the files of conf/<group>/, sorted."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def reference(settings: ExperimentSettings, name: str) -> ExperimentSettings:
    """The run that `settings` is compared with: method `name` as its file states it, weights rounded to nearest.

    Model, bits, activation quantizer, calibration text and task stay as asked, so only the transform and the weight
    quantizer differ. Activations are kept of the method asked for alone: a reference need not have their stages.
    """
    problems: list[str] = []
    method = _method(Reader("method", _load("method", name, settings), problems))
    weights = _weights(Reader("weights", _load("weights", "rtn", settings), problems))
    if problems:
        raise ConfigError(problems)
    bits = settings.bits if method.quantizes else FULL_PRECISION
    task = replace(settings.task, activations=None)
    return replace(settings, method=method, bits=bits, weights=weights, task=task, save_to=None)


def as_config(settings: ExperimentSettings) -> dict[str, Any]:
    """The settings as plain YAML-ready values, shaped like the composed config: parse(as_config(s)) == s."""
    config: dict[str, Any] = plain(asdict(settings))
    for part, keys in OPTIONAL.items():
        for key in keys:
            if config[part][key] is None:
                del config[part][key]
    method = config["method"]
    own = {"name": method["name"], "_target_": method["target"], "quantizes": method["quantizes"]}
    config["method"] = {**own, **method["arguments"]}
    return config


def plain(value: Any) -> Any:
    """Tuples as lists, paths as texts, all the way down."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _load(group: str, name: str, settings: ExperimentSettings) -> dict[str, Any]:
    """A choice's file with its references to other groups (${seed}, ${calibration.window}) taken from `settings`."""
    around = OmegaConf.create({**as_config(settings), group: _file(group, name)})
    loaded = OmegaConf.to_container(around[group], resolve=True)
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items()}


def _file(group: str, name: str) -> DictConfig:
    """A choice's file on top of those that its defaults list names (- /method/singlequant@_here_)."""
    content = OmegaConf.load(CONF / group / f"{name}.yaml")
    assert isinstance(content, DictConfig)
    named = [str(entry) for entry in content.pop("defaults", []) if entry != "_self_"]
    parents = [_file(*entry.removeprefix("/").removesuffix("@_here_").rsplit("/", 1)) for entry in named]
    merged = OmegaConf.merge(*parents, content)
    assert isinstance(merged, DictConfig)
    return merged


def _model(read: Reader) -> ModelSettings:
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


def _method(read: Reader) -> MethodSettings:
    name, target = read.name("name"), read.text("_target_")
    quantizes = read.boolean("quantizes", default=True)
    if target:
        check_target(target, read)
    return MethodSettings(name, target, read.rest(), quantizes)


def _bits(read: Reader) -> BitsSettings:
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


def _weights(read: Reader) -> WeightSettings:
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


def _activations(read: Reader) -> ActivationSettings:
    settings = ActivationSettings(**_rounding(read))
    read.finish()
    return settings


def _cache(read: Reader) -> CacheSettings:
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


def _calibration(read: Reader) -> CalibrationSettings:
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


def _task(read: Reader) -> TaskSettings:
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


def _tracker(read: Reader) -> TrackerSettings:
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


def _paths(read: Reader) -> PathSettings:
    settings = PathSettings(read.path("results"), read.path("cache"))
    check_writable(settings.results, read, "results")
    read.finish()
    return settings
