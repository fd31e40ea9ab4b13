"""Compose conf/ from overrides, and check a whole command line with every job of its sweep before anything starts.

Two parts of Hydra 1.3 have no public form and are used all the same: the grammar of overrides, here
(hydra.core.override_parser), and the parser of the command line in run.py (hydra._internal.utils.get_args_parser).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sq.config.choices import CONF, exists, method_names, options
from sq.config.parse import parse
from sq.config.settings import ExperimentSettings
from sq.errors import ConfigError
from sq.quantize.typed import closest

_OF_ONE_METHOD = re.compile(r"method\.([^.=]+)\.[^=]+=.*", re.DOTALL)
_MOVED = {
    re.compile(r"cache(\..*)?"): "the group cache is called kv_cache; write kv_cache=<name> or kv_cache.<key>=<value>",
    re.compile(r"bits\..*"): "bits is a label without keys; write for example bits=w5a4 or bits=w4a4kv4",
}


def compose(overrides: Sequence[str] = ()) -> ExperimentSettings:
    """The settings that `python run.py <overrides>` would run with.

    Args:
        overrides: as typed on the command line, for example ["model=tiny", "bits=w4a8"].

    Raises:
        ConfigError: with every mistake, unknown groups, choices and keys among them.
    """
    with _command() as command:
        return command.settings([command.readable(overrides, "lists several values where one is wanted")])[0]


def check(overrides: Sequence[str], *, multirun: bool = False) -> int:
    """Check a command line; return the number of jobs that it starts. Arguments and errors: see `compose_jobs`."""
    return len(compose_jobs(overrides, multirun=multirun))


def compose_jobs(overrides: Sequence[str], *, multirun: bool = False) -> list[ExperimentSettings]:
    """The settings of every job that a command line starts, in the order they would run.

    Args:
        overrides: as typed, sweeps such as "method=rtn,singlequant" included.
        multirun: whether -m was given; an experiment file may say so too.

    Raises:
        ConfigError: with every mistake of every job, each once.
    """
    with _command() as command:
        good = command.readable(overrides)
        sweeps, params = command.sweep([one for one in good if not one.is_sweep_override()])
        if not (multirun or sweeps):
            return command.settings(
                [command.readable(overrides, "lists several values; add -m to run one after the other")]
            )
        values = {one.get_key_element(): list(_values(one)) for one in [*command.readable(params), *good]}
        return command.settings([command.parser.parse_overrides(list(job)) for job in product(*values.values())])


def of_one_method(override: str) -> str:
    """An argument for one method of a sweep (method.quarot.cross_head=none) as Hydra takes it, with ++ in front.

    It becomes a section of the method's section, whichever method that is; `sq.config.parse` takes it from there.
    """
    match = _OF_ONE_METHOD.fullmatch(override)
    return f"++{override}" if match and match[1] in method_names() else override


@contextmanager
def _command() -> Iterator[_Command]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield _Command(GlobalHydra.instance().config_loader())


def _values(override: Override) -> Iterator[str]:
    """An override for each value of a sweep."""
    if not override.is_sweep_override():
        yield str(override.input_line)
    else:
        yield from (f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator())


class _Command:
    """A command line that is being checked; `problems` collects its mistakes."""

    def __init__(self, loader: ConfigLoader) -> None:
        self.problems: dict[str, None] = {}
        self.parser, self._loader = OverridesParser.create(config_loader=loader), loader
        self._composed: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any]]] = {}

    def readable(self, texts: Iterable[str], refusal: str = "") -> list[Override]:
        """The overrides that can be read and whose choices exist; the others become problems.

        Args:
            refusal: what is said of a sweep, where none is wanted.
        """
        good = []
        for text in map(of_one_method, texts):
            try:
                (override,) = self.parser.parse_overrides([text])
                if not override.key_or_group:
                    raise HydraException("no key")
                unknown = list(self._unknown_choices(override))
            except HydraException as error:
                unknown = [f"{text!r} cannot be read ({str(error).splitlines()[0]}); write key=value"]
            if not unknown and refusal and override.is_sweep_override():
                unknown = [f"{text} {refusal}"]
            self.problems |= dict.fromkeys(unknown)
            good += [] if unknown else [override]
        return good

    def _unknown_choices(self, override: Override) -> Iterator[str]:
        group = str(override.key_or_group)
        of_hydra = sorted(self._loader.get_group_options(group)) if group.startswith("hydra/") else []
        if not (allowed := options(group) if _is_group(override) else of_hydra) or override.is_delete():
            return
        for text in _values(override):
            value = self.parser.parse_overrides([text])[0].value()
            for name in value if isinstance(value, list) else [value]:
                if str(name) not in allowed and not exists(group, str(name)):
                    yield f"{group}={name}; allowed: {', '.join(allowed)}"

    def sweep(self, fixed: Sequence[Override]) -> tuple[bool, list[str]]:
        """Whether the config itself (an experiment file) sweeps, and over what."""
        try:
            hydra = self._compose([one for one in fixed if _is_group(one)])[0].hydra
        except (HydraException, OmegaConfBaseException):
            return False, []  # `settings` names the mistake
        modes = [str(one.value()) for one in fixed if one.key_or_group == "hydra.mode"]
        mode = RunMode[modes[-1]] if modes and modes[-1] in RunMode.__members__ else hydra.mode
        params = OmegaConf.to_container(hydra.sweeper).get("params") or {}  # type: ignore[union-attr]
        return mode == RunMode.MULTIRUN, [f"{key}={value}" for key, value in params.items()]

    def settings(self, jobs: Sequence[Sequence[Override]]) -> list[ExperimentSettings]:
        """The settings of every job.

        Raises:
            ConfigError: with every mistake found so far.
        """
        shared = set.intersection(*({str(one.input_line) for one in job} for job in jobs))
        found, methods, names = [], set(), method_names()
        for job in jobs:
            try:
                cfg = self._choices([one for one in job if _is_choice(one)], shared)
                methods.add(str(OmegaConf.select(cfg, "method.name")))
                for one in job:
                    if not _is_choice(one):
                        self._set(cfg, one)
                found.append(parse(cfg))
            except ConfigError as error:
                self.problems |= dict.fromkeys(error.problems)
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                self.problems[" ".join(str(error).split())] = None
        for text in (str(one.input_line).lstrip("+") for job in jobs for one in job):
            match = _OF_ONE_METHOD.fullmatch(text)
            if match and match[1] in names and not {match[1], names[match[1]]} & methods:
                there = ", ".join(sorted(methods))
                self.problems[f"{text}: no job of this command has the method {match[1]}; there are {there}"] = None
        if self.problems:
            raise ConfigError(list(self.problems))
        return found

    def _choices(self, choices: Sequence[Override], shared: set[str]) -> DictConfig:
        """The config of a job's choices, without values and without its hydra section.

        Hydra takes 0.15 s to compose one config. A sweep of 72 jobs over 17 choices composes each of them once, beside
        what all jobs share, and takes its section from there, unless the choice reaches into other sections too.
        """
        base = [one for one in choices if one.input_line in shared]
        whole, plain = self._compose(base)
        cfg = copy.deepcopy(whole)
        for one in (one for one in choices if one not in base):
            (part, content), group = self._compose([*base, one]), str(one.key_or_group)
            alone = _is_group(one) and one.package is None and not (one.is_add() or one.is_delete())
            others = (content.keys() | plain.keys()) - {group, "hydra"}
            if not alone or any(content.get(key) != plain.get(key) for key in others):
                cfg = copy.deepcopy(self._compose(choices)[0])
                break
            cfg[group] = part[group]
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        OmegaConf.set_struct(cfg, True)
        return cfg

    def _compose(self, overrides: Sequence[Override]) -> tuple[DictConfig, dict[str, Any]]:
        """What Hydra composes, once for the same overrides, and the same as plain values."""
        texts = tuple(str(one.input_line) for one in overrides)
        if texts not in self._composed:
            cfg = hydra_compose("config", list(texts), return_hydra_config=True)
            self._composed[texts] = cfg, OmegaConf.to_container(cfg)  # type: ignore[assignment]
        return self._composed[texts]

    def _set(self, cfg: DictConfig, override: Override) -> None:
        """Set, add or delete one value as Hydra does; a key that does not exist becomes a problem."""
        key, adds = str(override.key_or_group), override.is_add() or override.is_force_add()
        if moved := next((words for pattern, words in _MOVED.items() if pattern.fullmatch(key)), None):
            self.problems[f"{override.input_line}: {moved}"] = None
            return
        path, parent = "", cfg
        for part in key.split("."):
            parent = OmegaConf.select(cfg, path) if path else cfg
            if isinstance(parent, DictConfig) and part not in list(parent) and not adds:
                names = method_names() if path == "method" else {}
                self.problems[
                    f"{path}.{part}".lstrip(".") + " is unknown" + closest(part, [*map(str, parent), *names])
                ] = None
                return
            path = f"{path}.{part}".lstrip(".")
        if override.is_delete():
            with open_dict(parent):
                del parent[part]
        elif override.is_add() and not isinstance(override.value(), dict) and OmegaConf.select(cfg, key) is not None:
            self.problems[f"{override.input_line}: {key} is there already; write it without +"] = None
        else:
            OmegaConf.update(cfg, key, override.value(), merge=True, force_add=adds)


def _is_group(override: Override) -> bool:
    key = str(override.key_or_group)
    return key.isidentifier() and (CONF / key).is_dir()


def _is_choice(override: Override) -> bool:
    """Whether Hydra must see an override when it composes: a choice, or a setting of Hydra itself."""
    return _is_group(override) or str(override.key_or_group).startswith(("hydra.", "hydra/"))
