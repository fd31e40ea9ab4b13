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
from sq.config.checks import check_random, check_speed
from sq.config.reader import Reader
from sq.config.sections import (
    read_activations,
    read_bits,
    read_cache,
    read_calibration,
    read_method,
    read_model,
    read_paths,
    read_task,
    read_tracker,
    read_weights,
)
from sq.config.settings import BitsSettings, ExperimentSettings
from sq.errors import ConfigError

# Left out of a config, and so of run ids, where they are null: adding a section leaves every other run's id as it was.
OPTIONAL = {"model": ("architecture",), "task": ("activations", "speed")}
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
    method = read_method(root.section("method"))
    bits = read_bits(root.section("bits"))
    parsed = ExperimentSettings(
        model=read_model(root.section("model")),
        method=method,
        bits=bits if method.quantizes else FULL_PRECISION,
        weights=read_weights(root.section("weights")),
        activations=read_activations(root.section("activations")),
        cache=read_cache(root.section("cache")),
        calibration=read_calibration(root.section("calibration")),
        task=read_task(root.section("task")),
        tracker=read_tracker(root.section("tracker")),
        paths=read_paths(root.section("paths")),
        save_to=root.optional_path("save_to"),
        seed=root.integer("seed", low=0),
        effort=root.number("effort", low=0.0, default=1.0),
        force=root.boolean("force", default=False),
        reference_methods=root.names("reference_methods", default=()),
        executor=root.text("executor", default="sq.runs.execute:execute"),
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
    method = read_method(Reader("method", _load("method", name, settings), problems))
    weights = read_weights(Reader("weights", _load("weights", "rtn", settings), problems))
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
