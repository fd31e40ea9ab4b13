"""Two lm-eval multiple-choice tasks made from the held-out modules of the standard library; nothing is downloaded.

What they show and how their documents are chosen is in README.md beside this file.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sq.data.stdlib_text import stdlib_text
from sq.errors import DataError
from sq.io import atomic_folder

TASKS = ("next_line", "docstring")
VERSION = 1.0  # of the protocol, as lm-eval reports it
DOCUMENTS = 250
CONTEXT_CHARACTERS = 480  # with a choice this stays within the 256 tokens the embedded model was trained on
CHOICES = 4

Document = dict[str, Any]


def embedded_tasks(cache_dir: Path) -> Path:
    """Folder for lm-eval's include_path with tasks `next_line` and `docstring`, at most 250 documents each.

    It is written whole or not at all to `<cache_dir>/tasks-<hash>`; the hash covers the path, by which YAML files name
    their jsonl files, and the documents. `datasets` keeps its copy of them in `<cache_dir>/datasets`.

    DataError is raised where the interpreter has no source of its library, or too little to make a task.
    """
    cache = Path(cache_dir).expanduser().resolve()
    try:
        modules = stdlib_text("held_out")
    except OSError as error:
        raise DataError(f"embedded tasks: {error}") from error
    contents = {}
    for name, documents in (("next_line", next_line_documents(modules)), ("docstring", docstring_documents(modules))):
        if not documents:
            count = len(modules)
            raise DataError(f"embedded task {name}: no document in {count} held-out modules; use a full CPython build")
        contents[f"{name}.jsonl"] = "".join(json.dumps(document) + "\n" for document in documents)
    digest = hashlib.sha256(json.dumps([VERSION, str(cache), contents]).encode()).hexdigest()[:16]
    folder = cache / f"tasks-{digest}"
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            for file_name, content in contents.items():
                (temporary / file_name).write_text(content, encoding="utf-8")
            for name in TASKS:
                # JSON is YAML.
                config = json.dumps(_task_config(name, folder / f"{name}.jsonl", cache / "datasets"), indent=2)
                (temporary / f"{name}.yaml").write_text(config + "\n", encoding="utf-8")
    return folder


def next_line_documents(modules: Sequence[tuple[str, str]], limit: int = DOCUMENTS) -> list[Document]:
    """Documents {module, query, choices, gold} for `next_line`, evenly from all (name, source) pairs; deterministic."""
    return _evenly([list(_module_lines(name, source, limit)) for name, source in modules], limit)


def docstring_documents(modules: Sequence[tuple[str, str]], limit: int = DOCUMENTS) -> list[Document]:
    """Documents {module, query, choices, gold} for `docstring`, evenly from all (name, source) pairs; deterministic."""
    functions = {name: list(_documented_functions(source)) for name, source in modules}
    everywhere = sorted({line for found in functions.values() for _, _, line in found})
    made = []
    for name, found in functions.items():
        generator = random.Random(f"docstring {name}")
        rows = []
        for query, signature, truth in generator.sample(found, len(found)):
            distractors = _alike(truth, everywhere, generator)
            if _stems(truth) & _stems(signature) and len(distractors) == CHOICES - 1:
                rows.append(_document(name, query, truth, distractors, generator))
        made.append(rows)
    return _evenly(made, limit)


def _module_lines(module: str, source: str, limit: int) -> Iterator[Document]:
    generator = random.Random(f"next_line {module}")
    lines = source.splitlines()
    by_indent: dict[int, set[str]] = {}
    for line in filter(_is_telling, lines):
        by_indent.setdefault(_indent(line), set()).add(line)
    made = 0
    places = [i for i in range(5, len(lines)) if _is_telling(lines[i])]
    for i in generator.sample(places, len(places)):
        shown = _context(lines[:i])
        if lines[i] in shown or len(_words(lines[i]) & _words(shown)) < 2:
            continue
        pool = [line for line in sorted(by_indent[_indent(lines[i])]) if line not in shown]
        # Trailing newlines: a choice is a whole line, so that one line being the start of another does not help it.
        distractors = [f"{line}\n" for line in _alike(lines[i], pool, generator)]
        if len(distractors) == CHOICES - 1:
            yield _document(module, shown, f"{lines[i]}\n", distractors, generator)
            made += 1
            if made == limit:
                return


def _documented_functions(source: str) -> Iterator[tuple[str, str, str]]:
    # (text shown, signature, first line of the docstring)
    try:
        tree = ast.parse(source)
    except SyntaxError:  # the library keeps a few files of another dialect
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = (ast.get_docstring(node) or "").strip().split("\n")[0].strip()
            start = node.body[0].lineno - 1
            if len(first) >= 12 and start >= node.lineno:  # a body on the line of its def has no room for a docstring
                indent = " " * node.body[0].col_offset
                signature = "\n".join(lines[node.lineno - 1 : start])
                yield f'{_context(lines[:start])}{indent}"""', signature, first


def _alike(truth: str, pool: Sequence[str], generator: random.Random) -> list[str]:
    """Up to three of the pool's twelve strings nearest in length to the truth, which is left out."""
    others = [line for line in pool if line.strip() != truth.strip()]
    generator.shuffle(others)
    nearest = sorted(others, key=lambda line: abs(len(line) - len(truth)))[:12]
    return generator.sample(nearest, min(CHOICES - 1, len(nearest)))


def _document(module: str, query: str, truth: str, distractors: list[str], generator: random.Random) -> Document:
    gold = generator.randrange(CHOICES)
    choices = [*distractors[:gold], truth, *distractors[gold:]]
    return {"module": module, "query": query, "choices": choices, "gold": gold}


def _evenly(groups: Sequence[list[Document]], limit: int) -> list[Document]:
    # One document of every module in turn, so that large modules do not fill the task.
    chosen: list[Document] = []
    for turn in range(max((len(group) for group in groups), default=0)):
        chosen.extend(group[turn] for group in groups if turn < len(group))
    return chosen[:limit]


def _context(lines: Sequence[str]) -> str:
    kept: list[str] = []
    size = 0
    for line in reversed(lines):
        size += len(line) + 1
        if size > CONTEXT_CHARACTERS and kept:
            break
        kept.append(line)
    return "".join(f"{line}\n" for line in reversed(kept))[-2 * CONTEXT_CHARACTERS :]


def _is_telling(line: str) -> bool:
    return len(line.strip()) >= 10 and not line.lstrip().startswith("#")


def _words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]{3,}", text))


def _stems(text: str) -> set[str]:
    # getFileName and get_file_name both give {get, file, name}; five letters stand for a word's stem.
    return {word.lower()[:5] for word in re.findall(r"[A-Z]?[a-z]{2,}", text)} - {"def", "self", "none", "the"}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _task_config(name: str, documents: Path, dataset_cache: Path) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents)}, "cache_dir": str(dataset_cache)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_mutual_info")
        ],
        "metadata": {"version": VERSION, "python": platform.python_version()},
    }
