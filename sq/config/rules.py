"""What types cannot say: arguments of methods, files and folders that a config points at, and contradictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from sq.checkpoint.export.rules import export_obstacles
from sq.checkpoint.save_to import save_obstacles
from sq.config import settings as of
from sq.config.choices import content, exists, options
from sq.data.sources import RANDOM, source_obstacles
from sq.errors import QuantizationError
from sq.formats.labels import Bits, format_of
from sq.io import unwritable
from sq.models.place import EMBEDDED, known_widths, model_obstacles
from sq.quantize.arguments import method_of, rounder_mistakes
from sq.quantize.taken_formats import Grouping, refusals

TRACKERS = {"tensorboard": ("tensorboard", "tensorboard"), "mlflow": ("mlflow", "mlflow-skinny")}  # module, package


def broken_rules(found: Mapping[str, Any]) -> list[str]:
    """The mistakes that types do not see.

    Args:
        found: the sections without mistakes of their own. A rule that reads another is left out, or takes its default.
    """
    problems: list[str] = []
    for rule in (
        _model,
        _tracker,
        _calibration,
        _perplexity,
        _places,
        _save_to,
        _random,
        _task,
        _objective,
        _method,
        _rounder,
        _formats,
        _export,
    ):
        wanted = signature(rule).parameters
        if all(name in found or one.default is not Parameter.empty for name, one in wanted.items()):
            problems.extend(rule(**{name: found[name] for name in wanted if name in found}))
    return problems


def _model(model: of.ModelSettings) -> Iterator[str]:
    yield from model_obstacles(model.name, model.path, model.architecture)
    if model.outliers != "none" and model.path != EMBEDDED:
        yield f"model.outliers={model.outliers} is for the embedded model, {model.path} has its own; use none"


def _tracker(tracker: of.TrackerSettings, paths: of.PathSettings, save_to: Path | None = None) -> Iterator[str]:
    """W&B itself would write to the system's temporary folder instead, and say nothing."""
    module, package = TRACKERS.get(tracker.name, ("wandb", "wandb"))
    if tracker.name != "none" and find_spec(module) is None:
        yield f"tracker={tracker.name} needs a package that is not installed: pip install {package}"
    if "packed" in tracker.artifacts and save_to is None:
        yield "tracker.artifacts names packed, and this run packs nothing; add save_to=FOLDER"
    folder = tracker.dir or Path.cwd()
    if tracker.name != "none" and folder != paths.results and (reason := unwritable(folder)):
        yield f"tracker.dir={folder}; allowed: {reason}, or tracker=none"


def _calibration(calibration: of.CalibrationSettings) -> Iterator[str]:
    yield from source_obstacles("calibration.text", [calibration.text], calibration.path, calibration.dataset_path)
    if calibration.tokens < calibration.window:
        yield (
            f"calibration.tokens={calibration.tokens} is less than one window (calibration.window={calibration.window})"
            f"; ask for at least {calibration.window} tokens or shorten the window"
        )


def _perplexity(task: of.TaskSettings) -> Iterator[str]:
    if (wanted := task.perplexity) is not None:
        yield from source_obstacles("task.perplexity.texts", wanted.texts, wanted.path, wanted.dataset_path)


def _places(paths: of.PathSettings, reference_methods: tuple[str, ...] = ()) -> Iterator[str]:
    if reason := unwritable(paths.results):
        yield f"paths.results={paths.results}; allowed: {reason}"
    for name in reference_methods:
        if not exists("method", name):
            yield f"reference_methods names {name!r}; allowed: {', '.join(options('method'))}"


def _save_to(bits: Bits, task: of.TaskSettings, save_to: Path | None = None) -> Iterator[str]:
    if save_to is not None:
        yield from save_obstacles(save_to, bits, keeps_activations=task.activations is not None)


def _export(
    method: of.MethodSettings,
    weights: of.WeightSettings,
    activations: of.ActivationSettings,
    bits: Bits,
    task: of.TaskSettings,
    save_to: Path | None = None,
    export: str | None = None,
) -> Iterator[str]:
    """What the format of another engine cannot say."""
    if export is None:
        return
    if not method.quantizes:
        yield f"export={export} writes a quantized model, and method={method.name} leaves it as it is"
        return
    try:
        formats = (
            format_of(bits.weights, weights.scheme, weights.group_size),
            format_of(bits.activations, activations.scheme, activations.group_size),
        )
    except QuantizationError:
        return  # `_formats` tells of it
    built = method_of(method.target, method.name, method.arguments, [])
    yield from export_obstacles(
        export,
        save_to,
        bits,
        *formats,
        clip=activations.clip,
        head_groups=activations.o_group is not None,
        method=method.name,
        method_obstacle=None if built is None else built.export_obstacle(),
        measures_speed=task.speed is not None,
    )


