"""Plain UTF-8 text files."""

from __future__ import annotations

from pathlib import Path

from sq.errors import DataError


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
