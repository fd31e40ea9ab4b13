"""What a packed folder says of itself: the run that made it, and digests of its files and of its config.

Nothing here imports torch: the config check reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sq.checkpoint.export.stamp import read_stamp
from sq.checkpoint.register import QUANT_METHOD
from sq.digest import content_digest, record_digest
from sq.errors import CheckpointError, FileError
from sq.io import read_json

CONFIG = "config.json"
CARD = "README.md"  # the model card: it may be edited, so no digest holds it
UNCHECKED = "SINGLEQUANT_UNCHECKED"  # an environment variable: 1 loads without reading the files once more
SNAPSHOTS = "snapshots"  # the folder of the hub's cache in which each revision of a repository is a folder
# Keys of config.json that change no number, and that others write anew.
VOLATILE = ("_name_or_path", "transformers_version", "use_cache")


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> sha256 of files of a folder, in order of name."""
    return {name: content_digest(folder / name) for name in sorted(names)}


def seal(config: Mapping[str, Any]) -> str:
    """sha256 of what decides numbers in a packed model's config.json, its own `config_digest` left out."""
    kept = {key: value for key, value in config.items() if key not in VOLATILE}
    kept["quantization_config"] = {k: v for k, v in kept["quantization_config"].items() if k != "config_digest"}
    return record_digest(kept)


def run_of(folder: Path) -> str | None:
    """The identity of the run that made a packed or exported folder, "" where it names none; None for a folder that is
    neither, or whose config.json (of an exported one: stamp) is damaged."""
    if (stamp := read_stamp(folder)) is not None:
        return str(stamp["run"])
    try:
        config = read_json(folder / CONFIG)
        data = config["quantization_config"]
        if data["quant_method"] != QUANT_METHOD or data["config_digest"] != seal(config):
            return None
        return str(data["run"])
    except (FileError, KeyError, TypeError, AttributeError):
        return None


def damaged_files(folder: Path, cache: Path | None = None, *, fetched: bool = False) -> list[str]:
    """What is wrong with the files of a packed folder's config.json, or of an exported one's stamp, a sentence each.

    Args:
        cache: files that were looked at before are not read again.
        fetched: only weights need to be there; of other files those that are.
    """
    found = []
    stamp = read_stamp(folder)
    files = read_json(folder / CONFIG)["quantization_config"]["files"] if stamp is None else stamp["files"]
    for name, digest in files.items():
        if Path(name).name != name:
            found.append(f"{name!r} is not a file of this folder")
        elif not (folder / name).is_file():
            if fetched and not name.endswith(".safetensors"):
                continue
            found.append(f"{name} is missing")
        elif content_digest(folder / name, cache) != digest:
            found.append(f"{name} is not what was written")
    return found


def check_folder(folder: Path) -> None:
    """Compare a packed folder with the digests in its config.json, which costs one read of its files.

    A folder that `save_pretrained` wrote carries none (files: null) and passes; so does every folder where the
    environment has SINGLEQUANT_UNCHECKED=1. Of a snapshot in the hub's cache, files count that were fetched so far:
    transformers fetches weights first, and the tokenizer when it is asked for.

    Raises:
        CheckpointError: files that are missing or changed, a config that was changed.
    """
    if os.environ.get(UNCHECKED) == "1":
        return
    advice = (
        f"fetch it again, or write it again with `python run.py save_to=FOLDER` ({UNCHECKED}=1 loads it as it is, at "
        "your own risk)"
    )
    try:
        config = read_json(folder / CONFIG)
        data = config["quantization_config"]
        if data["files"] is None:
            return
        wrong = [] if data["config_digest"] == seal(config) else [f"{CONFIG} was changed after it was written"]
        wrong += damaged_files(folder, fetched=folder.parent.name == SNAPSHOTS)
    except (FileError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} names no digests ({type(error).__name__}: {error}): {advice}") from error
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"the packed checkpoint in {folder} is damaged: {'; '.join(wrong[:5])}{more}; {advice}")
