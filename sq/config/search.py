"""Searches: sweeps whose sweeper takes values of distributions (hydra/sweeper=optuna) and reads what a job returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, ListConfig, OmegaConf

from sq.config.settings import ExperimentSettings

SAMPLERS = ("optuna",)  # choices of hydra/sweeper that know distributions
MANY = 64  # jobs up to which all combinations of the values of a search are checked
EXTRAS = {"optuna": "optuna", "joblib": "launchers", "submitit_local": "launchers", "submitit_slurm": "launchers"}
EXTRAS |= {"ray": "launchers"}  # choices of Hydra's plugins -> the extra that installs them
BETTER_HIGH = ("top1/", "acc/", "speed/")


def samples(hydra: DictConfig) -> bool:
    """Whether the sweeper of a composed config chooses values itself."""
    return OmegaConf.select(hydra, "runtime.choices.hydra/sweeper") in SAMPLERS


def values(override: Override, *, search: bool = False) -> list[str]:
    """An override for each value of a sweep; of an interval for its ends, of a search's range for its stop as well.

    Optuna takes int(interval(2,8)) as whole numbers, and its ranges include their stop.
    """
    value: Any = override.value()
    key = override.get_key_element()
    if isinstance(value, IntervalSweep):
        return [f"{key}={end}" for end in (value.start, value.end)]
    if not override.is_sweep_override():
        return [str(override.input_line)]
    stop = [f"{key}={value.stop}"] if search and isinstance(value, RangeSweep) else []
    return [*(f"{key}={one}" for one in override.sweep_string_iterator()), *stop]


def not_swept(override: Override) -> str | None:
    """What is wrong with a distribution in a sweep that takes every value."""
    if not isinstance(override.value(), IntervalSweep):
        return None
    return (
        f"{override.input_line}: an interval has no end of values, so a search takes some of them; add "
        "hydra/sweeper=optuna and objective=<metric>, or list values"
    )


def plugin_hint(group: str, choice: str) -> str:
    """How to install a choice of Hydra's that is a plugin; empty where it is none."""
    extra = EXTRAS.get(choice) if group in ("hydra/sweeper", "hydra/launcher") else None
    return "" if extra is None else f"; for {choice}: pip install -e '.[{extra}]'"


def trials(found: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Overrides of jobs that show the mistakes of a search: all combinations where they are few, else each value once
    beside the first of the others."""
    total = 1
    for each in found.values():
        total *= len(each)
    if total <= MANY:
        return list(product(*found.values()))
    first = [each[0] for each in found.values()]
    jobs = [tuple(first)]
    for place, each in enumerate(found.values()):
        jobs += [(*first[:place], value, *first[place + 1 :]) for value in each[1:]]
    return jobs


def objective_mistakes(hydra: DictConfig, jobs: Sequence[ExperimentSettings]) -> Iterator[str]:
    """What is wrong with the metrics that the jobs of a search return, and with their directions."""
    wanted = list(dict.fromkeys(job.objective for job in jobs))
    for names in wanted:
        if not names:
            yield "hydra/sweeper=optuna reads what a run measures; name it, for example objective=kl/embedded"
            continue
        chosen = hydra.sweeper.direction
        chosen = chosen if isinstance(chosen, ListConfig) else [chosen]
        directions = [str(getattr(one, "name", one)) for one in chosen]
        if len(directions) != len(names):
            listed = ",".join("maximize" if name.startswith(BETTER_HIGH) else "minimize" for name in names)
            yield (
                f"hydra.sweeper.direction={','.join(directions)} for {len(names)} objectives; write one for each, "
                f"hydra.sweeper.direction=[{listed}]"
            )
            continue
        for name, direction in zip(names, directions, strict=True):
            if direction == "minimize" and name.startswith(BETTER_HIGH):
                yield f"objective={name} is better when it is higher; add hydra.sweeper.direction=maximize"
