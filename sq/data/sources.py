"""Where a text comes from, looked at before anything is read: a name, a plain text file, or a folder with a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

TEXTS = ("embedded", "wikitext2", "c4", "c4_old")
RANDOM = "random"  # the text of models with random weights: random token ids


def source_obstacles(key: str, texts: Sequence[str], path: Path | None, dataset: Path | None) -> Iterator[str]:
    """Why texts cannot be read: an unknown name, or a file or folder that is missing, closed or empty.

    Args:
        key: of the config that names them, such as calibration.text; `path` and `dataset_path` lie beside it.
        path: a text file in their place, whose name is free.
        dataset: a local folder of the dataset.
    """
    place = key.rpartition(".")[0]
    for text in texts if path is None else ():
        if text not in (*TEXTS, RANDOM):
            yield f"{key}={text}; allowed: {', '.join(TEXTS)}; or any name together with {place}.path=<text file>"
    if path is not None and not path.is_file():
        yield f"{place}.path={path}; allowed: a text file that exists"
    elif path is not None and not os.access(path, os.R_OK):
        yield f"{place}.path={path}; allowed: a text file that may be read (this one refuses; see its permissions)"
    elif path is not None and path.stat().st_size == 0:
        yield f"{place}.path={path}; allowed: a text file with text in it (this one is empty)"
    if path is not None and len(texts) > 1:
        yield f"{place}.path is one file but {key} names {len(texts)} texts; name one, for example {key}=[mine]"
    if dataset is not None and not dataset.is_dir():
        yield f"{place}.dataset_path={dataset}; allowed: a folder that exists, holding a local copy of the dataset"
