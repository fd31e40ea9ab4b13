"""What is known of a model before it is loaded: whether it is there, and its sizes. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sq
from sq.errors import FileError
from sq.io import read_json

EMBEDDED, RANDOM = "embedded", "random"  # paths that are names: the model of sq/embedded, and random weights


def absolute(path: str) -> str:
    """A local folder's absolute place; a hub id and a name as they are."""
    folder = Path(path).expanduser()
    return str(folder.absolute()) if path not in (EMBEDDED, RANDOM) and folder.is_dir() else path


def model_obstacles(name: str, path: str, architecture: Mapping[str, Any] | None) -> Iterator[str]:
    """Why there is no such model: a folder that lacks something, what is neither folder nor hub id, random weights that
    have no sizes, or whose name or path hides them."""
    folder = Path(path).expanduser()
    if architecture is None and path == RANDOM:
        yield "model.path=random needs sizes in model.architecture; choose one of model=random_<shape>"
    if architecture is not None and path != RANDOM:
        yield f"model.architecture describes random weights, model.path={path} names others; give one"
    if architecture is not None and not name.startswith(f"{RANDOM}_"):
        yield f"model.name={name} has random weights; begin it with {RANDOM}_ so that tables show it"
    if path in (EMBEDDED, RANDOM):
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


def known_widths(path: str, architecture: Mapping[str, Any] | None) -> tuple[list[int], list[int]]:
    """Widths that linears read (hidden, heads * head_dim, intermediate), and head_dim, in lists of what is known.

    Both are empty for a model on the hub: its sizes show when it is loaded.
    """
    folder = Path(sq.__file__).parent / "embedded" / "tiny" if path == EMBEDDED else Path(path)
    try:
        config = architecture or read_json(folder / "config.json")
    except FileError:
        return [], []
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    head_dim = config.get("head_dim") or (hidden // heads if hidden and heads else None)
    linears = [hidden, heads * head_dim if heads and head_dim else None, config.get("intermediate_size")]
    return list(dict.fromkeys(n for n in linears if n)), [head_dim] if head_dim else []
