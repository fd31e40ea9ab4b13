"""The tokenizer of a GGUF file: that of the model it was written from, converted once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from models.checkpoints import random_model
from models.gguf_files import tokenizer_of, write_gguf
from transformers import AutoTokenizer

import sq
from sq.embedded.model_folder import committed_folder
from sq.errors import CheckpointError
from sq.models import gguf_tokenizer as module
from sq.models.gguf_tokenizer import gguf_tokenizer

TEXT = "def add(first, second):\n    return first + 12_345  # größer\n\n\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model = random_model("qwen3", vocab_size=4096)
    return write_gguf(tmp_path / "model.gguf", model, tokenizer=tokenizer_of(committed_folder()))


def test_token_ids_are_those_of_the_tokenizer_that_was_written(path: Path, tmp_path: Path) -> None:
    found, wanted = gguf_tokenizer(path, tmp_path), AutoTokenizer.from_pretrained(committed_folder())
    assert found(TEXT)["input_ids"] == wanted(TEXT)["input_ids"]
    assert found.decode(found(TEXT)["input_ids"]) == TEXT
    assert (found.bos_token, found.eos_token) == ("<|endoftext|>", "<|endoftext|>")


def words(kind: str, text: str, folder: Path) -> list[str]:
    tokenizer = tokenizer_of(committed_folder(), kind)
    write_gguf(folder / "model.gguf", random_model("llama", vocab_size=4096), tokenizer=tokenizer)
    first, kept = (gguf_tokenizer(folder / "model.gguf", folder / "cache") for _ in range(2))
    for found in (first, kept):
        assert found.backend_tokenizer.to_str() == first.backend_tokenizer.to_str()
    cut = first.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in cut]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("gpt-2", ["It", "'s", " 12345", "!!", "\n\n", "\n", "x"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", "5", "!!", "\n\n", "\n", "x"]),
        ("llama-bpe", ["It", "'s", " ", "123", "45", "!!\n\n\n", "x"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", "5", "!!\n\n\n", "x"]),
    ],
)
def test_words_are_cut_as_the_file_says(kind: str, wanted: list[str], tmp_path: Path) -> None:
    """And as the family's own tokenizer does; the architecture's name, llama, has no say in it."""
    assert words(kind, "It's 12345!!\n\n\nx", tmp_path) == wanted


def test_unknown_words_are_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(committed_folder(), "viking")
    path = write_gguf(tmp_path / "model.gguf", random_model("llama", vocab_size=4096), tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.pre=viking cuts; known: default, gpt-2, smollm"):
        gguf_tokenizer(path, tmp_path)


def test_a_file_is_converted_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gguf_tokenizer(path, tmp_path / "cache")
    read = AutoTokenizer.from_pretrained

    def kept_alone(place: Path, **arguments: object) -> object:
        assert "gguf_file" not in arguments, "converted again"
        return read(place)

    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", kept_alone)
    again = gguf_tokenizer(path, tmp_path / "cache")
    assert again(TEXT)["input_ids"] == first(TEXT)["input_ids"]
    assert [folder.name[:15] for folder in (tmp_path / "cache").iterdir()] == ["gguf-tokenizer-"]


def test_a_cache_that_cannot_be_written_is_reported(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, logger=module.logger.name):
        found = gguf_tokenizer(path, tmp_path / "file" / "cache")
    assert "was not written" in caplog.text
    assert found.decode(found(TEXT)["input_ids"]) == TEXT


def test_a_file_without_vocabulary(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("qwen3"))
    with pytest.raises(CheckpointError, match="no tokenizer that transformers can convert"):
        gguf_tokenizer(path, tmp_path)


@pytest.mark.slow
def test_a_file_is_quantized_like_a_folder(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 200)
    overrides = [
        f"calibration.path={text}",
        "calibration.text=local",
        "calibration.tokens=128",
        "calibration.window=64",
    ]
    overrides += [f"task.perplexity.path={text}", "task.perplexity.texts=[local]", "task.perplexity.window=64"]
    overrides += [
        "task.perplexity.untrained=true",
        "task.perplexity.count=2",
        f"paths.cache={tmp_path}",
        f"paths.results={tmp_path / 'runs'}",
    ]
    quantized = sq.quantize(path, method="rtn", task="perplexity", overrides=overrides)
    folder = tmp_path / "folder"
    random_model("qwen3", vocab_size=4096).save_pretrained(folder)
    AutoTokenizer.from_pretrained(committed_folder()).save_pretrained(folder)
    wanted = sq.quantize(folder, method="rtn", task="perplexity", overrides=[*overrides, "model.dtype=float32"])
    assert quantized.metrics["ppl/local"] == wanted.metrics["ppl/local"]
    assert quantized.metrics["kl/local"] == wanted.metrics["kl/local"]
