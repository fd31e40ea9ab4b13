"""Arguments of methods and rounders: types, names and ranges, for all jobs or for those of one method."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from sq.config.compose import compose, compose_jobs, of_one_method
from sq.config.parse import as_config
from sq.errors import ConfigError
from sq.quantize.rounders import registry

ROOT = Path(__file__).resolve().parents[2]


def problems(*overrides: str, multirun: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose_jobs(overrides, multirun=multirun)
    return caught.value.problems


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("method=smoothquant method.alpha=abc", ["method.alpha=abc", "a number"]),
        ("method=smoothquant method.alpha=2", ["method=smoothquant", "alpha=2", "0 (weights alone) to 1"]),
        ("method=singlequant method.rank=-1", ["method=singlequant", "rank=-1", "at least 0"]),
        ("method=singlequant method.rank=1.5", ["method.rank=1.5", "a whole number"]),
        ("method=singlequant method.balance=2", ["method.balance=2", "true or false"]),
        ("method=singlequant method.order=[art,nope]", ["method.order=nope", "art | urt"]),
        ("method=singlequant method.placement=here", ["method.placement=here", "online"]),
        ("method=singlequant +method.foo=1", ["method.foo is unknown", "known: "]),
        ("method=singlequant +method.rnk=1", ["method.rnk is unknown", "did you mean rank?"]),
        ("method=singlequant method.rnk=1", ["method.rnk is unknown", "did you mean rank?"]),
        ("method=rtn +method.foo=1", ["method.foo is unknown", "nothing to set"]),
        ("method=quarot method.down=spiral", ["method.down=spiral", "hadamard | orthogonal | none"]),
        ("method=quarot method.seed=-1", ["method.seed=-1", "at least 0"]),
        ("method=spinquant method.train_bits=w1a1", ["method=spinquant", "w1a1"]),
        ("method=rtn method._target_=sq.errors.SQError", ["sq.errors.SQError", "not a subclass"]),
        ("method=rtn method._target_=sq.errors.Nothing", ["sq.errors.Nothing", "import path"]),
        ("weights=gptq weights.damping=abc", ["weights.damping=abc", "a number"]),
        ("weights=gptq weights.damping=-1", ["damping=-1", "damping >= 0"]),
        ("weights=gptq weights.block=0", ["block=0", "block >= 1"]),
        ("weights=gptq weights.act_order=1", ["weights.act_order=1", "true or false"]),
        ("weights=gptq +weights.foo=1", ["weights.foo is unknown", "damping"]),
        ("weights=rtn +weights.damping=0.1", ["weights.damping is unknown"]),
        ("weights.name=awq", ["weights.name=awq", "rtn | gptq"]),
    ],
)
def test_each_mistake_says_what_was_got_and_what_is_allowed(overrides: str, words: list[str]) -> None:
    (found,) = problems(*overrides.split())
    for word in words:
        assert word in found


def test_mistakes_of_types_names_and_ranges_are_told_together() -> None:
    found = problems("method=duquant", "method.alpha=x", "+method.foo=1", "method.block=1", "method.rotation_steps=-1")
    assert len(found) == 3
    assert "block=1" in found[-1]
    assert "rotation_steps=-1" in found[-1]


@pytest.mark.parametrize("seed", ["-1", "17592186044416", "1.5", "null"])
def test_seeds_out_of_range(seed: str) -> None:
    found = problems("method=quarot", f"seed={seed}")
    assert [one.split(";")[0] for one in found] == [
        f"{key}={seed}" for key in ("calibration.seed", "seed", "method.seed")
    ]
    assert all("at least 0 and below 17592186044416" in one for one in found)
    assert compose(["method=quarot", "seed=17592186044415"]).seed == 2**44 - 1


def test_the_largest_seed_is_one_that_every_generator_takes() -> None:
    from sq.learn.schedule import windows_of_step
    from sq.rotation.hadamard import random_orthogonal

    seed = 2**44 - 1
    assert len(windows_of_step(10_000, 8, 16, seed)) == 8
    assert random_orthogonal(4, seed + 100_000).shape == (4, 4)


@dataclass(frozen=True)
class Stand:
    """A rounder of another package, beside sq.quantize.rounders."""

    quantizer: object
    strength: float = 0.5
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.strength > 1:
            raise ValueError(f"strength={self.strength} (at most 1)")

    @classmethod
    def obstacle(cls, format: object) -> str | None:
        return "it rounds to integers alone" if getattr(format, "name", "").startswith("nv") else None


def test_a_registered_rounder_brings_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(sys.modules["sq.errors"], "Stand", Stand, raising=False)
    registry.register_rounder("stand", "sq.errors:Stand")
    own = ["method=rtn", "weights.name=stand"]
    settings = compose([*own, "+weights.strength=1", "+weights.names=[a]"])
    assert settings.weights.arguments == {"strength": 1, "names": ["a"]}
    assert as_config(settings)["weights"]["strength"] == 1
    assert "weights.strength=x; allowed: a number" in problems(*own, "+weights.strength=x")
    assert "weights=stand refuses its arguments: strength=2.0 (at most 1)" in problems(*own, "+weights.strength=2")
    (found,) = problems(*own, "bits=wnvfp4a4")
    assert found == "weights=stand does not take the format nvfp4: it rounds to integers alone"


def methods(*overrides: str) -> dict[str, dict[str, object]]:
    return {job.method.name: dict(job.method.arguments) for job in compose_jobs(overrides, multirun=True)}


def test_an_argument_of_one_method_is_ignored_in_jobs_of_others() -> None:
    found = methods("method=rtn,quarot,ablation/art,ablation/folded_rank_16", "method.quarot.cross_head=none",
                    "method.art.art_steps=5", "method.folded_rank_16.rank=4")  # fmt: skip
    assert found["rtn"] == {}
    assert found["quarot"]["cross_head"] == "none"
    assert found["art"]["art_steps"] == 5
    assert found["folded_rank_16"]["rank"] == 4
    assert all("quarot" not in arguments for arguments in found.values())
    assert found["quarot"] == methods("method=quarot", "method.cross_head=none")["quarot"], "one and the same run"


def test_an_argument_of_one_method_may_be_swept() -> None:
    jobs = compose_jobs(["method=quarot", "method.quarot.cross_head=none,orthogonal"], multirun=True)
    assert [job.method.arguments["cross_head"] for job in jobs] == ["none", "orthogonal"]


def test_a_single_run_and_an_experiment_file_take_them_too() -> None:
    assert compose(["method=quarot", "method.quarot.cross_head=none"]).method.arguments["cross_head"] == "none"
    body = {"method": {"name": "quarot", "_target_": "sq.baselines.quarot.QuaRot", "quarot": {"down": "none"},
                       "duquant": {"alpha": 0.1}}}  # fmt: skip
    from omegaconf import OmegaConf

    from sq.config.parse import parse

    config = {**as_config(compose(["method=rtn"])), **body}  # what an experiment file with these sections composes to
    assert parse(OmegaConf.create(config)).method.arguments == {"down": "none"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("method=rtn,duquant method.quarot.cross_head=none", ["method.quarot.cross_head=none", "duquant, rtn"]),
        ("method=rtn,quarot method.quarrot.cross_head=none", ["method.quarrot is unknown", "did you mean quarot?"]),
        ("method=rtn,quarot method.quarot.cros_head=none", ["method.cros_head is unknown", "did you mean cross_head?"]),
        ("method=rtn,quarot method.quarot.cross_head=no", ["method.cross_head=no", "hadamard | orthogonal | none"]),
    ],
)
def test_arguments_for_a_method_that_is_not_there_or_lacks_them(overrides: str, words: list[str]) -> None:
    (found,) = problems(*overrides.split(), multirun=True)
    for word in words:
        assert word in found


def test_only_arguments_of_known_methods_are_spelled_anew() -> None:
    assert of_one_method("method.quarot.cross_head=none") == "++method.quarot.cross_head=none"
    for text in ("method.cross_head=none", "method=quarot", "method.inner.a=1", "-m", "~method.quarot.down"):
        assert of_one_method(text) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]], ids=["basic", "joblib"]
)
def test_the_real_command_runs_them(tmp_path: Path, launcher: list[str]) -> None:
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="extra `launchers`")
    line = ["-m", "method=rtn,quarot,ablation/art", "method.quarot.cross_head=none", "method.art.art_steps=3",
            "tracker=none", "reference_methods=[]", "executor=fake_executor:execute", *launcher]  # fmt: skip
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "fakes")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *line], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    configs = [yaml.safe_load(one.read_text()) for one in tmp_path.glob("runs/*/config.yaml")]
    found = {config["method"]["name"]: config["method"] for config in configs}
    assert found.keys() == {"rtn", "quarot", "art"}
    assert found["rtn"].keys() == {"name", "_target_", "quantizes"}
    assert found["quarot"]["cross_head"] == "none"
    assert (found["art"]["art_steps"], found["art"]["order"]) == (3, ["art"])
    assert "quarot" not in found["quarot"]
    folder = next(tmp_path.glob("runs/tiny-quarot-*"))
    assert "method.quarot.cross_head=none" in (folder / "result.json").read_text(), "the command as it was typed"
