"""Which experiments a folder of runs belongs to, found from what was typed and without composing any config.

Composing an experiment to learn the ids of its runs takes half a second and more, so it is done only where it can help.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from sq.config.choices import CONF, method_names
from sq.config.model_name import model_name
from sq.errors import FileError
from sq.io import read_json

# What decides where and how runs are made, and not which runs they are.
ELSEWHERE = re.compile(r"[+~]*(paths|tracker|hydra|save_to|force|executor|experiment)\b")
SHARE = 0.5  # of an experiment's methods that must have been run for it to be tried unasked


@dataclass(frozen=True)
class Asked:
    """One set of overrides of an experiment.

    Attributes:
        overrides: as typed; a list of methods is that of all commands that differ in nothing else.
        named: whether somebody asked for this experiment with these overrides: what it lacks is then told in its place.
    """

    overrides: tuple[str, ...]
    named: bool


def asked(frame: pd.DataFrame, experiment: str, overrides: Sequence[str] | None = None) -> list[Asked]:
    """The sets of overrides under which runs of an experiment are worth looking for; empty where there are none.

    Args:
        frame: of `sq.analysis.load`.
        experiment: file of conf/experiment/.
        overrides: the only set; None = those of the commands that made the runs, and none at all.
    """
    if overrides is not None:
        return [Asked(tuple(overrides), True)] if _share(frame, experiment, overrides) > 0 else []
    commands = recorded(frame)
    named = commands.get(experiment, [])
    others = [(), *(one for found in commands.values() for one in found if not _narrows(one))]
    likely = [one for one in dict.fromkeys(others) if one not in named and _share(frame, experiment, one) >= SHARE]
    return [*(Asked(one, True) for one in named), *(Asked(one, False) for one in likely)]


def recorded(frame: pd.DataFrame) -> dict[str, list[tuple[str, ...]]]:
    """Experiment -> sets of overrides, from the commands that made the runs."""
    methods: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for command in frame.get("command", pd.Series(dtype=str)).dropna().unique():
        for experiment, words in _experiments(str(command)):
            rest = tuple(word for word in words if not word.startswith("method="))
            given = {name for word in words if word.startswith("method=") for name in word[7:].split(",")}
            methods.setdefault((experiment, rest), set()).update(given or {""})
    found: dict[str, list[tuple[str, ...]]] = {}
    for (experiment, rest), names in methods.items():
        own = () if "" in names else (f"method={','.join(sorted(names))}",)  # all methods of the file
        found.setdefault(experiment, []).append((*rest, *own))
    return found


def made_by(frame: pd.DataFrame, experiment: str, overrides: Sequence[str]) -> list[str]:
    """Ids of the runs that commands of an experiment with these overrides made or reused, in the order of its sweeps.

    They are read from the commands in the runs and from the records of sweeps beside them; nothing is composed.
    """
    wanted = [(word.split("=", 1)[0], set(word.split("=", 1)[-1].split(","))) for word in overrides]

    def fits(words: Sequence[str]) -> bool:
        given = dict(word.split("=", 1) for word in words if "=" in word)
        return all(key in given and set(given[key].split(",")) & values for key, values in wanted)

    found: dict[str, None] = {}
    folders = {Path(folder).parent for folder in frame["folder"].dropna()}
    for record in sorted(path for folder in folders for path in folder.glob(".sweeps/*/job-*.json")):
        with suppress(FileError):
            job = read_json(record)
            if f"experiment={experiment}" in job["overrides"] and fits(job["overrides"]):
                found |= dict.fromkeys(Path(run).name for run in job["runs"])
    for name, command in zip(frame["run_id"], frame.get("command", frame["run_id"]), strict=True):
        if any(one == experiment and fits(words) for one, words in _experiments(str(command))):
            found[name] = None
    return [name for name in found if name in set(frame["run_id"])]


def _experiments(command: str) -> Iterator[tuple[str, list[str]]]:
    try:
        words = [word for word in shlex.split(command) if "=" in word]
    except ValueError:  # an open quote
        return
    for word in words:
        if word.startswith("experiment="):
            for name in word.removeprefix("experiment=").split(","):
                if (CONF / "experiment" / f"{name}.yaml").is_file():
                    yield name, [other for other in words if not ELSEWHERE.match(other) and not other.startswith("-")]


def _narrows(overrides: Sequence[str]) -> bool:
    return any(word.startswith("method") for word in overrides)


def _share(frame: pd.DataFrame, experiment: str, overrides: Sequence[str]) -> float:
    """Share of an experiment's methods with a finished run on its model and task; what cannot be told counts as all."""
    given = dict(word.lstrip("+").split("=", 1) for word in overrides if "=" in word)
    own = _file(experiment)
    runs = frame[frame["status"] == "finished"]
    model = given.get("model.name") or (model_name(given["model.path"]) if "model.path" in given else None)
    models = [model] if model else given.get("model", own["model"]).split(",")
    tasks = given.get("task", own["task"]).split(",")
    runs = runs[runs["model"].isin(models)]
    if "task.name" in runs and "all" not in tasks:
        runs = runs[runs["task.name"].isin([*tasks, "all"])]
    choices = [name.strip() for name in given.get("method", own["method"]).split(",")]
    names = {method_names().get(choice.rpartition("/")[2], choice) for choice in choices}
    return len(names & set(runs["method"])) / len(names)


@cache
def _file(experiment: str) -> dict[str, str]:
    """Choices of an experiment's file: its model, task, and list of methods."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml"))
    chosen = {str(key).split("/")[-1]: value for entry in content["defaults"] if isinstance(entry, dict)
              for key, value in entry.items()}  # fmt: skip
    swept = content.get("hydra", {}).get("sweeper", {}).get("params", {})
    return {
        "model": str(chosen.get("model", "tiny")),
        "task": str(chosen.get("task", "perplexity")),
        "method": str(swept.get("method", chosen.get("method", "singlequant"))),
    }
