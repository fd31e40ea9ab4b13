"""Learned baselines as whole runs: a training that diverges ends its run and not the sweep, and repeats bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sq.config.compose import compose
from sq.quantize.training_block import TrainingBlock
from sq.runs.execute import execute
from sq.runs.experiment import experiment, run
from sq.runs.results import Result

pytestmark = pytest.mark.slow

SMALL = ["calibration=single_sample", "task.perplexity.count=2", "tracker=none", "reference_methods=[]", "effort=0.1"]
LEARNED = ["omniquant", "flatquant", "spinquant"]


def overrides(folder: Path, *more: str) -> list[str]:
    return [f"paths.cache={folder / 'cache'}", f"paths.results={folder / 'runs'}", *SMALL, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learned")


@pytest.mark.parametrize("method", ["omniquant", "flatquant"])
def test_a_training_that_diverges_fails_its_run_and_the_next_goes_on(
    method: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth layer's quantized outputs become NaN, as a learning rate too high for float16 makes them."""
    outputs = TrainingBlock.outputs

    def poisoned(self: TrainingBlock, hidden: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        found = outputs(self, hidden, parameters)
        return found * torch.nan if self.index == 3 and parameters else found

    monkeypatch.setattr(TrainingBlock, "outputs", poisoned)
    diverging = compose(overrides(folder, f"method={method}", "seed=5"))
    results = [*experiment(diverging), *experiment(compose(overrides(folder, "method=rtn", "seed=5")))]
    assert [result.status for result in results] == ["failed", "finished"]
    assert results[0].error is not None
    assert results[0].error.startswith(f"TrainingError: {method} diverged")
    for told in ("step 0 of layer 3", "lr="):
        assert told in results[0].error
    assert results[0].traceback is not None
    assert (diverging.paths.results / results[0].run_id / "training.jsonl").is_file()


@pytest.fixture(scope="module")
def finished(folder: Path) -> Callable[[str], Result]:
    """The run of a learned method, made once for all tests."""
    return functools.cache(lambda method: run(compose(overrides(folder, f"method={method}"))))


@pytest.mark.parametrize("method", LEARNED)
def test_a_seed_gives_the_same_run_bit_for_bit(method: str, folder: Path, finished: Callable[[str], Result]) -> None:
    first, second = finished(method), execute(compose(overrides(folder, f"method={method}")), None)
    keys = [key for key in first.metrics if key.startswith(("kl/", "ppl/", "top1/"))]
    assert keys
    assert [first.metrics[key] for key in keys] == [second.metrics[key] for key in keys]


def test_what_was_trained_is_kept_in_the_run_directory(folder: Path, finished: Callable[[str], Result]) -> None:
    result = finished("spinquant")
    kept = folder / "runs" / result.run_id
    reloaded = run(compose(overrides(folder, "method=spinquant", f"method.rotations={kept / 'rotations.safetensors'}")))
    assert reloaded.run_id != result.run_id
    assert reloaded.metrics["kl/embedded"] == result.metrics["kl/embedded"]
