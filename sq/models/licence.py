"""The licence of a model, as its own files name it."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from sq.errors import CheckpointError
from sq.models.gguf_header import read_header
from sq.models.place import EMBEDDED, PIP, RANDOM, gguf_file, local_folder

CARD = "README.md"  # of a model folder; the hub reads its first lines as YAML


def licence_of(path: str, revision: str | None = None) -> str | None:
    """The identifier of the licence of what model.path names ("apache-2.0"); None where nothing names one.

    A folder's model card names it, a GGUF file's metadata, or the distribution that carries the file. Nothing is
    fetched.
    """
    if path in (EMBEDDED, RANDOM):
        return "apache-2.0" if path == EMBEDDED else None
    with suppress(CheckpointError):
        if (file := gguf_file(path)) is not None:
            return _text(read_header(file).metadata.get("general.license")) or _of_distribution(path)
    folder = local_folder(path, revision)
    return None if folder is None else _of_card(folder / CARD)


def _of_card(card: Path) -> str | None:
    from huggingface_hub import metadata_load

    try:
        found = metadata_load(card) if card.is_file() else None
    except Exception:  # whatever YAML and text somebody wrote
        return None
    if not isinstance(found, dict):
        return None
    named = _text(found.get("license_name")) if found.get("license") == "other" else None
    return named or _text(found.get("license"))


def _of_distribution(path: str) -> str | None:
    if not path.startswith(PIP):
        return None
    try:
        about = metadata(path.removeprefix(PIP)).json
    except PackageNotFoundError:
        return None
    return _text(about.get("license_expression")) or _text(about.get("license"))


def _text(value: object) -> str | None:
    """A short identifier in lower case; None for anything else, such as the whole text of a licence."""
    return value.strip().lower() if isinstance(value, str) and 0 < len(value.strip()) <= 60 else None
