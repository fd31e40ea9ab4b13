"""A text of the user's own, under any name: a plain file, rows of a dataset, or a folder of either."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sq.data.datasets_source import SUFFIXES, is_saved, rows_of_files, saved_rows
from sq.data.plain_file import read_file
from sq.errors import DataError

PLAIN = (".txt", ".md", ".rst", ".raw")  # in a folder; a file that is named itself may have any other ending too
# Words in the names of files and folders, and names of a dataset's splits; the first that is there is taken.
SPLITS = {"train": ("train", "training"), "evaluation": ("test", "evaluation", "eval", "validation", "valid", "val")}


def own_text(name: str, split: str, place: Path) -> str:
    """One text: documents and rows in order, with an empty line between two.

    Args:
        name, split: any name; "train" or "evaluation".
        place: a file of plain text (UTF-8), or with one row a document (parquet, JSON lines with "text", .gz too); a
            folder that `datasets.save_to_disk` wrote; or a folder of files, read in order of their path: those of rows
            where it has any, else those of plain text. Files with the word of a split in their path (train; test, eval,
            validation) are of that split alone; where none has one, all are read.

    DataError is raised for what is missing, unreadable or empty, and for a folder or dataset without the split.
    """
    place = Path(place).expanduser()
    if place.is_dir():
        if is_saved(place):
            return _filled(name, place, saved_rows(name, SPLITS[split], place))
        return _filled(name, place, [_content(name, file) for file in chosen_files(name, split, place)])
    return _content(name, place)


def _content(name: str, file: Path) -> str:
    if file.is_file() and file.name.endswith(SUFFIXES):
        return _filled(name, file, rows_of_files(name, [file], None))
    return read_file(file)


def _filled(name: str, place: Path, parts: Sequence[str]) -> str:
    text = "\n\n".join(parts)
    if not text.strip():
        raise DataError(f"{name}: {place} has no text in it; give one with at least one window of text")
    return text


def chosen_files(name: str, split: str, folder: Path) -> list[Path]:
    """The files of a folder that one split is read from, of those described at `own_text`; DataError for none."""
    paths = {file: file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()}
    seen = {file: path for file, path in paths.items() if not any(part.startswith(".") for part in path.parts)}
    files = [file for file in seen if file.name.endswith(SUFFIXES)] or [f for f in seen if f.name.endswith(PLAIN)]
    if not files:
        raise DataError(f"{name}: {folder} has no text files; allowed endings: {', '.join((*PLAIN, *SUFFIXES))}")
    words = {file: set(re.findall("[a-z]+", seen[file].as_posix().lower())) for file in files}
    for word in SPLITS[split]:
        if chosen := [file for file in files if word in words[file]]:
            return chosen
    other = {word for one, names in SPLITS.items() if one != split for word in names}
    rest = [file for file in files if not words[file] & other]
    if not rest:
        raise DataError(
            f"{name}: all files of {folder} are of another split; one with {' or '.join(map(repr, SPLITS[split]))} in "
            "its path is needed, or name a single file"
        )
    return rest
