"""Where a text comes from, looked at before anything is read: a known name, or any name with a file or folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from sq.data.datasets_source import is_saved
from sq.data.own_text import chosen_files
from sq.errors import DataError

BUILT_IN = {"embedded": "the standard library's source", "pydoc": "the prose of `help()`"}  # need no download
HUB_WORDS = {"wikitext2": "wiki", "c4": "c4"}  # texts of the hub, and what the name of a file with one has in it
TEXTS = (*BUILT_IN, *HUB_WORDS)
RANDOM = "random"  # the text of models with random weights: random token ids
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def source_obstacles(key: str, texts: Sequence[str], path: Path | None, dataset: Path | None) -> Iterator[str]:
    """Why texts cannot be read: a name that does not fit, or a file or folder that is missing, closed or empty.

    Args:
        key: of the config that names them, such as calibration.text; `path` and `dataset_path` lie beside it.
        path: a text file or folder, of the one text that is not built in.
        dataset: a local copy of the dataset: a file or folder.
    """
    section = key.rpartition(".")[0]
    listed = key.endswith("s")
    takers = [text for text in texts if text not in BUILT_IN]
    for text in texts:
        beside = text in BUILT_IN and bool(takers)  # the place is that of another text
        yield from text_obstacles(key, text, *((None, None) if beside else (path, dataset)))
    if path is not None:
        yield from _place_obstacles(f"{section}.path", path, folders=not set(texts) & set(HUB_WORDS))
    if dataset is not None:
        yield from _place_obstacles(f"{section}.dataset_path", dataset)
    own = [text for text in takers if text not in (*HUB_WORDS, RANDOM)]
    place = path or dataset
    if own and place is not None and place.is_dir() and any(place.iterdir()) and not is_saved(place):
        try:
            chosen_files(own[0], "evaluation" if listed else "train", place)
        except DataError as error:
            yield f"{section}.{'path' if path is not None else 'dataset_path'}={place}: {error}"
    if len(takers) > 1 and (path is not None or (dataset is not None and own)):
        at = "path is one file or folder" if path is not None else "dataset_path is one file or folder"
        said = [text for text in takers if path is not None and HUB_WORDS.get(text, "/") in path.name.lower()]
        one = (own or said or ["mytext"])[0]
        named = f"{key} names {len(takers)} texts that it would be"
        yield f"{section}.{at} but {named}; name one: {key}={f'[{one}]' if listed else one}"


def text_obstacles(key: str, text: str, path: Path | None, dataset: Path | None) -> Iterator[str]:
    """Why one text's name does not fit where it is to be read from; arguments as in `source_obstacles`."""
    section = key.rpartition(".")[0]
    mine = f"{key}=[mytext]" if key.endswith("s") else f"{key}=mytext"
    place = f"{section}.path" if path is not None else f"{section}.dataset_path"
    given = path or dataset
    if path is not None and dataset is not None:
        yield f"{section}.path={path} and {section}.dataset_path={dataset} are both given; give one"
    elif text in BUILT_IN and given is not None:
        yield f"{key}={text} is {BUILT_IN[text]}, not {place}={given}; name that text, for example {mine}"
    elif text == "pydoc" and find_spec("pydoc_data") is None:
        yield f"{key}=pydoc: this interpreter ships without pydoc_data; use a full CPython build or another text"
    elif text == RANDOM:
        if given is not None:
            yield f"{key}={text} is random token ids, not {place}={given}; name that text, for example {mine}"
    elif text in HUB_WORDS:
        if path is not None and HUB_WORDS[text] not in path.name.lower():
            yield (
                f"{key}={text} is read from {place}={path}, whose name does not say {HUB_WORDS[text]!r}; name it as a "
                f"text of your own, such as {mine}, or give a copy of {text}: {section}.dataset_path=<folder or file>"
            )
    elif text not in BUILT_IN and given is None:
        yield (
            f"{key}={text}; allowed: {', '.join(TEXTS)}; or any name together with {section}.path=<file or folder of "
            f"text> or {section}.dataset_path=<file or folder of a dataset>"
        )
    elif not _NAME.fullmatch(text):
        yield f"{key}={text}; allowed: letters, digits and any of _ - . + (it becomes part of a metric's name)"


def _place_obstacles(key: str, place: Path, *, folders: bool = True) -> Iterator[str]:
    kind = "a file or folder" if folders else "a text file"
    if not place.exists() or (place.is_dir() and not folders):
        yield f"{key}={place}; allowed: {kind} that exists"
    elif not os.access(place, os.R_OK):
        yield f"{key}={place}; allowed: {kind} that may be read (this one refuses; see its permissions)"
    elif (place.is_file() and place.stat().st_size == 0) or (place.is_dir() and not any(place.iterdir())):
        yield f"{key}={place}; allowed: {kind} with text in it (this one is empty)"
