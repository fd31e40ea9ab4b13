from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sq.data import tokens
from sq.data.tokens import token_row, tokenizer_fingerprint
from sq.io import atomic_folder


def test_one_text_is_what_the_tokenizer_gives(with_bos: PreTrainedTokenizerFast) -> None:
    row = token_row(["ab c"], with_bos)
    assert row.dtype == torch.int64
    assert row.tolist() == with_bos("ab c")["input_ids"]


def test_documents_are_joined_by_end_of_text_after_one_bos(
    plain: PreTrainedTokenizerFast, with_bos: PreTrainedTokenizerFast
) -> None:
    a, b = plain("a")["input_ids"], plain("b")["input_ids"]
    assert token_row(["a", "b"], plain, end_of_text=True).tolist() == [*a, 1, *b, 1]
    assert token_row(["a", "b"], with_bos, end_of_text=True).tolist() == [0, *a, 1, *b, 1]
    assert token_row([], plain, end_of_text=True).tolist() == []
    with pytest.raises(ValueError, match="exactly one"):
        token_row(["a", "b"], plain)


def test_cache_is_used_and_keyed_by_content_and_tokenizer(
    plain: PreTrainedTokenizerFast, with_bos: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = token_row(["text"], plain, cache_dir=tmp_path)
    token_row(["texT"], plain, cache_dir=tmp_path)
    token_row(["text"], with_bos, cache_dir=tmp_path)
    token_row(["text"], plain, end_of_text=True, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(tokens, "_tokenize", lambda *_: pytest.fail("tokenized although cached"))
    assert torch.equal(token_row(["text"], plain, cache_dir=tmp_path), first)


def test_fingerprint_tells_tokenizers_apart(plain: PreTrainedTokenizerFast, with_bos: PreTrainedTokenizerFast) -> None:
    assert tokenizer_fingerprint(plain) == tokenizer_fingerprint(plain)
    assert tokenizer_fingerprint(plain) != tokenizer_fingerprint(with_bos)


def test_a_broken_or_unwritable_cache_is_reported_not_fatal(
    plain: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = token_row(["text"], plain, cache_dir=tmp_path)
    (cached,) = tmp_path.iterdir()
    cached.write_bytes(b"not a safetensors file")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(token_row(["text"], plain, cache_dir=tmp_path), expected)
        assert "cannot be read" in caplog.text
        blocked = tmp_path / "file"
        blocked.write_text("a file where the folder should be")
        assert torch.equal(token_row(["text"], plain, cache_dir=blocked / "cache"), expected)
        assert "was not written" in caplog.text


def test_an_interrupted_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"

    def interrupted() -> None:
        with atomic_folder(folder) as temporary:
            (temporary / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(folder.parent.iterdir()) == []
    with atomic_folder(folder) as temporary:
        (temporary / "whole").write_text("whole")
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_atomic_folder_keeps_what_another_process_finished_first(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with atomic_folder(folder) as temporary:
        (temporary / "ours").touch()
        folder.mkdir()
        (folder / "theirs").touch()
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
