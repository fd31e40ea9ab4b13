from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sq.data.texts import C4_DOCUMENTS, read_text
from sq.data.windows import calibration_windows, evaluation_windows
from sq.errors import DataError

WIKI_RAW = " = Title = \n \n First line . \n Second line . \n \n \n End . \n"
# What the hub's wikitext script makes of these lines.
WIKI_ROWS = [" = Title = \n", "", " First line . \n", " Second line . \n", "", "", " End . \n"]
DOCUMENTS = ["1999", *(f"document {i} " + "word " * (i % 7) for i in range(C4_DOCUMENTS + 50))]


def write_json_lines(path: Path, documents: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": text, "timestamp": "2019-04-25T12:57:54Z"}) + "\n" for text in documents)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())


@pytest.fixture(scope="module")
def saved_wikitext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wiki")
    splits = {
        "train": datasets.Dataset.from_dict({"text": ["train row \n"] * 40}),
        "test": datasets.Dataset.from_dict({"text": WIKI_ROWS}),
    }
    datasets.DatasetDict(splits).save_to_disk(str(folder / "both"))
    datasets.Dataset.from_dict({"text": WIKI_ROWS}, split="test").save_to_disk(str(folder / "test_only"))
    datasets.DatasetDict({"train": splits["train"]}).save_to_disk(str(folder / "train_only"))
    datasets.Dataset.from_dict({"words": WIKI_ROWS}).save_to_disk(str(folder / "no_text"))
    return folder


def test_wikitext_rows_are_joined_by_two_newlines(saved_wikitext: Path) -> None:
    for name in ("both", "test_only"):
        (text,) = read_text("wikitext2", "evaluation", dataset_path=saved_wikitext / name).documents
        assert text == "\n\n".join(WIKI_ROWS)


def test_a_raw_wikitext_file_gives_the_same_text(saved_wikitext: Path, tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text(WIKI_RAW, encoding="utf-8")
    assert read_text("wikitext2", "evaluation", path=path).documents == ["\n\n".join(WIKI_ROWS)]


def test_wikitext_windows(saved_wikitext: Path, plain: PreTrainedTokenizerFast) -> None:
    found = evaluation_windows("wikitext2", plain, window=16, dataset_path=saved_wikitext / "both")
    assert found.text == "wikitext2"
    assert plain.decode(found.ids.flatten()) == "\n\n".join(WIKI_ROWS)[: found.tokens]
    train = calibration_windows("wikitext2", plain, tokens=64, window=16, dataset_path=saved_wikitext / "both")
    assert "train" in plain.decode(train.ids.flatten())


def test_saved_folders_that_do_not_fit(saved_wikitext: Path) -> None:
    with pytest.raises(DataError, match=r"has splits \['train'\]; split 'test' is needed"):
        read_text("wikitext2", "evaluation", dataset_path=saved_wikitext / "train_only")
    with pytest.raises(DataError, match="holds split 'test'; split 'train' is needed"):
        read_text("wikitext2", "train", dataset_path=saved_wikitext / "test_only")
    with pytest.raises(DataError, match="a column 'text' is needed"):
        read_text("wikitext2", "evaluation", dataset_path=saved_wikitext / "no_text")


def test_a_damaged_saved_folder(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        read_text("wikitext2", "evaluation", dataset_path=tmp_path)


def test_parquet_files_of_a_repository_snapshot(tmp_path: Path) -> None:
    for config, rows in (("wikitext-103-raw-v1", ["wrong"]), ("wikitext-2-raw-v1", WIKI_ROWS)):
        (tmp_path / config).mkdir()
        pd.DataFrame({"text": rows}).to_parquet(tmp_path / config / "test-00000-of-00001.parquet")
    assert read_text("wikitext2", "evaluation", dataset_path=tmp_path).documents == ["\n\n".join(WIKI_ROWS)]


@pytest.mark.parametrize("suffix", ["json.gz", "json", "jsonl"])
def test_c4_joins_its_first_documents_by_a_space(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / "en" / f"c4-validation.00000-of-00008.{suffix}"
    write_json_lines(file, DOCUMENTS)
    write_json_lines(tmp_path / "en" / f"c4-validation.00001-of-00008.{suffix}", ["another shard"])
    expected = [" ".join(DOCUMENTS[:C4_DOCUMENTS])]
    assert read_text("c4", "evaluation", dataset_path=file).documents == expected
    if suffix == "json.gz":
        assert read_text("c4", "evaluation", dataset_path=tmp_path).documents == expected


def test_c4_keeps_256_windows(tmp_path: Path, plain: PreTrainedTokenizerFast) -> None:
    file = tmp_path / "validation.jsonl"
    write_json_lines(file, DOCUMENTS)
    found = evaluation_windows("c4", plain, window=20, dataset_path=file)
    assert found.ids.shape == (256, 20)
    assert plain.decode(found.ids.flatten()) == " ".join(DOCUMENTS)[: 256 * 20]


def test_c4_calibration_documents_stand_alone(tmp_path: Path, plain: PreTrainedTokenizerFast) -> None:
    write_json_lines(tmp_path / "c4-train.00000-of-01024.json.gz", ["x" * 50] * 30)
    found = calibration_windows("c4", plain, tokens=408, window=51, dataset_path=tmp_path)
    assert found.ids.shape == (8, 51)
    assert (found.ids == plain.eos_token_id).sum(1).tolist() == [1] * 8
    again = calibration_windows("c4", plain, tokens=408, window=51, dataset_path=tmp_path)
    assert torch.equal(found.ids, again.ids)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; Local data: task\.perplexity\.dataset_path="):
        read_text("c4", "evaluation", dataset_path=tmp_path / "absent")
    with pytest.raises(DataError, match="no file for split 'validation'"):
        read_text("c4", "evaluation", dataset_path=tmp_path)
    write_json_lines(tmp_path / "train.jsonl", ["text"])
    with pytest.raises(DataError, match=r"found: train\.jsonl"):
        read_text("c4", "evaluation", dataset_path=tmp_path)
    broken = tmp_path / "c4-validation.json.gz"
    broken.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read as JSON lines"):
        read_text("c4", "evaluation", dataset_path=broken)
    pd.DataFrame({"body": ["x"]}).to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(DataError, match="a column 'text' is needed"):
        read_text("c4", "evaluation", dataset_path=tmp_path / "validation.parquet")


def test_an_unreachable_hub_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError) as caught:
        read_text("wikitext2", "evaluation")
    for part in (
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        "ConnectionError",
        "dataset_path=",
        "texts=[pydoc]",
    ):
        assert part in str(caught.value)
    with pytest.raises(DataError, match=r"allenai/c4 \(en/c4-validation\.00000-of-00008\.json\.gz"):
        read_text("c4", "evaluation")


def test_offline_mode_never_reaches_for_the_network(tmp_path: Path) -> None:
    code = "from sq.data.texts import read_text\nread_text('wikitext2', 'evaluation')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "DataError" in done.stderr
    assert "HF_HUB_OFFLINE and HF_DATASETS_OFFLINE is set, so only the hub's local cache was searched" in done.stderr
