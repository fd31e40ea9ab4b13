"""Sections that are put together without Hydra are those that Hydra composes, and Hydra composes a sweep once."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from sq.config import compose as module
from sq.config.choices import _VARIANTS, CONF, VARIANTS, content, is_chain, options
from sq.config.compose import compose_jobs
from sq.config.sections import _groups, own_sections

pytestmark = pytest.mark.slow


def of_hydra(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("config", list(overrides))


def plain(section: Any) -> Any:
    return OmegaConf.to_container(section, resolve=False)


def test_every_choice_is_the_section_that_hydra_composes() -> None:
    choices = {group: options(group) for group in _groups()}
    choices["method"] += list(_VARIANTS)
    assert all(is_chain(group, choice) for group, names in choices.items() for choice in names)
    for place in range(max(map(len, choices.values()))):
        chosen = {group: names[place % len(names)] for group, names in choices.items()}
        composed = of_hydra(*(f"{group}={choice}" for group, choice in chosen.items()))
        for group, choice in chosen.items():
            assert plain(composed[group]) == plain(content(group, choice)), f"{group}={choice}"


@pytest.mark.parametrize(
    "columns",
    [
        [["experiment=table_clips"], ["method=rtn", "method=ablation/art"], ["weights=rtn", "weights=gptq"]],
        [["experiment=best_quantizers"], ["weights=rtn", "activations=asymmetric", "task=all", "weights=gptq"]],
        [["experiment=figure_convergence"], ["method=quarot", "calibration=pydoc", "model=smollm2"]],
        [["published=quarot", "published=spinquant"], ["weights=gptq", "method=duquant", "task=zeroshot"]],
        [["export=compressed-tensors"], ["method=rtn", "activations=midrise", "kv_cache=symmetric"]],
        [["experiment=comparison"], ["published=null", "published=duquant", "tracker=mlflow"]],
        [["~tracker", "+method=rtn", "published=nothing"], ["weights=gptq"]],
    ],
    ids=lambda columns: columns[0][0],
)  # fmt: skip
def test_a_job_is_what_hydra_composes(columns: list[list[str]]) -> None:
    """Files that speak of the whole config win over a choice on the command line, whichever group they reach into."""
    for words in product(*columns):
        try:
            composed = plain(of_hydra(*words))
        except Exception as error:
            with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(type(error)):
                _composed(words)
            continue
        composed.pop(VARIANTS, None)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            assert plain(_composed(words)) == composed, words


def _composed(words: tuple[str, ...]) -> DictConfig:
    command = module._Command()
    return command._compose(command.parser.parse_overrides(list(words)))


@pytest.mark.parametrize(
    ("words", "own"),
    [
        ("method=rtn weights=gptq", {"method": "rtn", "weights": "gptq"}),
        ("method=rtn method=quarot", {"method": "quarot"}),
        ("experiment=table_perplexity method=rtn", {"method": "rtn"}),
        ("experiment=best_quantizers weights=rtn kv_cache=symmetric", {"kv_cache": "symmetric"}),  # it sets their keys
        ("experiment=comparison task=none published=quarot weights=gptq", {"task": "none"}),
        ("hydra.searchpath=[/files/of/somebody] method=rtn", {}),
        ("+method=rtn ~tracker method@model=rtn model=nowhere bits=w4a8", {}),
    ],
)
def test_only_what_nothing_else_speaks_of_is_a_section_of_its_own(words: str, own: dict[str, str]) -> None:
    parsed = OverridesParser.create().parse_overrides(words.split())
    assert own_sections(parsed) == own


@pytest.mark.parametrize(
    ("experiment", "compositions"),
    [("table_ablation", 1), ("comparison", 1), ("table_clips", 1), ("figure_convergence", 1), ("table_recipes", 13)],
)
def test_hydra_composes_an_experiment_once(experiment: str, compositions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for jobs whose files speak of several groups: six published recipes, with two rounders each."""
    calls = []

    def counted(*given: Any, **more: Any) -> DictConfig:
        calls.append(given)
        return hydra_compose(*given, **more)

    monkeypatch.setattr(module, "hydra_compose", counted)
    compose_jobs([f"experiment={experiment}"])
    assert len(calls) == compositions
