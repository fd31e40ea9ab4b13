"""Digests of files follow what the files hold, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sq import digest
from sq.digest import content_digest, digest_of
from sq.errors import FileError

TENSORS = {"a": torch.arange(200_000.0), "b": torch.ones(3, 5, dtype=torch.bfloat16), "empty": torch.zeros(0, 4)}


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_known", {})


def test_a_byte_in_the_middle_counts_whatever_the_file_says_of_its_time(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(b"0" * 1_000_000)
    before, times = content_digest(file, tmp_path), file.stat()
    content = bytearray(file.read_bytes())
    content[500_000] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content_digest(file, tmp_path) != before


def test_weights_count_by_tensor_and_not_by_shard_or_metadata(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    save_file({"b": TENSORS["b"]}, tmp_path / "one.safetensors")
    save_file({name: TENSORS[name] for name in ("a", "empty")}, tmp_path / "two.safetensors")
    whole = digest_of([tmp_path / "model.safetensors"])
    assert whole == digest_of([tmp_path / "two.safetensors", tmp_path / "one.safetensors"])
    changed = TENSORS["a"].clone()
    changed[100_000] += 1
    save_file({**TENSORS, "a": changed}, tmp_path / "model.safetensors")
    assert digest_of([tmp_path / "model.safetensors"]) != whole
    save_file({**TENSORS, "b": TENSORS["b"].reshape(5, 3)}, tmp_path / "model.safetensors")
    assert digest_of([tmp_path / "model.safetensors"]) != whole


@pytest.mark.parametrize("content", [b"", b"0" * 100, (50).to_bytes(8, "little") + b"{", b"\xff" * 8 + b"{}"])
def test_what_is_no_safetensors_counts_byte_by_byte(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    first = digest_of([tmp_path / "a.safetensors"])
    assert first == digest_of([tmp_path / "a.safetensors"])
    (tmp_path / "a.safetensors").write_bytes(content + b"1")
    assert digest_of([tmp_path / "a.safetensors"]) != first


def test_a_second_look_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    time.sleep(digest.SETTLED_SECONDS + 0.1)
    first = digest_of([file], tmp_path / "cache")
    monkeypatch.setattr(digest, "_known", {})  # another process
    monkeypatch.setattr(digest, "_by_tensor", lambda *_: pytest.fail("read again"))
    start = time.perf_counter()
    assert digest_of([file], tmp_path / "cache") == first
    assert time.perf_counter() - start < 0.05


def test_a_damaged_cache_is_not_believed_and_an_unwritable_one_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(b"1")
    first = content_digest(file)
    (tmp_path / "cache" / "digests").mkdir(parents=True)
    entry = digest._entry(file.absolute(), tmp_path / "cache")
    for content in ("{", "[]", json.dumps({"stat": digest.stat_of(file), "parts": {"bytes": "0" * 64}})):
        entry.write_text(content)
        assert content_digest(file, tmp_path / "cache") == first
    assert content_digest(file, file) == first  # a cache that is a file


def test_a_copy_is_the_same_and_a_missing_file_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "copy" / "other.safetensors")
    assert digest_of([tmp_path / "model.safetensors"]) == digest_of([tmp_path / "copy" / "other.safetensors"])
    with pytest.raises(FileError, match=r"gone\.bin cannot be read"):
        content_digest(tmp_path / "gone.bin")
