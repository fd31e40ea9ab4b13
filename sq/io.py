"""Files and folders that are either whole or absent: written beside their place, synced, then renamed. Reads JSON.

Nothing here imports torch: the config check and the tables write files too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sq.errors import FileError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


TENSORS = "tensors_sha256"  # in the metadata of a safetensors file


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a temporary file in the same folder and rename it to `path`.

    A reader never sees half a file, whenever the writer dies; a file that was there before stays until the rename.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    write_atomic(path, lambda stream: stream.write(data))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON atomically: NaN and inf become null, because JSON has no word for them.

    Values that JSON does not know become numbers or lists where they convert (numpy, torch) and text otherwise.
    """
    write_text(path, json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileError: the file is missing, cannot be read or is not JSON; the message names the file and the place.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # json.JSONDecodeError, UnicodeDecodeError, brackets without end
        raise FileError(f"{path} is not valid JSON ({error}): it is damaged; make it or fetch it again") from error


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file of arrays by name atomically, compressed."""
    import numpy as np

    named: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    write_atomic(path, lambda stream: np.savez_compressed(stream, **named))


def jsonable(value: Any) -> Any:
    """`value` with tuples as lists, numpy scalars as numbers, non-finite numbers as None and the rest as text."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    for convert in ("tolist", "item"):  # numpy arrays and scalars, torch tensors
        if callable(method := getattr(value, convert, None)):
            return jsonable(method())
    return str(value)


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, digest: bool = True
) -> None:
    """Write a safetensors file as a whole or not at all; with `digest` its metadata say the sha256 of its tensors too.

    safetensors writes metadata of several entries in an order of chance, so that equal files differ in bytes.
    """
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(held, {**metadata, TENSORS: _tensors_digest(held)} if digest else dict(metadata)))


def read_safetensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file and its metadata.

    Raises:
        OSError, SafetensorError: it cannot be read.
        FileError: its tensors are not those that `write_safetensors` wrote.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stream:
        names, metadata = list(stream.keys()), dict(stream.metadata() or {})
        tensors = {name: stream.get_tensor(name) for name in names}
    written = metadata.pop(TENSORS, None)
    if written is not None and written != _tensors_digest(tensors):
        raise FileError(f"{path} is damaged: its tensors are not those that were written")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def _tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path` that becomes `path` when the block ends well.

    A folder that another process put at `path` meanwhile is kept, and ours is thrown away: names carry a hash of the
    content, so both hold the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        umask = os.umask(0)  # to set it is the only portable way to read it
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes 0700, which hides a shared cache from colleagues
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unwritable(folder: Path) -> str | None:
    """What a folder that is to be made would have to be, None if files can be written to it.

    The nearest folder above it that exists is tried with a file that vanishes at once.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"a folder ({nearest} is a file)"
    try:  # asking the permission bits is not enough: root, read-only mounts and full disks answer otherwise
        with tempfile.TemporaryFile(dir=nearest):
            return None
    except OSError as error:
        reason = error.strerror or str(error)
        return f"a folder that can be written to ({nearest}: {reason}); choose another"
