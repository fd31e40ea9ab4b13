"""A text of one's own: every kind of file and folder, under any name."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from sq.data.texts import read_text
from sq.data.windows import evaluation_windows
from sq.errors import DataError


def text_of(place: Path, split: str = "evaluation", key: str = "path") -> str:
    read = read_text("mine-2", split, **{key: place})
    assert not read.separate
    (text,) = read.documents
    return text


@pytest.mark.parametrize("key", ["path", "dataset_path"])
@pytest.mark.parametrize("ending", [".txt", ".md", ".jsonl", ".parquet", ""])
def test_one_file(tmp_path: Path, key: str, ending: str, plain: PreTrainedTokenizerFast) -> None:
    rows, file = ["first row", "second row"], tmp_path / f"file{ending}"
    if ending == ".parquet":
        pd.DataFrame({"text": rows}).to_parquet(file)
    else:
        lines = (json.dumps({"text": row}) for row in rows)
        file.write_text("\n".join(lines) if ending == ".jsonl" else "\n\n".join(rows))
    assert text_of(file, key=key) == "first row\n\nsecond row"
    assert text_of(file, "train", key) == "first row\n\nsecond row"
    found = evaluation_windows("mine-2", plain, window=5, **{key: file})  # type: ignore[arg-type]
    assert found.text == "mine-2"
    assert plain.decode(found.ids[0]) == "first"


def test_a_folder_of_text_files_with_splits(tmp_path: Path) -> None:
    for name in ("train/b.txt", "train/a.md", "test.txt", ".hidden/test.txt", "test.png", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}")
    assert text_of(tmp_path, "train") == "content of train/a.md\n\ncontent of train/b.txt"
    assert text_of(tmp_path) == "content of test.txt"


def test_a_folder_without_splits_is_read_whole_and_rows_come_before_plain_files(tmp_path: Path) -> None:
    (tmp_path / "latest.txt").write_text("one")  # holds "test", which is no word of its name
    (tmp_path / "other.txt").write_text("two")
    assert text_of(tmp_path) == text_of(tmp_path, "train") == "one\n\ntwo"
    (tmp_path / "rows.jsonl").write_text('{"text": "row"}')
    assert text_of(tmp_path) == "row"


def test_saved_datasets_with_either_name_of_their_splits(tmp_path: Path) -> None:
    def saved(**splits: str) -> Path:
        folder = tmp_path / "-".join(splits)
        parts = {split: datasets.Dataset.from_dict({"text": [text]}) for split, text in splits.items()}
        datasets.DatasetDict(parts).save_to_disk(str(folder))
        return folder

    both = saved(train="for calibration", validation="for evaluation")
    assert (text_of(both, "train"), text_of(both)) == ("for calibration", "for evaluation")
    assert text_of(saved(validation="not this one", test="this one")) == "this one"
    with pytest.raises(DataError, match=r"has splits \['train'\]; split 'test' or 'evaluation' or .* is needed"):
        text_of(saved(train="alone"))


def test_places_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        text_of(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no text files; allowed endings: \.txt, \.md"):
        text_of(tmp_path)
    (tmp_path / "train.txt").write_text("words")
    with pytest.raises(DataError, match="are of another split"):
        text_of(tmp_path)
    (tmp_path / "blank.jsonl").write_text('{"text": " "}')
    with pytest.raises(DataError, match="has no text in it"):
        text_of(tmp_path / "blank.jsonl")
    (tmp_path / "body.jsonl").write_text('{"body": "words"}')
    with pytest.raises(DataError, match="a column 'text' is needed"):
        text_of(tmp_path / "body.jsonl")


def test_a_known_name_is_no_name_for_a_file(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("words")
    for name in ("embedded", "pydoc", "wikitext2", "c4"):
        with pytest.raises(DataError, match=r"such as calibration\.text=mytext|for example calibration\.text=mytext"):
            read_text(name, "train", path=file)
    with pytest.raises(DataError, match=r"is not one of \.parquet.*a file of plain text goes to path="):
        read_text("c4", "train", dataset_path=file)
