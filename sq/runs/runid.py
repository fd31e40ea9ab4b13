"""Run ids: a hash of everything that determines a result, by which a finished run is found and reused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sq
from sq.config.model_name import model_name
from sq.config.parse import as_config
from sq.config.settings import ExperimentSettings
from sq.data.pydoc_text import pydoc_digest
from sq.errors import CheckpointError
from sq.models.gguf_header import CONVERSION
from sq.models.place import EMBEDDED, gguf_file

SCHEMA = 1  # of configs: raised when a key changes its meaning, so that no run is taken for another
EDGE = 65536  # bytes read at either end of a weight file: enough to distinguish 70B checkpoints without reading 140 GB

# Defaults in a model's config file, whose values calibration and task already hold.
MODEL_DEFAULTS = ("texts", "window", "evaluation_windows", "calibration_text", "calibration_tokens", "zeroshot_tasks")


def identity(settings: ExperimentSettings) -> str:
    """sha256 (hex) of everything that determines the result.

    That is: model, method, bits, weights, activations, calibration, task, seed and the number of the config's schema.
    Local files count by their content and not by their place, and so does a model that has its name from its path.
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
    if settings.save_to is not None:
        chosen["packed"] = True  # products of integers: other sums than those of fake weights
    chosen["schema"] = SCHEMA
    _local_content(settings, chosen)
    text = json.dumps(chosen, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def run_id(settings: ExperimentSettings) -> str:
    """A folder's name: "tiny-singlequant-w4a4-1a2b3c4d"; the last part is the start of `identity`."""
    return f"{settings.model.name}-{settings.method.name}-{settings.bits.short}-{identity(settings)[:8]}"


def _local_content(settings: ExperimentSettings, chosen: dict[str, Any]) -> None:
    """Put hashes of local files in the place of their paths."""
    model = Path(sq.__file__).parent / "embedded" if settings.model.path == EMBEDDED else Path(settings.model.path)
    if model.is_dir():
        found = [*model.rglob("*.safetensors"), *model.rglob("config.json"), *model.rglob("tokenizer*")]
        chosen["model"]["path"] = _digest(found, model)
    elif (file := _gguf(settings.model.path)) is not None:
        chosen["model"]["path"] = f"{_digest([file], file.parent, names=False)} {CONVERSION}"
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
                part[key] = _digest((item for item in place.rglob("*") if item.is_file()), place)
            elif place is not None:
                part[key] = _digest([place], place.parent, whole=True, names=False)
        for name, digest in _built_in_content(part).items():
            part[name] = digest


def _built_in_content(part: Mapping[str, Any]) -> dict[str, str]:
    """Digests of texts that differ between versions of Python."""
    if part.get("text") == "pydoc":
        return {"pydoc": pydoc_digest("train")}
    return {"pydoc": pydoc_digest("held_out")} if "pydoc" in part.get("texts", ()) else {}


def _gguf(path: str) -> Path | None:
    """The GGUF file of model.path, where it is there; the config check tells of one that is not."""
    try:
        file = gguf_file(path)
    except CheckpointError:
        return None
    return file if file is not None and file.is_file() else None


def _digest(files: Iterable[Path], root: Path, *, whole: bool = False, names: bool = True) -> str:
    total = hashlib.sha256()
    for file in sorted(set(files)):
        size = file.stat().st_size
        total.update(f"{file.relative_to(root).as_posix() if names else ''}\0{size}\0".encode())
        with file.open("rb") as stream:
            if whole or size <= 2 * EDGE:
                while block := stream.read(1 << 20):
                    total.update(block)
            else:
                total.update(stream.read(EDGE))
                stream.seek(-EDGE, 2)
                total.update(stream.read(EDGE))
    return total.hexdigest()
