"""Checks of what a config points at: folders, files, texts and classes, all before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from pathlib import Path

from sq.config.reader import Reader
from sq.config.settings import ExperimentSettings

RANDOM = "random"  # model.path of random weights, and the text of random token ids
TEXTS = ("embedded", "wikitext2", "c4", "c4_old")  # texts that sq.data knows by name; any name goes with a `path`
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_model_path(path: str, read: Reader) -> str:
    """Return "embedded", "random", a hub id, or the absolute path of a local folder that holds a config and weights."""
    if path in ("embedded", RANDOM):
        return path
    folder = Path(path).expanduser()
    if not folder.exists():
        if path.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(path):
            read.problem("path", path, "a folder that exists, a hub id such as org/model, or embedded")
        return path
    if not folder.is_dir():
        read.problem("path", path, "a folder (this is a file); give the folder that holds config.json")
        return path
    if not (folder / "config.json").is_file():
        read.say(f"model.path={path} has no config.json; give the folder that `save_pretrained` or the hub wrote")
    if not any(folder.glob("*.safetensors")):
        other = sorted(item.name for item in folder.iterdir() if item.suffix in (".bin", ".pt", ".pth", ".gguf"))
        found = f" (it has {', '.join(other[:3])}, which is not read: save it again as safetensors)" if other else ""
        read.say(f"model.path={path} holds no weights: no *.safetensors{found}; download or copy the weights there")
    return str(folder.absolute())


def check_text(text: str, read: Reader, key: str) -> None:
    """Note a text that is not known by name."""
    if text and text not in (*TEXTS, RANDOM):
        read.problem(key, text, f"{', '.join(TEXTS)}; or any name together with {read.where}.path=<text file>")


def check_file(path: Path | None, read: Reader, key: str) -> Path | None:
    """Note a text file that is missing, unreadable or empty."""
    if path is None:
        return None
    if not path.is_file():
        read.problem(key, path, "a text file that exists")
    elif not os.access(path, os.R_OK):
        read.problem(key, path, "a text file that may be read (this one refuses; see its permissions)")
    elif path.stat().st_size == 0:
        read.problem(key, path, "a text file with text in it (this one is empty)")
    return path


def check_folder(path: Path | None, read: Reader, key: str) -> Path | None:
    """Note a folder that is missing."""
    if path is not None and not path.is_dir():
        read.problem(key, path, "a folder that exists, holding a local copy of the dataset")
    return path


def check_writable(folder: Path, read: Reader, key: str) -> None:
    """Note a folder that runs could not be written to: the nearest one that exists must be a writable folder."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        read.problem(key, folder, f"a folder ({nearest} is a file)")
        return
    try:  # asking the permission bits is not enough: root, read-only mounts and full disks answer otherwise
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        read.problem(key, folder, f"a folder that can be written to ({nearest}: {reason}); choose another")


def check_target(target: str, read: Reader) -> None:
    """Note a class path whose module does not exist; the class itself is looked up later, as that imports torch."""
    module, _, name = target.rpartition(".")
    try:
        found = bool(module and name) and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        read.problem("_target_", target, "the import path of a class, such as sq.methods.singlequant.SingleQuant")


def check_random(settings: ExperimentSettings) -> list[str]:
    """What contradicts random weights: a name that hides them, texts, and a score that would say nothing."""
    model, calibration, task = settings.model, settings.calibration, settings.task
    texts = () if task.perplexity is None or task.perplexity.path is not None else task.perplexity.texts
    if model.architecture is None:
        found = []
        if model.path == RANDOM:
            found.append("model.path=random needs sizes in model.architecture; choose one of model=random_<shape>")
        elif calibration.text == RANDOM and calibration.path is None:
            found.append("calibration.text=random is for random weights; name a text that the model knows")
        if RANDOM in texts:
            found.append("task.perplexity.texts=random is not a text that anything can be measured on")
        return found
    found = []
    if model.path != RANDOM:
        found.append(f"model.architecture describes random weights, model.path={model.path} names others; give one")
    if not model.name.startswith(f"{RANDOM}_"):
        found.append(f"model.name={model.name} has random weights; begin it with {RANDOM}_ so that tables show it")
    if calibration.text != RANDOM or calibration.path is not None:
        found.append(
            f"calibration.text={calibration.text}: random weights have no tokenizer; allowed: {RANDOM} (token ids)"
        )
    if task.perplexity is not None or task.zeroshot is not None:
        found.append(
            f"task={task.name}: random weights know no text, and their scores say nothing; use task=speed or task=none"
        )
    return found


def check_speed(settings: ExperimentSettings) -> list[str]:
    """What contradicts measuring the speed of a whole model."""
    speed = settings.task.speed
    if speed is None:
        return []
    found = []
    if settings.model.placement == "stream":
        found.append("task=speed runs the whole model: set model.placement=memory (or auto)")
    quantized = [kind for kind in speed.kinds if not kind.startswith("bf16")]
    if quantized and not 2 <= settings.bits.weights <= 8:
        found.append(
            f"task=speed: {', '.join(quantized)} have integer weights, {settings.bits.label} has none; use 2 to 8 bits "
            "for weights, or task.speed.kinds=[bf16,bf16_graph]"
        )
    return found
