"""Compose conf/ from overrides, and check a whole command line with every job of its sweep before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sq.config.assemble import SharedParts
from sq.config.parse import CONF, options, parse
from sq.config.reader import closest
from sq.config.settings import ExperimentSettings
from sq.errors import ConfigError


def compose(overrides: Sequence[str] = ()) -> ExperimentSettings:
    """The settings that `python run.py <overrides>` would run with.

    Args:
        overrides: as typed on the command line, for example ["model=tiny", "bits=w4a8"].

    Raises:
        ConfigError: with every mistake, unknown groups, choices and keys among them.
    """
    with _loader() as loader:
        problems: list[str] = []
        good = _readable(overrides, loader, problems, sweep=False)
        settings = _check_job(good, problems)
    if settings is None or problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return settings


def check(overrides: Sequence[str], *, multirun: bool = False) -> int:
    """Check a command line; return the number of jobs it asks for. Arguments and errors: see `compose_jobs`."""
    return len(compose_jobs(overrides, multirun=multirun))


def compose_jobs(overrides: Sequence[str], *, multirun: bool = False) -> list[ExperimentSettings]:
    """The settings of every job that a command line asks for, in the order they would run.

    Args:
        overrides: as typed, sweeps such as "method=rtn,singlequant" included.
        multirun: whether -m was given; an experiment file may ask for it too.

    Raises:
        ConfigError: with every mistake of every job, each told once.
    """
    with _loader() as loader:
        problems: list[str] = []
        good = _readable(overrides, loader, problems, sweep=True)
        fixed = [override for override in good if not override.is_sweep_override()]
        multirun, params = _sweep_of(fixed, multirun)
        if not multirun:
            for override in good:
                if override.is_sweep_override():
                    problems.append(f"{_text(override)} lists several values; add -m to run them one after the other")
            jobs = [fixed]
        else:
            swept = _readable(params, loader, problems, sweep=True)
            parser = OverridesParser.create(config_loader=loader)
            jobs = [
                parser.parse_overrides(job)
                for batch in BasicSweeper.split_arguments([*swept, *good], max_batch_size=None)
                for job in batch
            ]
        parts = SharedParts(_compose, _is_choice, jobs) if len(jobs) > 1 else None
        settings = [_check_job(job, problems, parts) for job in jobs]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return [one for one in settings if one is not None]


@contextmanager
def _loader() -> Iterator[ConfigLoader]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        _composed.cache_clear()
        yield GlobalHydra.instance().config_loader()


def _compose(overrides: Sequence[Override]) -> DictConfig:
    """What Hydra composes; to be read, as the same overrides give the same object while a command is looked at."""
    return _composed(tuple(_text(override) for override in overrides))


@cache
def _composed(texts: tuple[str, ...]) -> DictConfig:
    return hydra_compose("config", list(texts), return_hydra_config=True)


def _text(override: Override) -> str:
    return str(override.input_line)


def _readable(texts: Sequence[str], loader: ConfigLoader, problems: list[str], *, sweep: bool) -> list[Override]:
    """The overrides that can be read and whose group choices exist; the others become problems."""
    parser = OverridesParser.create(config_loader=loader)
    good = []
    for text in texts:
        try:
            override = parser.parse_overrides([text])[0]
            names = _choices(override)
        except HydraException as error:
            problems.append(f"{text!r} cannot be read ({str(error).splitlines()[0]}); write key=value")
            continue
        group = str(override.key_or_group)
        if not group:
            problems.append(f"{text!r} cannot be read (no key); write key=value")
            continue
        allowed = _group_options(group, loader)
        if not sweep and override.is_sweep_override():
            problems.append(f"{text} lists several values where one is wanted")
        elif allowed is not None and (
            unknown := [name for name in names if name not in allowed and not _nested(group, name)]
        ):
            problems.extend(f"{group}={name}; allowed: {', '.join(allowed)}" for name in unknown)
        else:
            good.append(override)
    return good


def _choices(override: Override) -> list[str]:
    """The texts after "=", one for each value of a sweep or list; none for a deletion."""
    if override.is_delete():
        return []
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    value = override.value()
    if isinstance(value, list):
        return [str(item) for item in value]
    return [override.get_value_element_as_str()]


def _group_options(group: str, loader: ConfigLoader) -> list[str] | None:
    """The choices of a group, or None where the key is a value and not a group."""
    if _is_group_name(group):
        return options(group)
    if group.startswith("hydra/"):
        return sorted(loader.get_group_options(group)) or None
    return None


def _nested(group: str, name: str) -> bool:
    """Whether a choice is a file in a folder of its group, such as method=ablation/art; these are not listed."""
    return "/" in name and (CONF / group / f"{name}.yaml").is_file()


def _sweep_of(fixed: Sequence[Override], multirun: bool) -> tuple[bool, list[str]]:
    """Whether this is a sweep, and the sweep that the composed config itself (an experiment file) asks for."""
    try:
        hydra = _compose([override for override in fixed if _is_group(override)]).hydra
    except (HydraException, OmegaConfBaseException):
        return multirun, []  # told by _check_job
    asked = [override.value() for override in fixed if override.key_or_group == "hydra.mode"]
    mode = RunMode[str(asked[-1])] if asked and str(asked[-1]) in RunMode.__members__ else hydra.mode
    params = OmegaConf.to_container(hydra.sweeper).get("params") or {}  # type: ignore[union-attr]
    return multirun or mode == RunMode.MULTIRUN, [f"{key}={value}" for key, value in params.items()]


def _is_group(override: Override) -> bool:
    return _is_group_name(str(override.key_or_group))


def _is_choice(override: Override) -> bool:
    return _is_group(override) or str(override.key_or_group).startswith("hydra/")


def _is_group_name(key: str) -> bool:
    return key.isidentifier() and (CONF / key).is_dir()


def _check_job(
    overrides: Sequence[Override], problems: list[str], parts: SharedParts | None = None
) -> ExperimentSettings | None:
    """Settings of one job, or None with its mistakes noted."""
    before = len(problems)
    try:
        try:
            cfg = _assembled(overrides, parts) or _compose(overrides)
        except HydraException:  # it stops at the first unknown key: look at each against the choices alone
            choices = _compose([override for override in overrides if _is_group(override)])
            cfg = _compose([override for override in overrides if _exists(override, choices, problems)])
        settings = parse(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    except ConfigError as error:
        problems.extend(error.problems)
        return None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        problems.append(" ".join(str(error).split()))
        return None
    return settings if len(problems) == before else None


def _assembled(overrides: Sequence[Override], parts: SharedParts | None) -> DictConfig | None:
    """The job from parts that a sweep shares; None where there are none, or something is to be told by Hydra itself."""
    try:
        return None if parts is None else parts.config(overrides)
    except (HydraException, OmegaConfBaseException):
        return None


def _exists(override: Override, cfg: DictConfig, problems: list[str]) -> bool:
    """Whether a value override names a key of the config; "+key=value" may name a new one."""
    key = str(override.key_or_group)
    if _is_group(override) or override.is_add() or key.split(".")[0] == "hydra" or key.startswith("hydra/"):
        return True
    node: object = cfg
    done: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            break
        if part not in node:
            known = [str(name) for name in node if name != "hydra"]
            problems.append(f"{'.'.join([*done, part])} is unknown{closest(part, known)}")
            return False
        node = node._get_node(part)
        done.append(part)
    return True
