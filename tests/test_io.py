"""A file is whole or absent, whenever its writer dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sq.errors import FileError
from sq.io import jsonable, read_json, read_safetensors, write_atomic, write_json, write_safetensors, write_text
from sq.runs.results import read_result

KILLED_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from sq import io
io.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
io.write_json(Path(sys.argv[1]) / "result.json", {"schema": 1})
"""


def test_killed_between_writing_and_renaming_leaves_nothing_half_read(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_BEFORE_RENAME, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    assert [path.name.endswith(".tmp") for path in tmp_path.iterdir()] == [True]
    assert read_result(tmp_path) is None


def test_a_failing_writer_keeps_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def full_disk(stream: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, full_disk)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_json_holds_only_what_json_knows(tmp_path: Path) -> None:
    value = {"a": np.float32(1.5), "b": np.arange(2), "c": float("nan"), "d": [float("inf"), None, True], 3: Path("/x")}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": 1.5, "b": [0, 1], "c": None, "d": [None, None, True], "3": "/x"
    }  # fmt: skip
    assert jsonable((1, 2)) == [1, 2]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "x": 2}'])
def test_a_damaged_or_foreign_result_is_no_result(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    assert read_result(tmp_path) is None


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_names_its_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(FileError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(FileError, match=r"gone\.json does not exist"):
        read_json(tmp_path / "gone.json")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_a_flipped_bit_of_a_tensor_is_told(tmp_path: Path, dtype: torch.dtype) -> None:
    file, tensors = tmp_path / "x.safetensors", {"a": torch.arange(40).to(dtype), "b": torch.ones((), dtype=dtype)}
    write_safetensors(file, tensors, {"facts": "1"})
    found, metadata = read_safetensors(file)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert metadata == {"facts": "1"}
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(FileError, match=r"x\.safetensors is damaged"):
        read_safetensors(file)
