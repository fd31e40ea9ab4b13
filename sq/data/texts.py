"""Texts by name, known ones and those of one's own, and how each is joined: README.md beside this file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sq.data.datasets_source import dataset_rows
from sq.data.own_text import own_text
from sq.data.plain_file import read_file
from sq.data.pydoc_text import pydoc_topics
from sq.data.sources import BUILT_IN, TEXTS, text_obstacles
from sq.data.stdlib_text import stdlib_text
from sq.errors import DataError

C4_DOCUMENTS = 1100
C4_TRAIN_DOCUMENTS = 16_384  # about 8 M tokens; the shard's 356,317 would fill 2 GB


@dataclass(frozen=True)
class Text:
    """Documents of one split; `separate` ones stand alone (tokenized one by one), joined texts are a single one."""

    documents: list[str]
    separate: bool


def read_text(name: str, split: str, *, path: Path | None = None, dataset_path: Path | None = None) -> Text:
    """One text's documents.

    Args:
        name, split: one of TEXTS, or any name together with a path; "train" or "evaluation".
        path, dataset_path: of a text of one's own, either: see `own_text`. `embedded` and `pydoc` take none. For
            wikitext2 `path` is the raw file of the original archive (wiki.test.raw: a row is a line, blank rows
            empty), which gives the same string as the hub's rows; for c4 the joined text. Their `dataset_path`: see
            `dataset_rows`.

    DataError is raised for an unknown name, arguments that do not belong together, and an unreadable source.
    """
    key, one = ("calibration.text", name) if split == "train" else ("task.perplexity.texts", f"[{name}]")
    for obstacle in text_obstacles(key, name, path, dataset_path):
        raise DataError(obstacle.replace(f"{key}={name}", f"{key}={one}", 1))
    if name in BUILT_IN:
        built_in = stdlib_text if name == "embedded" else pydoc_topics
        try:
            documents = built_in("train" if split == "train" else "held_out")
        except OSError as error:
            raise DataError(f"text {name}: {error}") from error
        return Text([document for _, document in documents], separate=True)
    if name not in TEXTS:
        place = path or dataset_path
        assert place is not None  # else an obstacle
        return Text([own_text(name, split, place)], separate=False)
    if path is not None:
        content = read_file(path)
        return Text([_wikitext_from_raw(content) if name == "wikitext2" else content], separate=False)
    if name == "wikitext2":
        return Text(["\n\n".join(dataset_rows(name, split, dataset_path))], separate=False)
    if split == "train":
        return Text(dataset_rows(name, split, dataset_path, limit=C4_TRAIN_DOCUMENTS), separate=True)
    return Text([" ".join(dataset_rows(name, split, dataset_path, limit=C4_DOCUMENTS))], separate=False)


def _wikitext_from_raw(content: str) -> str:
    # The hub's rows are the archive's lines, newline kept, with blank lines emptied.
    rows = [line + "\n" for line in content.removesuffix("\n").split("\n")]
    return "\n\n".join(row if row.strip() else "" for row in rows)
