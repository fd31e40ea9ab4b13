"""Texts to one row of token ids, kept in a cache keyed by content and tokenizer.

Which texts get special tokens is in README.md beside this file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sq.errors import FileError
from sq.io import read_safetensors, write_safetensors

logger = logging.getLogger(__name__)


def token_row(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_of_text: bool = False,
    cache_dir: Path | None = None,
) -> Tensor:
    """Token ids of `documents` one after another; int64, shape (T,).

    Args:
        end_of_text: put the tokenizer's end-of-text token after every document (nothing where it has none). False
            allows one document alone (else ValueError), since tokens at a bare joint would depend on how it was cut.
        cache_dir: folder for `tokens-<hash>.safetensors`; None keeps nothing. The logger reports a cache that cannot be
            written, and the row is returned all the same.
    """
    if not end_of_text and len(documents) != 1:
        raise ValueError(f"got {len(documents)} documents; without end_of_text exactly one is allowed: join them first")
    cached = None
    if cache_dir is not None:
        cached = Path(cache_dir) / f"tokens-{_key(documents, tokenizer, end_of_text)}.safetensors"
        row = _read(cached)
        if row is not None:
            return row
    row = _tokenize(documents, tokenizer, end_of_text)
    if cached is not None:
        try:
            write_safetensors(cached, {"ids": row}, {})
        except OSError as error:
            logger.warning("token cache %s was not written (%s); the next run tokenizes again", cached, error)
    return row


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over everything that decides token ids: vocabulary, merges, normalizer, post-processor, special tokens."""
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    digest.update(state.encode())
    digest.update(json.dumps([repr(tokenizer.bos_token), repr(tokenizer.eos_token)]).encode())
    digest.update(json.dumps(_ids(tokenizer, "a b")).encode())  # slow tokenizers keep add_bos outside the vocabulary
    return digest.hexdigest()


def _key(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, end_of_text: bool) -> str:
    digest = hashlib.sha256(f"{tokenizer_fingerprint(tokenizer)} {end_of_text} {len(documents)}".encode())
    for document in documents:
        digest.update(hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()[:32]


def _read(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        return read_safetensors(path)[0]["ids"]
    except (SafetensorError, OSError, FileError, KeyError) as error:
        logger.warning("token cache %s cannot be read (%s); tokenizing again", path, error)
        return None


def _tokenize(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, end_of_text: bool) -> Tensor:
    if not end_of_text:
        return torch.tensor(_ids(tokenizer, documents[0]), dtype=torch.int64)
    row: list[int] = []
    if tokenizer.bos_token_id is not None and _ids(tokenizer, "a")[:1] == [tokenizer.bos_token_id]:
        row.append(tokenizer.bos_token_id)
    ending = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for ids in tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"] if documents else []:
        row.extend(ids)
        row.extend(ending)
    return torch.tensor(row, dtype=torch.int64)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # verbose=False: a text longer than the model's context is the rule here, and the tokenizer would warn.
    return list(tokenizer(text, verbose=False)["input_ids"])
