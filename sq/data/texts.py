"""The four texts by name, embedded, wikitext2, c4 and local, and how each is joined: README.md beside this file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sq.data.datasets_source import dataset_rows
from sq.data.stdlib_text import stdlib_text
from sq.errors import DataError

TEXTS = ("embedded", "wikitext2", "c4", "local")
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
        name, split: one of TEXTS; "train" or "evaluation".
        path: a plain UTF-8 file. Needed by `local`. For wikitext2 it is read as the raw file of the original archive
            (wiki.test.raw: a row is a line, blank rows empty), which gives the same string as the hub's rows; for c4 as
            the joined text.
        dataset_path: see `dataset_rows`; for wikitext2 and c4 alone.

    DataError is raised for an unknown name, arguments that do not belong together, and an unreadable source.
    """
    if name not in TEXTS:
        raise DataError(f"text={name!r} is unknown; allowed: {', '.join(TEXTS)}")
    if path is not None and dataset_path is not None:
        raise DataError(f"{name}: both path={path} and dataset_path={dataset_path} are given; give one")
    if name == "embedded":
        if path is not None or dataset_path is not None:
            raise DataError("text=embedded is read from the interpreter's own library; use text=local with path=<file>")
        try:
            modules = stdlib_text("train" if split == "train" else "held_out")
        except OSError as error:
            raise DataError(f"text=embedded: {error}") from error
        return Text([source for _, source in modules], separate=True)
    if name == "local":
        if path is None or dataset_path is not None:
            raise DataError("text=local needs path=<plain UTF-8 text file> and takes no dataset_path")
        return Text([read_file(path)], separate=False)
    if path is not None:
        content = read_file(path)
        return Text([_wikitext_from_raw(content) if name == "wikitext2" else content], separate=False)
    if name == "wikitext2":
        return Text(["\n\n".join(dataset_rows(name, split, dataset_path))], separate=False)
    if split == "train":
        return Text(dataset_rows(name, split, dataset_path, limit=C4_TRAIN_DOCUMENTS), separate=True)
    return Text([" ".join(dataset_rows(name, split, dataset_path, limit=C4_DOCUMENTS))], separate=False)


def read_file(path: Path) -> str:
    """A plain UTF-8 text file; DataError if it is missing, a folder, not readable, empty or binary."""
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"text file {path} does not exist (looked from {Path.cwd()}); give a UTF-8 text file's path")
    if not path.is_file():
        raise DataError(f"{path} is not a file; path= takes a UTF-8 text file, dataset_path= takes a folder")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"text file {path} cannot be read: {error}") from error
    if not content.strip():
        raise DataError(f"text file {path} is empty ({len(content)} bytes); give one with at least one window of text")
    zero = content.find(b"\0")
    if zero >= 0:
        raise DataError(f"text file {path} is binary: a NUL byte at offset {zero}; give a plain UTF-8 text file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"text file {path} is binary or not UTF-8: byte {content[error.start]:#04x} at offset {error.start}; "
            "convert it to UTF-8"
        ) from error


def _wikitext_from_raw(content: str) -> str:
    # The hub's rows are the archive's lines, newline kept, with blank lines emptied.
    rows = [line + "\n" for line in content.removesuffix("\n").split("\n")]
    return "\n\n".join(row if row.strip() else "" for row in rows)
