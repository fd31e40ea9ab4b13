"""Run ids: a hash of everything that determines a result, by which a finished run is found and reused."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import sq
from sq.config.model_name import model_name
from sq.config.parse import as_config
from sq.config.settings import ExperimentSettings
from sq.data.pydoc_text import pydoc_digest
from sq.digest import content_digest, digest_of
from sq.errors import CheckpointError, FileError
from sq.io import read_json
from sq.models.gguf_header import CONVERSION
from sq.models.place import EMBEDDED, INDEX, RANDOM, SINGLE, gguf_file, local_folder

SCHEMA = 2  # of configs: raised when a key changes its meaning, so that no run is taken for another
READ_BESIDE = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")

# Defaults in a model's config file, whose values calibration and task already hold.
MODEL_DEFAULTS = ("texts", "window", "evaluation_windows", "calibration_text", "calibration_tokens", "zeroshot_tasks")


def identity(settings: ExperimentSettings) -> str:
    """sha256 (hex) of everything that determines the result.

    That is: model, method, bits, weights, activations, calibration, task, seed and the number of the config's schema.
    Local files count by their whole content (sq/digest.py) and not by their place, and so does a model that has its
    name from its path.
    The package's version and source do not count, since a run does not use most of the source; nor do paths, tracker,
    `force` and the names of choices whose values count.
    Bits, quantizers, calibration and seed count only where the method quantizes, and the quantizer of keys and values
    only where these are quantized.
    """
    config = as_config(settings)
    parts = ["model", "method", "task"]
    if settings.method.quantizes:
        parts += ["bits", "weights", "activations", "calibration", "seed"]
        parts += ["kv_cache"] if settings.bits.quantizes_attention else []
    chosen: dict[str, Any] = {part: config[part] for part in parts}
    for part in ("activations", "kv_cache", "calibration", "task"):
        chosen.get(part, {}).pop("name", None)
    for default in MODEL_DEFAULTS:
        chosen["model"].pop(default)
    if settings.model.path != EMBEDDED and settings.model.name == model_name(settings.model.path):
        chosen["model"].pop("name")  # the path says it all
    if arithmetic(settings) == "packed":
        chosen["packed"] = True  # products of integers: other sums than those of fake weights
    chosen["schema"] = SCHEMA
    _local_content(settings, chosen)
    text = json.dumps(chosen, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def arithmetic(settings: ExperimentSettings) -> Literal["fake", "packed", "none"]:
    """What is computed with: integers ("packed") where a packed checkpoint is saved or speed is measured, else rounded
    numbers in floating point ("fake"), those of an export too; "none" for full precision."""
    if not settings.method.quantizes:
        return "none"
    saves = settings.save_to is not None and settings.export is None
    packs = saves or (settings.task.speed is not None and settings.bits.packs)
    return "packed" if packs else "fake"


def run_id(settings: ExperimentSettings) -> str:
    """A folder's name: "tiny-singlequant-w4a4-1a2b3c4d"; the last part is the start of `identity`."""
    return f"{settings.model.name}-{settings.method.name}-{settings.bits.short}-{identity(settings)[:8]}"


def _local_content(settings: ExperimentSettings, chosen: dict[str, Any]) -> None:
    """Put digests of local files in the place of their paths."""
    cache = settings.paths.cache
    if (files := _model_files(settings.model.path, settings.model.revision)) is not None:
        conversion = f" {CONVERSION}" if files[0].suffix == ".gguf" else ""
        one = content_digest(files[0], cache) if conversion else digest_of(files, cache)
        chosen["model"]["path"] = one + conversion
    for key, value in chosen["method"].items():
        if isinstance(value, str) and value.endswith(".safetensors") and Path(value).expanduser().is_file():
            chosen["method"][key] = digest_of([Path(value).expanduser()], cache)  # learned rotations of another run
    texts = (
        (settings.calibration, chosen.get("calibration")),
        (settings.task.perplexity, chosen["task"].get("perplexity")),
    )
    for source, part in texts:
        if part is None or source is None:
            continue
        for key in ("path", "dataset_path"):
            place: Path | None = getattr(source, key)
            if place is not None and place.is_dir():
                inside = sorted(item for item in place.rglob("*") if item.is_file())
                part[key] = [[item.relative_to(place).as_posix(), content_digest(item, cache)] for item in inside]
            elif place is not None:
                part[key] = content_digest(place, cache)
        for name, digest in _built_in_content(part).items():
            part[name] = digest


def _model_files(path: str, revision: str | None) -> list[Path] | None:
    """Files whose content decides what a model computes; None for random weights and for a model that is not there.

    Of a model from the hub they are those in the local cache: `sq.runs.experiment.run` fetches it first.
    """
    if path == EMBEDDED:
        folder = Path(sq.__file__).parent / "embedded"
        return [folder / "planting.safetensors", *(_in_folder(folder / "tiny") or [])]
    try:
        if (file := gguf_file(path)) is not None:
            return [file] if file.is_file() else None
        return None if path == RANDOM else _in_folder(local_folder(path, revision))
    except CheckpointError:
        return None  # the config check, or the run, tells of it


def _in_folder(folder: Path | None) -> list[Path] | None:
    """Config, tokenizer, and the weights that the folder's index names, or all where it has none."""
    if folder is None:
        return None
    weights = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX).is_file():
        with suppress(FileError, KeyError, TypeError, AttributeError):
            named = set(read_json(folder / INDEX)["weight_map"].values())
            weights = [file for file in weights if file.name in named] or weights
    elif folder / SINGLE in weights:
        weights = [folder / SINGLE]
    others = {file for pattern in READ_BESIDE for file in folder.glob(pattern) if file.is_file()}
    return [*weights, *sorted(others)] or None


def _built_in_content(part: Mapping[str, Any]) -> dict[str, str]:
    """What differs between versions of Python: digests of its prose, and the version whose source is the text."""
    texts, split = ([part["text"]], "train") if "text" in part else (part.get("texts", ()), "held_out")
    found = {"pydoc": pydoc_digest(split)} if "pydoc" in texts else {}
    return found | ({"python": platform.python_version()} if "embedded" in texts else {})
