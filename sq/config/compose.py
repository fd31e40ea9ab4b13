"""Compose conf/ from overrides, and check a whole command line with every job of its sweep before anything starts.

Two parts of Hydra 1.3 have no public form and are used all the same: the grammar of overrides, here
(hydra.core.override_parser), and the parser of the command line in run.py (hydra._internal.utils.get_args_parser).
Hydra composes a job again when it starts it: it has no public way to start one whose config is composed already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sq.config.choices import CONF, VARIANTS, content, exists, method_names, method_of_argument, of_one_method, options
from sq.config.parse import parse
from sq.config.search import not_swept, objective_mistakes, plugin_hint, samples, trials, values
from sq.config.sections import own_sections
from sq.config.settings import ExperimentSettings
from sq.errors import ConfigError
from sq.quantize.typed import closest

_MOVED = {
    re.compile(r"cache(\..*)?"): "the group cache is called kv_cache; write kv_cache=<name> or kv_cache.<key>=<value>",
    re.compile(r"method(\.singlequant)?\.clip"): "clips are chosen for every method; write activations.clip=site",
    re.compile(r"bits\..*"): "bits is a label without keys; write for example bits=w5a4 or bits=w4a4kv4",
}


def compose(overrides: Sequence[str] = ()) -> ExperimentSettings:
    """The settings that `python run.py <overrides>` would run with.

    Args:
        overrides: as typed on the command line, for example ["model=tiny", "bits=w4a8"].

    Raises:
        ConfigError: with every mistake, unknown groups, choices and keys among them.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        command = _Command()
        return command.settings([command.readable(overrides)])[0]


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
    with initialize_config_dir(str(CONF), version_base="1.3"):
        command = _Command()
        good = command.readable(overrides)
        hydra = command.hydra([one for one in good if not one.is_sweep_override()])
        if not (multirun or (hydra is not None and hydra.mode == RunMode.MULTIRUN)):
            return command.settings([good])
        params = {} if hydra is None else hydra.sweeper.params or {}
        swept = [*command.readable(f"{key}={value}" for key, value in params.items()), *good]
        search = hydra is not None and samples(hydra)
        if not search:
            command.problems |= {wrong: None for one in swept if (wrong := not_swept(one))}
        found = {one.get_key_element(): values(one, search=search) for one in swept}
        jobs = trials(found) if search else product(*found.values())
        parsed = [command.parser.parse_overrides(list(job)) for job in jobs]
        return command.settings(parsed, search=hydra if search else None)


