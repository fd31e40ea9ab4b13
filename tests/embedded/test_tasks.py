from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import yaml

from sq.data.stdlib_text import stdlib_text
from sq.embedded import tasks
from sq.embedded.tasks import docstring_documents, embedded_tasks, next_line_documents
from sq.errors import DataError


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    return dict(stdlib_text("held_out"))


def test_next_line_is_the_next_line(modules: dict[str, str]) -> None:
    documents = next_line_documents(list(modules.items()))
    assert 200 <= len(documents) <= 250
    for document in documents:
        source = "\n".join(modules[document["module"]].splitlines()) + "\n"
        truth = document["choices"][document["gold"]]
        assert document["query"] + truth in source
        lines = set(source.splitlines(keepends=True))
        assert len(set(document["choices"])) == 4
        assert set(document["choices"]) <= lines
        assert len({len(line) - len(line.lstrip()) for line in document["choices"]}) == 1
        assert not any(choice.rstrip("\n") in document["query"] for choice in document["choices"])


def test_docstring_belongs_to_the_shown_function(modules: dict[str, str]) -> None:
    documents = docstring_documents(list(modules.items()))
    assert 100 <= len(documents) <= 250
    truths: dict[str, set[str]] = {}
    for name, source in modules.items():
        nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        truths[name] = {(ast.get_docstring(node) or "").strip().split("\n")[0].strip() for node in nodes}
    for document in documents:
        assert document["query"].endswith('"""')
        assert "def " in document["query"]
        assert document["choices"][document["gold"]] in truths[document["module"]]
        assert len(set(document["choices"])) == 4


def test_golds_are_balanced_and_documents_repeatable(modules: dict[str, str]) -> None:
    rows = list(modules.items())
    for make in (next_line_documents, docstring_documents):
        documents = make(rows)
        golds = [document["gold"] for document in documents]
        assert all(0.15 < golds.count(i) / len(golds) < 0.35 for i in range(4))
        assert make(rows) == documents


def test_small_and_odd_modules_make_no_document() -> None:
    odd = [
        ("empty", ""),
        ("blank", "\n\n"),
        ("syntax", "def (:\n"),
        ("one", "x = 1"),
        ("inline", "def f(): 'a docstring of f'"),
    ]
    assert next_line_documents(odd) == []
    assert docstring_documents(odd) == []


def test_folder_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [(name, source) for name, source in stdlib_text("held_out") if name in ("codecs", "enum")]
    monkeypatch.setattr(tasks, "stdlib_text", lambda _: small)
    folder = embedded_tasks(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "docstring.jsonl", "docstring.yaml", "next_line.jsonl", "next_line.yaml",
    ]  # fmt: skip
    for name in tasks.TASKS:
        config = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert config["task"] == name
        assert config["metadata"]["version"] == tasks.VERSION
        assert all({"aggregation", "higher_is_better"} <= set(metric) for metric in config["metric_list"])
        file = Path(config["dataset_kwargs"]["data_files"]["test"])
        assert file.parent == folder
        assert all(json.loads(line)["choices"] for line in file.read_text().splitlines())
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert embedded_tasks(tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert embedded_tasks(tmp_path / "elsewhere").name != folder.name


def test_a_library_without_source_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match="without its standard library"):
        embedded_tasks(tmp_path)
    monkeypatch.setattr(tasks, "stdlib_text", lambda _: [("only", "x = 1\n")])
    with pytest.raises(DataError, match="no document in 1 held-out modules"):
        embedded_tasks(tmp_path)
