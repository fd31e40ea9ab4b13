"""What types cannot say: files and folders that a config points at, and settings that contradict each other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from sq.checkpoint.register import is_packed
from sq.config.arguments import check_arguments, integer_weights
from sq.config.choices import exists, method_names, options
from sq.config.settings import Bits, CalibrationSettings, ModelSettings, PathSettings, TaskSettings
from sq.io import unwritable

RANDOM = "random"  # model.path of random weights, and the text of random token ids
TEXTS = ("embedded", "wikitext2", "c4", "c4_old")  # texts that sq.data knows by name; any name goes with a `path`


def broken_rules(found: Mapping[str, Any]) -> list[str]:
    """The mistakes that types do not see. A rule that reads a section with mistakes of its own is left out."""
    rules = (_model, _texts, _calibration, _names, _results, _save_to, _random, _known, _whole, check_arguments)
    problems: list[str] = []
    for rule in rules:
        names = signature(rule).parameters
        if found.keys() | {"save_to", "reference_methods"} >= names.keys():
            problems.extend(rule(**{name: found.get(name) for name in names}))  # type: ignore[operator]
    return problems


def _model(model: ModelSettings) -> Iterator[str]:
    path, folder = model.path, Path(model.path).expanduser()
    if path in ("embedded", RANDOM):
        return
    if not folder.exists():
        if path.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
            yield f"model.path={path}; allowed: a folder that exists, a hub id such as org/model, or embedded"
        return
    if not folder.is_dir():
        yield f"model.path={path}; allowed: a folder (this is a file); give the folder that holds config.json"
        return
    if not (folder / "config.json").is_file():
        yield f"model.path={path} has no config.json; give the folder that `save_pretrained` or the hub wrote"
    if not any(folder.glob("*.safetensors")):
        other = sorted(item.name for item in folder.iterdir() if item.suffix in (".bin", ".pt", ".pth", ".gguf"))
        note = f" (it has {', '.join(other[:3])}, which is not read: save it again as safetensors)" if other else ""
        yield f"model.path={path} holds no weights: no *.safetensors{note}; download or copy the weights there"


def _texts(task: TaskSettings) -> Iterator[str]:
    if (wanted := task.perplexity) is None:
        return
    yield from _source("task.perplexity", "texts", wanted.texts, wanted.path, wanted.dataset_path)
    if wanted.path is not None and len(wanted.texts) > 1:
        yield (
            f"task.perplexity.path is one file but task.perplexity.texts names {len(wanted.texts)} texts; "
            "name one, for example task.perplexity.texts=[mine]"
        )


def _calibration(calibration: CalibrationSettings) -> Iterator[str]:
    yield from _source("calibration", "text", (calibration.text,), calibration.path, calibration.dataset_path)
    if calibration.tokens < calibration.window:
        yield (
            f"calibration.tokens={calibration.tokens} is less than one window (calibration.window={calibration.window})"
            f"; ask for at least {calibration.window} tokens or shorten the window"
        )


def _source(place: str, key: str, texts: tuple[str, ...], path: Path | None, dataset: Path | None) -> Iterator[str]:
    """The texts of a section: known by name, or a file."""
    for text in texts if path is None else ():
        if text not in (*TEXTS, RANDOM):
            yield f"{place}.{key}={text}; allowed: {', '.join(TEXTS)}; or any name together with {place}.path=<text file>"
    if path is not None and not path.is_file():
        yield f"{place}.path={path}; allowed: a text file that exists"
    elif path is not None and not os.access(path, os.R_OK):
        yield f"{place}.path={path}; allowed: a text file that may be read (this one refuses; see its permissions)"
    elif path is not None and path.stat().st_size == 0:
        yield f"{place}.path={path}; allowed: a text file with text in it (this one is empty)"
    if dataset is not None and not dataset.is_dir():
        yield f"{place}.dataset_path={dataset}; allowed: a folder that exists, holding a local copy of the dataset"


def _names(reference_methods: tuple[str, ...] | None) -> Iterator[str]:
    for name in reference_methods or ():
        if not exists("method", name):
            yield f"reference_methods names {name!r}; allowed: {', '.join(options('method'))}"


def _results(paths: PathSettings) -> Iterator[str]:
    if reason := unwritable(paths.results):
        yield f"paths.results={paths.results}; allowed: {reason}"


def _save_to(save_to: Path | None, bits: Bits, task: TaskSettings) -> Iterator[str]:
    if save_to is None:
        return
    if not integer_weights(bits):
        yield f"save_to packs integer weights, {bits.label} has none; use 2 to 8 bits, or omit it"
    if task.activations is not None:
        yield "save_to takes layers over from an interrupted run, task.activations must see them; make two runs"
    if reason := unwritable(save_to):
        yield f"save_to={save_to}; allowed: {reason}"
    elif save_to.is_dir() and any(save_to.iterdir()) and not is_packed(save_to):
        yield (
            f"save_to={save_to} is a folder with other things in it; allowed: a new folder, an empty one, or the "
            "finished checkpoint of this very run"
        )


def _random(model: ModelSettings, calibration: CalibrationSettings, task: TaskSettings) -> Iterator[str]:
    if model.architecture is None:
        return
    if model.path != RANDOM:
        yield f"model.architecture describes random weights, model.path={model.path} names others; give one"
    if not model.name.startswith(f"{RANDOM}_"):
        yield f"model.name={model.name} has random weights; begin it with {RANDOM}_ so that tables show it"
    if calibration.text != RANDOM or calibration.path is not None:
        yield f"calibration.text={calibration.text}: random weights have no tokenizer; allowed: {RANDOM} (token ids)"
    if task.perplexity is not None or task.zeroshot is not None:
        yield f"task={task.name}: random weights know no text, and their scores say nothing; use task=speed or task=none"


def _known(model: ModelSettings, calibration: CalibrationSettings, task: TaskSettings) -> Iterator[str]:
    if model.architecture is not None:
        return
    if model.path == RANDOM:
        yield "model.path=random needs sizes in model.architecture; choose one of model=random_<shape>"
    elif calibration.text == RANDOM and calibration.path is None:
        yield "calibration.text=random is for random weights; name a text that the model knows"
    if task.perplexity is not None and task.perplexity.path is None and RANDOM in task.perplexity.texts:
        yield "task.perplexity.texts=random is not a text that anything can be measured on"


def _whole(model: ModelSettings, bits: Bits, task: TaskSettings) -> Iterator[str]:
    if task.zeroshot is not None and model.placement == "stream":
        yield "zero-shot tasks need the whole model: set model.placement=memory, or task=perplexity"
    if task.speed is None:
        return
    if model.placement == "stream":
        yield "task=speed runs the whole model: set model.placement=memory (or auto)"
    quantized = [kind for kind in task.speed.kinds if not kind.startswith("bf16")]
    if quantized and not integer_weights(bits):
        yield (
            f"task=speed: {', '.join(quantized)} have integer weights, {bits.label} has none; use 2 to 8 bits "
            "for weights, or task.speed.kinds=[bf16,bf16_graph]"
        )