class _Command:
    """A command line that is being checked; `problems` collects its mistakes."""

    def __init__(self) -> None:
        self._loader = GlobalHydra.instance().config_loader()
        self.parser = OverridesParser.create(config_loader=self._loader)
        self.problems: dict[str, None] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def readable(self, texts: Iterable[str]) -> list[Override]:
        """The overrides that can be read and whose choices exist; the others become problems."""
        good = []
        for text in map(of_one_method, texts):
            try:
                (override,) = self.parser.parse_overrides([text])
                if not override.key_or_group:
                    raise HydraException("no key")
                wrong = list(self._unknown_choices(override))
            except HydraException as error:
                wrong = [f"{text!r} cannot be read ({str(error).splitlines()[0]}); write key=value"]
            self.problems |= dict.fromkeys(wrong)
            good += [] if wrong else [override]
        return good

    def _unknown_choices(self, override: Override) -> Iterator[str]:
        group = str(override.key_or_group)
        of_hydra = sorted(self._loader.get_group_options(group)) if group.startswith("hydra/") else []
        if not (allowed := options(group) if _is_group(override) else of_hydra) or override.is_delete():
            return
        for text in values(override):
            value = self.parser.parse_overrides([text])[0].value()
            for name in value if isinstance(value, list) else [value]:
                if str(name) not in allowed and not exists(group, str(name)):
                    yield f"{group}={name}; allowed: {', '.join(allowed)}{plugin_hint(group, str(name))}"

    def hydra(self, fixed: Sequence[Override]) -> DictConfig | None:
        """Hydra's own settings, in which an experiment file may sweep; None beside a mistake that `settings` names."""
        try:
            found: DictConfig = self._by_hydra([one for one in fixed if _is_choice(one)]).hydra
            return found
        except (HydraException, OmegaConfBaseException):
            return None

    def settings(
        self, jobs: Sequence[Sequence[Override]], *, search: DictConfig | None = None
    ) -> list[ExperimentSettings]:
        """The settings of every job.

        Args:
            search: Hydra's settings where its sweeper reads what a job returns.

        Raises:
            ConfigError: with every mistake found so far.
        """
        found, problems, methods = [], self.problems, set()
        for job in jobs:
            single = [one for one in job if not one.is_sweep_override()]
            lists = [str(one.input_line) for one in job if one.is_sweep_override()]
            words = "lists several values where one is wanted; add -m to run one after the other"
            problems |= {f"{one} {words}": None for one in lists}
            try:
                cfg = self._compose(single)
                methods.add(str(OmegaConf.select(cfg, "method.name")))
                problems |= {wrong: None for one in single if not _is_choice(one) for wrong in _set(cfg, one)}
                found.append(parse(cfg))
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                problems[" ".join(str(error).split())] = None
        if search is not None:
            problems |= dict.fromkeys(objective_mistakes(search, found))
        for text in (str(one.input_line).lstrip("+") for job in jobs for one in job):
            method = method_of_argument(text)
            if method and not {method, method_names()[method]} & methods:
                there = ", ".join(sorted(methods))
                problems[f"{text}: no job of this command has the method {method}; there are {there}"] = None
        if problems:
            raise ConfigError(list(problems))
        return found

    def _compose(self, overrides: Sequence[Override]) -> DictConfig:
        """What the choices among overrides compose to, Hydra's own settings left out; a copy that may be changed.

        Hydra composes once for all jobs that differ in sections of their own alone (sq/config/sections.py).
        """
        choices = [one for one in overrides if _is_choice(one)]
        own = own_sections(choices)
        composed = self._by_hydra([one for one in choices if str(one.key_or_group) not in own])
        cfg = OmegaConf.masked_copy(composed, [str(key) for key in composed if key not in ("hydra", VARIANTS, *own)])
        for group, choice in own.items():
            cfg[group] = content(group, choice)
        return cfg

    def _by_hydra(self, choices: Sequence[Override]) -> DictConfig:
        """What Hydra composes, its own settings included, once for the same choices: not to be changed."""
        key = tuple(str(one.input_line) for one in choices)
        if key not in self._composed:
            self._composed[key] = hydra_compose("config", list(key), return_hydra_config=True)
            OmegaConf.set_struct(self._composed[key], False)
        return self._composed[key]


def _set(cfg: DictConfig, override: Override) -> Iterator[str]:
    """Set, add or delete one value as Hydra does; a mistake leaves the config as it is."""
    key, adds = str(override.key_or_group), override.is_add() or override.is_force_add()
    moved = next((words for pattern, words in _MOVED.items() if pattern.fullmatch(key)), None)
    if moved and not (key.startswith("method.") and OmegaConf.select(cfg, key) is not None):  # a method's own argument
        yield f"{override.input_line}: {moved}"
        return
    path, parent = "", cfg
    for part in key.split("."):
        parent = OmegaConf.select(cfg, path) if path else cfg
        path = f"{path}.{part}".lstrip(".")
        if isinstance(parent, DictConfig) and part not in list(parent) and not adds:
            also = method_names() if path == f"method.{part}" else ()
            yield f"{path} is unknown{closest(part, map(str, parent), also)}"
            return
    try:
        if override.is_delete():
            del parent[part]
        elif override.is_add() and not isinstance(override.value(), dict) and OmegaConf.select(cfg, key) is not None:
            yield f"{override.input_line}: {key} is there already; write it without +"
        else:
            OmegaConf.update(cfg, key, override.value(), merge=True)
    except (OmegaConfBaseException, ValueError) as error:
        yield f"{override.input_line}: {' '.join(str(error).split())}"


def _is_group(override: Override) -> bool:
    key = str(override.key_or_group)
    return key.isidentifier() and (CONF / key).is_dir()


def _is_choice(override: Override) -> bool:
    """Whether Hydra must see an override when it composes: a choice, or a setting of Hydra itself."""
    return _is_group(override) or str(override.key_or_group).startswith(("hydra.", "hydra/"))
