"""The embedded model as a folder that any Hugging Face loader takes, with or without planted outliers."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from sq.digest import digest_of
from sq.embedded.planted import PLANTING_FILE, load_planting, plant
from sq.errors import CheckpointError
from sq.io import atomic_folder, read_json

log = logging.getLogger(__name__)
DIGEST = "digest.txt"  # of a planted folder: sha256 of its files
OUTLIERS = ("planted", "none")
COMMITTED_FOLDER = Path(__file__).parent / "tiny"
NEEDED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FORMAT = 2  # part of the folder's name; a change of what is written for the same inputs raises it


def embedded_checkpoint(cache_dir: Path, *, outliers: str = "planted", strength: float = 1.0) -> Path:
    """Folder with model.safetensors, config.json and tokenizer of the embedded model.

    Outliers "none" give the committed folder itself (bfloat16). "planted" is computed once from the committed weights
    and planting (float32, 34 MB), written whole or not at all to `<cache_dir>/tiny-planted-<hash>`, and found there the
    next time; the hash covers weights, config, tokenizer, planting and strength, the exponent of the planted scales.

    Raises:
        ValueError: unknown `outliers`, or a strength that is not a finite number.
        CheckpointError: the committed files are missing or do not fit together.
    """
    if outliers not in OUTLIERS:
        raise ValueError(f"outliers={outliers!r} is unknown; allowed: {', '.join(OUTLIERS)}")
    source = committed_folder()
    if outliers == "none":
        return source
    if not math.isfinite(strength):
        raise ValueError(f"strength={strength} is not a finite number; 0 plants no channel scales, 1 is the default")
    folder = Path(cache_dir) / f"tiny-planted-{_content_hash(source, strength)}"
    if folder.is_dir() and not _is_whole(folder, Path(cache_dir)):
        log.warning("%s is damaged: making it again", folder)
        shutil.rmtree(folder)
    if not folder.is_dir():
        _write_planted(source, folder, strength)
    return folder


def committed_folder() -> Path:
    """The committed model folder; CheckpointError if a file of it, or the planting, is missing."""
    missing = [str(COMMITTED_FOLDER / name) for name in NEEDED_FILES if not (COMMITTED_FOLDER / name).is_file()]
    if not PLANTING_FILE.is_file():
        missing.append(str(PLANTING_FILE))
    if missing:
        raise CheckpointError(
            f"the embedded model is incomplete: {', '.join(missing)} missing. Restore them from the repository, or "
            "make them: `python -m sq.embedded.train`, then `python -m sq.embedded.planted`"
        )
    return COMMITTED_FOLDER


def _content_hash(source: Path, strength: float) -> str:
    digest = hashlib.sha256(f"{FORMAT} {float(strength)!r}".encode())
    for path in [*(source / name for name in NEEDED_FILES), PLANTING_FILE]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _is_whole(folder: Path, cache: Path) -> bool:
    """Whether the files are those that were written; their digests are kept, so this reads them once."""
    try:
        return (folder / DIGEST).read_text(encoding="utf-8") == digest_of(_files(folder), cache)
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and path.name != DIGEST]


def _write_planted(source: Path, folder: Path, strength: float) -> None:
    config, planting = read_json(source / "config.json"), load_planting()
    try:
        weights, heads = load_file(source / "model.safetensors"), config["num_attention_heads"]
        planted = plant(weights, planting, heads=heads, strength=strength)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"outliers cannot be planted in {source}: {error}") from error
    config["dtype"] = "float32"
    with atomic_folder(folder) as temporary:
        save_file(planted, temporary / "model.safetensors", metadata={"format": "pt"})
        expected = planting.planted_digest if strength == 1.0 else ""
        if expected and digest_of([temporary / "model.safetensors"]) != expected:
            raise CheckpointError(
                "the planted weights of the embedded model are not those that the repository's numbers were measured "
                "with: this machine's float64 arithmetic differs, or `python -m sq.embedded.planted` must be run again"
            )
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for path in source.iterdir():
            if path.is_file() and path.name not in ("model.safetensors", "config.json", "training_log.json"):
                shutil.copyfile(path, temporary / path.name)
        (temporary / DIGEST).write_text(digest_of(_files(temporary)), encoding="utf-8")
