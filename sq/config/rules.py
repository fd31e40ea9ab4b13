"""What types cannot say: arguments of methods, files and folders that a config points at, and contradictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from sq.checkpoint.register import save_obstacle
from sq.config.choices import exists, options
from sq.config.settings import (
    ActivationSettings,
    CalibrationSettings,
    MethodSettings,
    ModelSettings,
    PathSettings,
    TaskSettings,
    WeightSettings,
)
from sq.data.sources import RANDOM, source_obstacles
from sq.formats.labels import Bits
from sq.io import unwritable
from sq.models.place import known_widths, model_obstacles
from sq.quantize.arguments import method_of, rounder_of
from sq.quantize.taken_formats import Grouping, packs, refusals


def broken_rules(found: Mapping[str, Any]) -> list[str]:
    """The mistakes that types do not see. A rule that reads a section with mistakes of its own is left out."""
    problems: list[str] = []
    for rule in (_model, _calibration, _perplexity, _places, _save_to, _random, _task, _arguments):
        names = signature(rule).parameters
        if found.keys() >= names.keys():
            problems.extend(rule(**{name: found[name] for name in names}))
    return problems


def _model(model: ModelSettings) -> Iterator[str]:
    yield from model_obstacles(model.path)


def _calibration(calibration: CalibrationSettings) -> Iterator[str]:
    yield from source_obstacles("calibration.text", [calibration.text], calibration.path, calibration.dataset_path)
    if calibration.tokens < calibration.window:
        yield (
            f"calibration.tokens={calibration.tokens} is less than one window (calibration.window={calibration.window})"
            f"; ask for at least {calibration.window} tokens or shorten the window"
        )


def _perplexity(task: TaskSettings) -> Iterator[str]:
    if (wanted := task.perplexity) is None:
        return
    yield from source_obstacles("task.perplexity.texts", wanted.texts, wanted.path, wanted.dataset_path)
    if wanted.path is not None and len(wanted.texts) > 1:
        yield (
            f"task.perplexity.path is one file but task.perplexity.texts names {len(wanted.texts)} texts; "
            "name one, for example task.perplexity.texts=[mine]"
        )


def _places(paths: PathSettings, reference_methods: tuple[str, ...]) -> Iterator[str]:
    if reason := unwritable(paths.results):
        yield f"paths.results={paths.results}; allowed: {reason}"
    for name in reference_methods:
        if not exists("method", name):
            yield f"reference_methods names {name!r}; allowed: {', '.join(options('method'))}"


def _save_to(save_to: Path | None, bits: Bits, task: TaskSettings) -> Iterator[str]:
    if save_to is None:
        return
    if not packs(bits):
        yield f"save_to packs weights, {bits.label} leaves them in 16 bits; use 2 to 8 bits or a format, or omit it"
    if task.activations is not None:
        yield "save_to takes layers over from an interrupted run, task.activations must see them; make two runs"
    if reason := save_obstacle(save_to):
        yield f"save_to={save_to}; allowed: {reason}"


def _random(model: ModelSettings, calibration: CalibrationSettings, task: TaskSettings) -> Iterator[str]:
    """Random weights: a name that hides them, texts, and a score that would say nothing."""
    if model.architecture is None:
        if model.path == RANDOM:
            yield "model.path=random needs sizes in model.architecture; choose one of model=random_<shape>"
        elif calibration.text == RANDOM and calibration.path is None:
            yield "calibration.text=random is for random weights; name a text that the model knows"
        if task.perplexity is not None and task.perplexity.path is None and RANDOM in task.perplexity.texts:
            yield "task.perplexity.texts=random is not a text that anything can be measured on"
        return
    if model.path != RANDOM:
        yield f"model.architecture describes random weights, model.path={model.path} names others; give one"
    if not model.name.startswith(f"{RANDOM}_"):
        yield f"model.name={model.name} has random weights; begin it with {RANDOM}_ so that tables show it"
    if calibration.text != RANDOM or calibration.path is not None:
        yield f"calibration.text={calibration.text}: random weights have no tokenizer; allowed: {RANDOM} (token ids)"
    if task.perplexity is not None or task.zeroshot is not None:
        yield f"task={task.name}: random weights know no text, their scores say nothing; use task=speed or task=none"


def _task(model: ModelSettings, bits: Bits, task: TaskSettings) -> Iterator[str]:
    if task.zeroshot is not None and model.placement == "stream":
        yield "zero-shot tasks need the whole model: set model.placement=memory, or task=perplexity"
    if task.speed is not None and model.placement == "stream":
        yield "task=speed runs the whole model: set model.placement=memory (or auto)"
    quantized = [] if task.speed is None else [kind for kind in task.speed.kinds if not kind.startswith("bf16")]
    if quantized and not packs(bits):
        yield (
            f"task=speed: {', '.join(quantized)} have packed weights, {bits.label} leaves them in 16 bits; use 2 to 8 "
            "bits or a format for weights, or task.speed.kinds=[bf16,bf16_graph]"
        )


def _arguments(
    model: ModelSettings,
    method: MethodSettings,
    bits: Bits,
    weights: WeightSettings,
    activations: ActivationSettings,
    kv_cache: ActivationSettings,
) -> list[str]:
    """Arguments of method and rounder, as their own classes judge them, and formats that one of them does not take."""
    problems: list[str] = []
    built = method_of(method.target, method.name, method.arguments, problems)
    rounder = rounder_of(weights.name, weights.arguments, problems)
    if method.quantizes:
        groupings = (Grouping(one.scheme, one.group_size) for one in (weights, activations, kv_cache))
        widths = known_widths(model.path, model.architecture)
        problems += refusals(bits, *groupings, method=built, rounder=(weights.name, rounder), widths=widths)
    return problems