def _random(model: of.ModelSettings, calibration: of.CalibrationSettings, task: of.TaskSettings) -> Iterator[str]:
    """Random weights know no text, and other weights no random one."""
    random_text = calibration.text == RANDOM
    if model.architecture is None:
        if random_text and model.path != RANDOM:
            yield "calibration.text=random is for random weights; name a text that the model knows"
        if task.perplexity is not None and RANDOM in task.perplexity.texts:
            yield "task.perplexity.texts=random is not a text that anything can be measured on"
        return
    if not random_text:
        yield f"calibration.text={calibration.text}: random weights have no tokenizer; allowed: {RANDOM} (token ids)"
    if task.perplexity is not None or task.zeroshot is not None:
        yield f"task={task.name}: random weights know no text, their scores say nothing; use task=speed or task=none"


def _task(model: of.ModelSettings, bits: Bits, task: of.TaskSettings) -> Iterator[str]:
    if task.zeroshot is not None and model.placement == "stream":
        yield "zero-shot tasks need the whole model: set model.placement=memory, or task=perplexity"
    if task.speed is not None and model.placement == "stream":
        yield "task=speed runs the whole model: set model.placement=memory (or auto)"
    quantized = [] if task.speed is None else [kind for kind in task.speed.kinds if not kind.startswith("bf16")]
    if quantized and not bits.packs:
        yield (
            f"task=speed: {', '.join(quantized)} have packed weights, {bits.label} leaves them in 16 bits; use 2 to 8 "
            "bits or a format for weights, or task.speed.kinds=[bf16,bf16_graph]"
        )


def _objective(task: of.TaskSettings, method: of.MethodSettings, objective: tuple[str, ...] = ()) -> Iterator[str]:
    """Metrics that no run of these settings would have. Full precision has fewer, and is no mistake in a search."""
    texts = () if task.perplexity is None else task.perplexity.texts
    known = [f"{name}/{text}" for text in texts for name in ("ppl", "kl", "top1")]
    if task.zeroshot is not None:
        known += ["acc/mean", *(f"acc/{name}" for name in task.zeroshot.tasks)]
    known += ["model/bytes", "model/bits_per_weight", "transform/multiply_adds", "quantize/seconds"]
    known += ["quantize/peak_memory_bytes"]
    for name in objective:
        if name not in known and not (task.speed is not None and name.startswith("speed/")):
            yield f"objective={name} is not measured by task={task.name}; measured: {', '.join(known)}"


def _method(method: of.MethodSettings) -> list[str]:
    problems: list[str] = []
    base = method.name.removesuffix("_published")
    if base != method.name and exists("published", base) and content("method", base)["_target_"] != method.target:
        problems.append(
            f"published={base} is the recipe of {base}, and the method of this run is {method.target}; leave "
            "method= out, or published="
        )
    method_of(method.target, method.name, method.arguments, problems)
    return problems


def _rounder(weights: of.WeightSettings) -> list[str]:
    return rounder_mistakes(weights.name, weights.arguments)


def _formats(
    model: of.ModelSettings,
    method: of.MethodSettings,
    weights: of.WeightSettings,
    activations: of.ActivationSettings,
    kv_cache: of.CacheSettings,
    bits: Bits = Bits("4", "4"),  # noqa: B008  (frozen; beside a wrong label, groups are judged as those of integers)
) -> list[str]:
    """Formats that a part of the run does not take, and groups that do not divide."""
    if not method.quantizes:
        return []
    if activations.o_group is not None and not bits.activations.isdigit():
        return [
            f"activations.o_group={activations.o_group} makes groups of integers, {bits.activations} has groups of its "
            "own; set activations.o_group=null, or integer activations, for example bits=w4a4"
        ]
    groupings = (Grouping(one.scheme, one.group_size) for one in (weights, activations, kv_cache))
    built = method_of(method.target, method.name, method.arguments, [])
    widths = known_widths(model.path, model.architecture)
    return refusals(bits, *groupings, method=built, rounder=weights.name, widths=widths)
