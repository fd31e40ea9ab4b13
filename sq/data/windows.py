"""Windows of token ids: random ones for calibration, consecutive ones for evaluation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sq.data.texts import read_text
from sq.data.tokens import token_row
from sq.errors import DataError

C4_WINDOWS = 256  # the c4-new protocol keeps the first 256 windows
SPREAD = 16  # calibration draws its windows from so many times its tokens, where documents stand alone


@dataclass(frozen=True)
class Windows:
    """Token windows of one length: int64 ids (count, window), and the name of their text as metrics print it.

    The fingerprint is the sha256 of the ids (little-endian int64, row after row).
    """

    ids: Tensor
    text: str
    fingerprint: str

    @property
    def tokens(self) -> int:
        """Number of tokens in all windows."""
        return self.ids.numel()


def calibration_windows(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int,
    window: int,
    seed: int = 0,
    path: Path | None = None,
    dataset_path: Path | None = None,
    cache_dir: Path | None = None,
) -> Windows:
    """tokens / window windows at random places of the train split, none overlapping another, in random order.

    Same seed, text and tokenizer give the same windows. How documents are chosen is in README.md beside this file.

    Args:
        text, path, dataset_path: of `read_text`.
        tokens: how many tokens in all; a multiple of `window`, the tokens of one.
        seed: of places and document order.
        cache_dir: token rows are kept here; None keeps nothing.

    DataError is raised for tokens not a positive multiple of window, and a text with fewer or that cannot be read.
    """
    _check_window(text, window)
    _check_count(tokens, window)
    generator = torch.Generator().manual_seed(seed)
    source = read_text(text, "train", path=path, dataset_path=dataset_path)
    if source.separate:
        row = _enough_documents(source.documents, tokenizer, SPREAD * tokens, generator, cache_dir)
    else:
        row = token_row(source.documents, tokenizer, cache_dir=cache_dir)
    _check_length(text, row, window)
    count = tokens // window
    if row.numel() < tokens:
        fits = row.numel() // window * window
        raise DataError(
            f"{text}: got {row.numel()} calibration tokens, {tokens} are needed (windows of {window}); "
            f"give a longer text or choose calibration tokens <= {fits}"
        )
    # count sorted distinct numbers below T - count (window - 1), spread apart by window - 1 each, are a uniform draw
    # among all placements without overlap.
    free = row.numel() - count * (window - 1)
    starts = torch.randperm(free, generator=generator)[:count].sort().values + torch.arange(count) * (window - 1)
    starts = starts[torch.randperm(count, generator=generator)]
    return _windows(torch.stack([row[start : start + window] for start in starts.tolist()]), text)


def random_token_windows(vocab: int, *, tokens: int, window: int, seed: int = 0) -> Windows:
    """Windows of uniformly random token ids in [0, vocab), the text "random": for models with random weights."""
    _check_count(tokens, window)
    generator = torch.Generator().manual_seed(seed)
    return _windows(torch.randint(0, vocab, (tokens // window, window), generator=generator), "random")


def evaluation_windows(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    count: int | None = None,
    path: Path | None = None,
    dataset_path: Path | None = None,
    cache_dir: Path | None = None,
) -> Windows:
    """Non-overlapping windows of the evaluation split from its start, the tail dropped; of c4 the first 256.

    Args:
        text, window, path, dataset_path, cache_dir: as in `calibration_windows`.
        count: use only so many windows, evenly spread over the text; None uses all.

    DataError is raised for a text shorter than one window or `count` windows, or that cannot be read.
    """
    _check_window(text, window)
    if count is not None and count < 1:
        raise DataError(f"{text}: got {count} evaluation windows; give at least 1, or None for all")
    source = read_text(text, "evaluation", path=path, dataset_path=dataset_path)
    row = token_row(source.documents, tokenizer, end_of_text=source.separate, cache_dir=cache_dir)
    _check_length(text, row, window)
    ids = row[: row.numel() // window * window].view(-1, window)
    if text == "c4":
        ids = ids[:C4_WINDOWS]
    if count is not None:
        if count > len(ids):
            raise DataError(
                f"{text}: {count} windows of {window} tokens are needed, the text has {len(ids)}; "
                f"choose at most {len(ids)} or give a longer text"
            )
        ids = ids[torch.arange(count) * len(ids) // count]
    return _windows(ids, text)


def _enough_documents(
    documents: list[str], tokenizer: PreTrainedTokenizerBase, tokens: int, draw: torch.Generator, cache: Path | None
) -> Tensor:
    """Token row of documents in random order, until at least `tokens` are at hand or no document is left."""
    order = [documents[i] for i in torch.randperm(len(documents), generator=draw).tolist()]
    rows: list[Tensor] = []
    have = used = 0
    characters_per_token = 4.0  # a first guess that the first batch replaces
    while have < tokens and used < len(order):
        characters, end = 0, used
        while end < len(order) and characters < (tokens - have) * characters_per_token:
            characters += len(order[end])
            end += 1
        rows.append(token_row(order[used:end], tokenizer, end_of_text=True, cache_dir=cache))
        have, used = have + rows[-1].numel(), end
        characters_per_token = max(1.0, characters / max(1, rows[-1].numel()))
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)


def _check_window(text: str, window: int) -> None:
    if window < 2:
        raise DataError(f"{text}: a window of {window} tokens has nothing to predict; ask for at least 2")


def _check_count(tokens: int, window: int) -> None:
    if tokens < window or tokens % window:
        nearest = max(window, round(tokens / window) * window)
        raise DataError(f"{tokens} calibration tokens do not fill windows of {window}; ask for a multiple: {nearest}")


def _check_length(text: str, row: Tensor, window: int) -> None:
    if row.numel() < window:
        raise DataError(
            f"{text}: the text has {row.numel()} tokens, shorter than one window of {window}; "
            "give a longer text or a smaller window"
        )


def _windows(ids: Tensor, text: str) -> Windows:
    ids = ids.to(torch.int64).contiguous()
    return Windows(ids, text, hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest())
