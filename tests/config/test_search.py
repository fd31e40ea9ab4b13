"""Searches: which jobs of a distribution are checked, and what a search must name."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sq.config.compose import compose_jobs
from sq.config.search import MANY, trials, values
from sq.errors import ConfigError

SEARCH = ["hydra/sweeper=optuna", "method=rtn", "objective=kl/embedded"]


def of(text: str, *, search: bool = True) -> list[str]:
    (override,) = OverridesParser.create().parse_overrides([text])
    return values(override, search=search)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=interval(0.8,1)", ["a.b=0.8", "a.b=1.0"]),
        ("a.b=interval(2,8)", ["a.b=2.0", "a.b=8.0"]),
        ("a.b=int(interval(2,8))", ["a.b=2", "a.b=8"]),
        ("a.b=tag(log,interval(1e-4,1e-1))", ["a.b=0.0001", "a.b=0.1"]),
        ("a.b=choice(x,y)", ["a.b=x", "a.b=y"]),
        ("a.b=x,y", ["a.b=x", "a.b=y"]),
        ("a.b=range(2,8,2)", ["a.b=2", "a.b=4", "a.b=6", "a.b=8"]),
        ("++method.quarot.seed=choice(1,2)", ["++method.quarot.seed=1", "++method.quarot.seed=2"]),
        ("a.b=7", ["a.b=7"]),
    ],
)
def test_values_of_a_distribution(text: str, expected: list[str]) -> None:
    assert of(text) == expected


def test_a_range_of_a_sweep_has_no_stop() -> None:
    assert of("a=range(2,8,2)", search=False) == ["a=2", "a=4", "a=6"]


def test_few_combinations_are_all_checked_and_of_many_each_value_once() -> None:
    few = trials({"a": ["a=1", "a=2"], "b": ["b=1", "b=2"]})
    assert few == [("a=1", "b=1"), ("a=1", "b=2"), ("a=2", "b=1"), ("a=2", "b=2")]
    many = {name: [f"{name}=1", f"{name}=2"] for name in "abcdefgh"}
    assert 2 ** len(many) > MANY
    jobs = trials(many)
    assert len(jobs) == 1 + len(many)
    assert {value for job in jobs for value in job} == {value for each in many.values() for value in each}
    assert all(len(job) == len(many) for job in jobs)


@pytest.fixture(autouse=True)
def _optuna() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="extra `optuna`")


def mistakes(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose_jobs(overrides, multirun=True)
    return caught.value.problems


def test_distributions_are_accepted_and_their_ends_are_checked() -> None:
    jobs = compose_jobs([*SEARCH, "activations.clip=interval(0.8,1.0)", "bits=choice(w4a4,w3a3)"], multirun=True)
    assert [(job.activations.clip, job.bits.short) for job in jobs] == [
        (0.8, "w4a4"), (0.8, "w3a3"), (1.0, "w4a4"), (1.0, "w3a3"),
    ]  # fmt: skip
    assert {job.objective for job in jobs} == {("kl/embedded",)}
    (told,) = mistakes(*SEARCH, "activations.clip=interval(0.8,1.5)")
    assert told.startswith("activations.clip=1.5; allowed: a number above 0 and at most 1")


def test_the_space_may_stand_in_an_experiment() -> None:
    """Its lists are choices of a search."""
    listed = compose_jobs(["experiment=table_bits"], multirun=True)
    searched = compose_jobs(["experiment=table_bits", *SEARCH[::2]], multirun=True)
    assert {job.bits.label for job in searched} == {job.bits.label for job in listed}


def test_a_sweep_without_a_search_takes_no_interval() -> None:
    (told,) = mistakes("method=rtn", "activations.clip=interval(0.8,1.0)")
    assert "add hydra/sweeper=optuna and objective=<metric>" in told


def test_all_mistakes_are_told_together() -> None:
    told = mistakes("hydra/sweeper=optuna", "activations.clip=interval(0.8,1.5)", "sed=1")
    assert any("objective=kl/embedded" in one for one in told)
    assert any("activations.clip=1.5" in one for one in told)
    assert any("sed is unknown; did you mean seed?" in one for one in told)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["objective=kl/wikitext2"],
            "objective=kl/wikitext2 is not measured by task=perplexity; measured: ppl/embedded",
        ),
        (["objective=acc/mean"], "is not measured by task=perplexity"),
        (["objective=top1/embedded"], "better when it is higher; add hydra.sweeper.direction=maximize"),
        (["objective=[kl/embedded,top1/embedded]"], "hydra.sweeper.direction=[minimize,maximize]"),
        (["objective=[]"], "name it, for example objective=kl/embedded"),
    ],
)
def test_an_objective_that_no_run_has_or_in_the_wrong_direction(overrides: list[str], expected: str) -> None:
    assert any(expected in one for one in mistakes(*SEARCH[:2], *overrides, "activations.clip=interval(0.8,1.0)"))


def test_directions_that_fit_are_accepted() -> None:
    both = ["objective=[kl/embedded,top1/embedded]", "hydra.sweeper.direction=[minimize,maximize]"]
    assert compose_jobs([*SEARCH[:2], *both, "activations.clip=interval(0.8,1.0)"], multirun=True)
    one = ["objective=acc/mean", "task=all", "hydra.sweeper.direction=maximize"]
    assert compose_jobs([*SEARCH[:2], *one, "activations.clip=interval(0.8,1.0)"], multirun=True)


def test_a_plugin_that_is_missing_is_named_with_its_extra() -> None:
    from sq.config.search import plugin_hint

    assert plugin_hint("hydra/sweeper", "optuna") == "; for optuna: pip install -e '.[optuna]'"
    assert plugin_hint("hydra/launcher", "ray") == "; for ray: pip install -e '.[launchers]'"
    assert plugin_hint("method", "optuna") == ""


def test_an_argument_of_one_method_reaches_that_method_alone() -> None:
    jobs = compose_jobs(["method=rtn,quarot", "method.quarot.cross_head=none"], multirun=True)
    assert [job.method.name for job in jobs] == ["rtn", "quarot"]
    assert "cross_head" not in jobs[0].method.arguments
    assert jobs[1].method.arguments["cross_head"] == "none"
    (told,) = mistakes("method=rtn,quarot", "method.cross_head=none")
    assert "cross_head" in told
