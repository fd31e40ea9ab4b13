"""What the check says about texts is true: a command that follows an advice passes, and is understood when it runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sq.config.compose import compose
from sq.config.settings import ExperimentSettings
from sq.data.texts import read_text
from sq.errors import ConfigError

RTN = "method=rtn"
KEYS = [("calibration", "calibration.text={}"), ("task.perplexity", "task.perplexity.texts=[{}]")]


def problem(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose([RTN, *overrides])
    (told,) = caught.value.problems
    return told


def read(settings: ExperimentSettings, section: str) -> str:
    """The text of a section, read as a run does."""
    if section == "calibration":
        one = settings.calibration
        return read_text(one.text, "train", path=one.path, dataset_path=one.dataset_path).documents[0]
    measured = settings.task.perplexity
    assert measured is not None
    (name,) = measured.texts
    return read_text(name, "evaluation", path=measured.path, dataset_path=measured.dataset_path).documents[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("own words")
    return tmp_path / "notes.txt"


@pytest.mark.parametrize(("section", "name"), KEYS)
def test_an_unknown_name_needs_a_path_or_is_one_of_the_known(section: str, name: str, file: Path) -> None:
    told = problem(name.format("wt2"))
    known, any_name = told.split("allowed: ")[1].split("; or any name together with ")
    for text in known.split(", "):
        compose([RTN, name.format(text)])
    for key in re.findall(r"(\S+)=<", any_name):
        assert read(compose([RTN, name.format("wt2"), f"{key}={file}"]), section) == "own words"
        assert read(compose([RTN, name.format("wt2"), f"{key}={file.parent}"]), section) == "own words"


@pytest.mark.parametrize(("section", "name"), KEYS)
@pytest.mark.parametrize("known", ["embedded", "pydoc", "wikitext2", "c4"])
@pytest.mark.parametrize("key", ["path", "dataset_path"])
def test_a_known_name_with_a_private_file(section: str, name: str, known: str, key: str, file: Path) -> None:
    place = f"{section}.{key}={file}"
    if known in ("wikitext2", "c4") and key == "dataset_path":
        compose([RTN, name.format(known), place])  # a local copy
        return
    told = problem(name.format(known), place)
    (advice,) = re.findall(r"\S+=\[?mytext\]?", told)
    assert read(compose([RTN, advice, place]), section) == "own words"
    if copy := re.search(rf"({re.escape(section)}\.dataset_path)=<", told):
        compose([RTN, name.format(known), f"{copy[1]}={file}"])


@pytest.mark.parametrize(("section", "name"), KEYS)
def test_a_file_alone_is_told_how_to_name_it(section: str, name: str, file: Path) -> None:
    """Its default name would be that of another text."""
    (advice,) = re.findall(r"\S+=\[?mytext\]?", problem(f"{section}.path={file}"))
    assert read(compose([RTN, advice, f"{section}.path={file}"]), section) == "own words"


def test_a_path_is_of_the_one_text_that_takes_one(file: Path) -> None:
    """Beside it there may be texts that need none."""
    for key in ("path", "dataset_path"):
        place = f"task.perplexity.{key}={file}"
        compose([RTN, "task.perplexity.texts=[pydoc,mine,embedded]", place])
        assert "names 2 texts that it would be" in problem("task.perplexity.texts=[pydoc,mine,other]", place)
    compose([RTN, "task.perplexity.texts=[pydoc,wikitext2,c4]", f"task.perplexity.dataset_path={file.parent}"])


def test_a_raw_file_of_wikitext_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw").write_text(" = Title = \n")
    overrides = ["task.perplexity.texts=[wikitext2]", f"task.perplexity.path={tmp_path / 'wiki.test.raw'}"]
    assert read(compose([RTN, *overrides]), "task.perplexity") == " = Title = \n"


def test_other_mistakes(file: Path) -> None:
    both = f"task.perplexity.path={file}", f"task.perplexity.dataset_path={file}"
    assert "are both given; give one" in problem("task.perplexity.texts=[mine]", *both)
    for name in ("a/b", ".."):
        assert "becomes part of a metric's name" in problem(f"task.perplexity.texts=['{name}']", both[0])
    for place in both:
        told = problem("task.perplexity.texts=[mine,other]", place)
        (advice,) = re.findall(r"\S+=\[\w+\]", told.split("name one:")[1])
        compose([RTN, advice, place])
    told = problem("task.perplexity.texts=[mine]", f"task.perplexity.path={training(file)}")
    assert "all files of" in told
    assert "name a single file" in told
    compose([RTN, "calibration.text=mine", f"calibration.path={training(file)}"])


def training(file: Path) -> Path:
    """A folder with nothing but a training part."""
    folder = file.parent / "parts"
    folder.mkdir(exist_ok=True)
    (folder / "train.txt").write_text("words")
    return folder


def test_two_texts_of_the_hub_and_a_private_file(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([RTN, "model=llama2_7b", f"task.perplexity.path={file}"])
    for told in caught.value.problems:
        (advice,) = re.findall(r"\S+=\[mytext\]", told)
        compose([RTN, "model=llama2_7b", advice, f"task.perplexity.path={file}"])


def test_a_model_of_ones_own_needs_no_download() -> None:
    settings = compose([RTN, "model=custom", "model.path=owner/name"])
    assert settings.calibration.text == "pydoc"
    assert settings.task.perplexity is not None
    assert (settings.task.perplexity.texts, settings.task.perplexity.window) == (("pydoc",), 512)
    header = (Path(__file__).parents[2] / "conf" / "model" / "custom.yaml").read_text().splitlines()[1]
    paper = compose([RTN, "model=custom", "model.path=owner/name", *re.findall(r"\S+=\S+", header)])
    hub = compose([RTN, "model=llama2_7b"])
    assert paper.task == hub.task
    assert (paper.calibration.text, paper.calibration.tokens, paper.calibration.window) == ("wikitext2", 262_144, 2048)
