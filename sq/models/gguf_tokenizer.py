"""The tokenizer of a GGUF file, converted once by transformers and kept in a cache."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sq.errors import CheckpointError
from sq.io import atomic_folder
from sq.models.gguf_header import read_header

logger = logging.getLogger(__name__)


def gguf_tokenizer(path: Path, cache: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `<cache>/gguf-tokenizer-<hash>`, written there where it is not yet; seconds the first time.

    The hash covers the file's header, which holds the vocabulary, and the version of transformers. A cache that cannot
    be written is reported by the logger. CheckpointError is raised for a vocabulary that transformers cannot convert.
    """
    folder = cache / f"gguf-tokenizer-{_digest(path)}"
    if folder.is_dir():
        kept: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        return kept
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, KeyError, NotImplementedError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} has no tokenizer that transformers can convert: {reason}") from error
    try:
        with atomic_folder(folder) as temporary:
            found.save_pretrained(temporary)
    except OSError as error:
        logger.warning("tokenizer cache %s was not written (%s); the next run converts again", folder, error)
        return found
    # Read back, so that the first run has the same tokenizer as the next.
    again: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return again


def _digest(path: Path) -> str:
    digest = hashlib.sha256(transformers.__version__.encode())
    with path.open("rb") as stream:
        digest.update(stream.read(read_header(path).data))
    return digest.hexdigest()[:16]
