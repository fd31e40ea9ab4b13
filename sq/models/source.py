"""Model folders: find one (local or hub) and read tensors from its safetensors on demand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from sq.digest import stat_of
from sq.errors import CheckpointError
from sq.finite import all_finite
from sq.io import read_json
from sq.models.limits import config_obstacles
from sq.models.place import INDEX, SINGLE


def model_folder(path: str, revision: str | None = None) -> Path:
    """A local folder with the model: `path` itself, or a hub id's snapshot (HF_HUB_OFFLINE and HF_HOME are honoured).

    CheckpointError is raised where there is no such folder, or the hub has no such model or cannot be reached.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if local.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
        raise CheckpointError(
            f"model.path={path!r} is neither an existing folder nor a hub id of the form owner/name. "
            "Give a folder with config.json and *.safetensors, a GGUF file, or a hub id."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja", "README.md"]
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"model {path!r} is not in the local hub cache and the hub cannot be reached (HF_HUB_OFFLINE set, or no "
            "network). Download it once elsewhere and name its folder with model.path=FOLDER."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"the hub refused model {path!r}: {type(error).__name__}: {str(error).splitlines()[0]}. Check the name, "
            "accept the model's licence and log in (`hf auth login`), or name a local folder with model.path=FOLDER."
        ) from error


def read_config(folder: Path) -> PretrainedConfig:
    """The transformers config of a model folder; CheckpointError if there is none, or one that no decoder has."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: it is not a transformers model folder")
    try:
        if wrong := list(config_obstacles(read_json(folder / "config.json"))):
            raise CheckpointError(f"{folder / 'config.json'} {'; '.join(wrong)}. It is damaged; fetch it again.")
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder / 'config.json'} cannot be used ({type(error).__name__}: {reason})") from error
    return config


def refuse_non_finite(name: str, tensor: Tensor, file: Path) -> None:
    """Raise CheckpointError for NaN or inf in a tensor that was read from `file`."""
    if not all_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"tensor {name!r} in {file} has {bad} NaN or inf values of {tensor.numel()}. The file is damaged or was "
            "exported from a diverged run; fetch it again."
        )


def _is_name(file: object) -> bool:
    return isinstance(file, str) and Path(file).name == file and file not in ("", "..")


class TensorSource(Protocol):
    """What a layer stream reads its weights from."""

    def names(self) -> list[str]:
        """Names of all tensors."""

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors in their stored dtype."""

    def fingerprint(self) -> Hashable:
        """What changes when the tensors do, without reading them."""


class WeightSource:
    """Tensors of a model folder, read by name; nothing stays open or resident between reads.

    The folder has model.safetensors, or an index and its shards. CheckpointError is raised for no weights, a missing
    shard, or a file that is truncated or not safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._files = self._index()

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._files)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Copies of the named tensors in their stored dtype, on the CPU; CheckpointError for NaN or inf among them."""
        wanted: dict[str, list[str]] = defaultdict(list)
        for name in names:
            if name not in self._files:
                raise CheckpointError(
                    f"{self.folder} has no tensor {name!r}. The checkpoint is incomplete or config.json belongs to "
                    "another model."
                )
            wanted[self._files[name]].append(name)
        found: dict[str, Tensor] = {}
        for file, keys in wanted.items():
            # A handle maps the file and its touched pages count as resident: closed at once, tensors are copies.
            with self._open(file) as handle:
                for key in keys:
                    found[key] = handle.get_tensor(key).clone()
        for name, tensor in found.items():
            refuse_non_finite(name, tensor, self.folder / self._files[name])
        return found

    def fingerprint(self) -> Hashable:
        """Names, sizes, times and inodes of the files."""
        return tuple((file, *stat_of(self.folder / file)) for file in sorted(set(self._files.values())))

    def _index(self) -> dict[str, str]:
        if not self.folder.is_dir():
            raise CheckpointError(f"model folder {self.folder} does not exist")
        if (self.folder / INDEX).is_file():
            try:
                files = dict(read_json(self.folder / INDEX)["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{self.folder / INDEX} is not a safetensors index: {error}") from error
            outside = sorted({str(file) for file in files.values() if not _is_name(file)})
            if outside:
                raise CheckpointError(f"{self.folder / INDEX} names {outside[0]!r}, which is no file of its folder")
            absent = sorted({file for file in files.values() if not (self.folder / file).is_file()})
            if absent:
                raise CheckpointError(
                    f"{self.folder} lacks {len(absent)} shard(s) that its index names: {', '.join(absent)}"
                )
            for file in sorted(set(files.values())):
                with self._open(file) as handle:
                    lost = {name for name, owner in files.items() if owner == file}.difference(handle.keys())
                if lost:
                    lacking = sorted(lost)[:3]
                    raise CheckpointError(f"{self.folder / file} lacks tensors that the index promises: {lacking}")
            return files
        if (self.folder / SINGLE).is_file():
            with self._open(SINGLE) as handle:
                return dict.fromkeys(handle.keys(), SINGLE)
        others = sorted(p.name for p in self.folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".gguf"})
        hint = f" It has {', '.join(others[:3])}: save it again with safe_serialization." if others else ""
        raise CheckpointError(f"{self.folder} has no weights: neither {SINGLE} nor {INDEX} is there.{hint}")

    def _open(self, file: str) -> safe_open:
        try:
            return safe_open(self.folder / file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.folder / file} cannot be read as safetensors ({error}): truncated or not a safetensors file. "
                "Fetch it again."
            ) from error
