from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from sq.data import stdlib_text, windows
from sq.data.windows import calibration_windows, evaluation_windows
from sq.errors import DataError


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i:04d}" for i in range(251))[:1003], encoding="utf-8")
    return path


def test_evaluation_windows_are_consecutive_and_drop_the_tail(plain: PreTrainedTokenizerFast, text_file: Path) -> None:
    found = evaluation_windows("local", plain, window=100, path=text_file)
    assert found.ids.shape == (10, 100)
    assert found.ids.dtype == torch.int64
    assert found.text == "local"
    assert found.tokens == 1000
    assert plain.decode(found.ids.flatten()) == text_file.read_text()[:1000]
    raw = b"".join(struct.pack("<q", i) for i in found.ids.flatten().tolist())
    assert found.fingerprint == hashlib.sha256(raw).hexdigest()


def test_count_spreads_evaluation_windows_evenly(plain: PreTrainedTokenizerFast, text_file: Path) -> None:
    everything = evaluation_windows("local", plain, window=100, path=text_file).ids
    chosen = evaluation_windows("local", plain, window=100, count=4, path=text_file).ids
    assert torch.equal(chosen, everything[[0, 2, 5, 7]])


def test_bos_stands_once_at_the_start(with_bos: PreTrainedTokenizerFast, text_file: Path) -> None:
    ids = evaluation_windows("local", with_bos, window=50, path=text_file).ids
    assert (ids == with_bos.bos_token_id).nonzero().tolist() == [[0, 0]]


@settings(max_examples=25, deadline=None)
@given(window=st.integers(2, 40), count=st.integers(1, 12), seed=st.integers(0, 5))
def test_calibration_windows_are_slices_that_never_overlap(window: int, count: int, seed: int) -> None:
    # Tokens that are their own position make the places visible.
    row = torch.arange(500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "read_text", lambda *_, **__: windows_text())
        patch.setattr(windows, "token_row", lambda *_, **__: row)
        tokens = count * window
        found = calibration_windows("local", None, tokens=tokens, window=window, seed=seed).ids  # type: ignore[arg-type]
    assert found.shape == (count, window)
    assert torch.equal(found - found[:, :1], torch.arange(window).expand(count, -1))
    assert found.unique().numel() == count * window


def windows_text() -> object:
    from sq.data.texts import Text

    return Text(["unused"], separate=False)


def test_every_place_is_reached(plain: PreTrainedTokenizerFast, text_file: Path) -> None:
    exact = calibration_windows("local", plain, tokens=1000, window=500, path=text_file).ids
    assert exact.shape == (2, 500)
    seeds = [calibration_windows("local", plain, tokens=100, window=100, seed=s, path=text_file) for s in range(6)]
    assert len({found.fingerprint for found in seeds}) == 6
    again = calibration_windows("local", plain, tokens=100, window=100, seed=3, path=text_file)
    assert again.fingerprint == seeds[3].fingerprint


def test_embedded_splits_do_not_meet_and_documents_end_with_end_of_text(
    plain: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"train": [(f"m{i}", chr(97 + i) * 60) for i in range(8)], "held_out": [("h", "H" * 50), ("i", "I" * 49)]}
    monkeypatch.setattr("sq.data.texts.stdlib_text", lambda split: modules[split])
    held_out = plain.decode(evaluation_windows("embedded", plain, window=50).ids.flatten())
    assert held_out == "H" * 50 + "</s>" + "I" * 49
    trained = plain.decode(calibration_windows("embedded", plain, tokens=244, window=61, seed=1).ids.flatten())
    assert set(trained.replace("</s>", "")) <= set("abcdefgh")


