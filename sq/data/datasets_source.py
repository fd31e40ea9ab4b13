"""Documents of wikitext2 and c4: from the hub, a folder saved by `datasets`, or parquet / JSON-lines files.

Both texts are read with their original rows, so that the protocols of sq/data/texts.py join them as the peers do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sq.errors import DataError

SUFFIXES = (".parquet", ".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclass(frozen=True)
class HubText:
    """Where one text lives on the hub: a dataset's id and configuration, or files of it by split where one is enough.

    `splits` maps ours ("train", "evaluation") to the dataset's own names.
    """

    repository: str
    config: str | None
    files: dict[str, str]
    splits: dict[str, str]


HUB = {
    "wikitext2": HubText(
        "Salesforce/wikitext", "wikitext-2-raw-v1", files={}, splits={"train": "train", "evaluation": "test"}
    ),
    "c4": HubText(
        "allenai/c4",
        None,
        {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"},
        splits={"train": "train", "evaluation": "validation"},
    ),
}


def dataset_rows(name: str, split: str, dataset_path: Path | None = None, limit: int | None = None) -> list[str]:
    """The "text" column of one split, in order.

    Args:
        name, split: "wikitext2" or "c4"; "train" or "evaluation".
        dataset_path: None reads the hub (or its local cache when HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set). A
            folder holds either what `datasets.save_to_disk` wrote or parquet / JSON-lines files (.gz too) with the
            split's name in their path. A single file is taken as it is, whatever its split.
        limit: read at most so many rows.

    DataError is raised for a missing, unreadable or unreachable source, and for one without the split or the column.
    """
    source = HUB[name]
    wanted = source.splits[split]
    if dataset_path is None:
        table = _from_hub(name, source, wanted)
    else:
        path = Path(dataset_path).expanduser()
        if not path.exists():
            raise DataError(f"dataset_path={path} does not exist; {_forms(wanted)}")
        if not is_saved(path):
            return rows_of_files(name, _choose_files(name, source, wanted, path), limit)
        return saved_rows(name, (wanted,), path, limit)
    return _rows(name, table, limit)


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `datasets.save_to_disk`."""
    return path.is_dir() and any((path / marker).is_file() for marker in ("dataset_dict.json", "state.json"))


def saved_rows(name: str, splits: Sequence[str], path: Path, limit: int | None = None) -> list[str]:
    """The "text" column of the first of `splits` that a folder of `datasets.save_to_disk` has; `limit` rows at most.

    DataError is raised for a folder that cannot be read, or that lacks these splits or the column.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # arrow, JSON and OS errors
        raise DataError(f"{name}: {path} looks saved by datasets.save_to_disk but cannot be read: {error}") from error
    wanted = " or ".join(map(repr, splits))
    if isinstance(loaded, datasets.DatasetDict):
        split = next((split for split in splits if split in loaded), None)
        if split is None:
            raise DataError(f"{name}: {path} has splits {sorted(loaded)}; split {wanted} is needed")
        return _rows(name, loaded[split], limit)
    found = None if loaded.split is None else str(loaded.split).split("[")[0]
    if found not in (None, *splits):
        raise DataError(f"{name}: {path} holds split {found!r}; split {wanted} is needed")
    return _rows(name, loaded, limit)


def _rows(name: str, table: Any, limit: int | None) -> list[str]:
    if "text" not in table.column_names:
        raise DataError(f"{name}: the dataset has columns {table.column_names}; a column 'text' is needed")
    rows = table if limit is None else table.select(range(min(limit, len(table))))
    return [str(text) for text in rows["text"]]


def _from_hub(name: str, source: HubText, split: str) -> Any:
    import datasets

    arguments: dict[str, Any] = {"split": split}
    if source.config is not None:
        arguments["name"] = source.config
    if split in source.files:
        # One shard of many: the dataset's own split sizes would not match.
        arguments |= {"data_files": {split: source.files[split]}, "verification_mode": "no_checks"}
    try:
        return datasets.load_dataset(source.repository, **arguments)
    except Exception as error:  # the hub's stack raises its own, requests', httpx's and OS errors alike
        flags = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        offline = [flag for flag in flags if os.environ.get(flag, "0") not in ("", "0")]
        state = f"; {' and '.join(offline)} is set, so only the hub's local cache was searched" if offline else ""
        raise DataError(
            f"{name}: tried {source.repository} ({source.config or source.files.get(split)}, split {split}) through "
            f"`datasets` and got {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}{state}. "
            f"{_forms(split)}"
        ) from error


def _choose_files(name: str, source: HubText, split: str, path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
    chosen = [file for file in files if split in file.relative_to(path).as_posix()]
    # A snapshot of the whole repository: keep the configuration, or the shard, that the protocol names.
    for preferred in (source.config, Path(source.files.get(split, "")).name):
        narrowed = [file for file in chosen if preferred and preferred in file.as_posix()]
        chosen = narrowed or chosen
    if not chosen:
        seen = ", ".join(file.relative_to(path).as_posix() for file in files[:8]) or "no such file"
        raise DataError(f"{name}: no file for split {split!r} under {path} (found: {seen}); {_forms(split)}")
    return chosen


def rows_of_files(name: str, files: Sequence[Path], limit: int | None) -> list[str]:
    """The "text" column of parquet and JSON-lines files in the order given; `limit` rows at most, None = all.

    DataError is raised for a file of another kind, one that cannot be read, and one without the column.
    """
    import pandas as pd

    rows: list[str] = []
    for file in files:
        left = None if limit is None else limit - len(rows)
        if left == 0:
            break
        if not file.name.endswith(SUFFIXES):
            raise DataError(
                f"{name}: {file} is not one of {', '.join(SUFFIXES)}; a file of plain text goes to path=<file> in the "
                "place of dataset_path"
            )
        try:
            if file.suffix == ".parquet":
                frame = pd.read_parquet(file)
            else:
                # dtype=False: a document "1999" stays a string.
                frame = pd.read_json(file, lines=True, nrows=left, dtype=False)
        except Exception as error:  # arrow, JSON, gzip and OS errors
            kind = "parquet" if file.suffix == ".parquet" else "JSON lines"
            raise DataError(f"{name}: {file} cannot be read as {kind} ({type(error).__name__}: {error})") from error
        if "text" not in frame.columns:
            raise DataError(f"{name}: {file} has columns {list(frame.columns)}; a column 'text' is needed")
        rows.extend(str(text) for text in frame["text"].iloc[:left])
    return rows


def _forms(split: str) -> str:
    section, offline = ("calibration", "text=pydoc") if split == "train" else ("task.perplexity", "texts=[pydoc]")
    return (
        f"Local data: {section}.dataset_path=<folder saved by datasets.save_to_disk, a folder with {split!r} files "
        f"({', '.join(SUFFIXES)}), or one such file>; or use {section}.{offline}, which needs no download"
    )