def test_embedded_calibration_reads_only_some_of_the_library(
    plain: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sq.data.texts.stdlib_text", lambda _: [(f"m{i}", "x" * 999) for i in range(200)])
    seen: list[int] = []
    original = windows.token_row

    def counting(documents: list[str], *args: object, **kwargs: object) -> torch.Tensor:
        seen.append(len(documents))
        return original(documents, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(windows, "token_row", counting)
    calibration_windows("embedded", plain, tokens=1000, window=100)
    assert 16 <= sum(seen) < 80
    seen.clear()
    assert calibration_windows("embedded", plain, tokens=200_000, window=100).ids.shape == (2000, 100)
    assert sum(seen) == 200


def test_the_real_library_gives_windows(plain: PreTrainedTokenizerFast) -> None:
    found = evaluation_windows("embedded", plain, window=256, count=7)
    assert found.ids.shape == (7, 256)
    assert found.text == "embedded"


def test_splits_share_no_module() -> None:
    train = {name for name, _ in stdlib_text.stdlib_text("train")}
    held_out = {name for name, _ in stdlib_text.stdlib_text("held_out")}
    assert train.isdisjoint(held_out)
    assert len(held_out) > 10
    with pytest.raises(ValueError, match="'train', 'held_out'"):
        stdlib_text.stdlib_text("test")


def test_an_interpreter_without_source_is_told(
    plain: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match="without its standard library"):
        evaluation_windows("embedded", plain, window=8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"abc\0def" * 50, "NUL byte at offset 3"),
        (b"good \xff\xfe bad" * 50, "not UTF-8: byte 0xff at offset 5"),
        (b"short", "5 tokens, shorter than one window of 100"),
    ],
)
def test_bad_files(plain: PreTrainedTokenizerFast, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    for windows_of in (
        lambda: evaluation_windows("local", plain, window=100, path=path),
        lambda: calibration_windows("local", plain, tokens=200, window=100, path=path),
    ):
        with pytest.raises(DataError, match=message):
            windows_of()


def test_missing_file_and_folder(plain: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        evaluation_windows("local", plain, window=8, path=tmp_path / "absent.txt")
    with pytest.raises(DataError, match="has no text files; allowed endings"):
        evaluation_windows("local", plain, window=8, path=tmp_path)


def test_wrong_arguments(plain: PreTrainedTokenizerFast, text_file: Path) -> None:
    with pytest.raises(DataError, match=r"allowed: embedded, pydoc, wikitext2, c4; or any name together with"):
        evaluation_windows("wikitext103", plain, window=8)
    with pytest.raises(DataError, match=r"texts=\[local\]; allowed"):
        evaluation_windows("local", plain, window=8)
    with pytest.raises(DataError, match="is the standard library's source, not"):
        evaluation_windows("embedded", plain, window=8, path=text_file)
    with pytest.raises(DataError, match="give one"):
        evaluation_windows("c4", plain, window=8, path=text_file, dataset_path=text_file)
    with pytest.raises(DataError, match="at least 2"):
        evaluation_windows("local", plain, window=1, path=text_file)
    with pytest.raises(DataError, match="at least 1"):
        evaluation_windows("local", plain, window=8, count=0, path=text_file)
    with pytest.raises(DataError, match="11 windows of 100 tokens are needed, the text has 10"):
        evaluation_windows("local", plain, window=100, count=11, path=text_file)


def test_too_few_calibration_tokens(plain: PreTrainedTokenizerFast, text_file: Path) -> None:
    with pytest.raises(DataError, match=r"got 1003 calibration tokens, 1100 are needed .* <= 1000"):
        calibration_windows("local", plain, tokens=1100, window=100, path=text_file)
    with pytest.raises(DataError, match="ask for a multiple: 300"):
        calibration_windows("local", plain, tokens=250, window=150, path=text_file)
    with pytest.raises(DataError, match="ask for a multiple: 150"):
        calibration_windows("local", plain, tokens=0, window=150, path=text_file)


def test_utf8_marks_and_other_scripts(plain: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "marked.txt"
    path.write_text("Grüße, 世界! " * 10, encoding="utf-8-sig")
    ids = evaluation_windows("local", plain, window=17, path=path).ids
    assert plain.decode(ids[0]) == "Grüße, 世界! "[:17]
