"""Whole runs on an accelerator, without one: settings, model, calibration, quantization, packed layers, scores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from models.checkpoints import SIZES, save_random
from pretend_device import PretendDevice
from transformers import PreTrainedTokenizerFast

from sq.config.compose import compose
from sq.embedded.model_folder import committed_folder
from sq.evaluate import reference
from sq.runs.execute import Execution, execute

pytestmark = pytest.mark.slow

SMALL = ["model=custom", "model.dtype=float32", "model.window=32", "model.calibration_tokens=256", "tracker=none",
         "model.evaluation_windows=3", "task.perplexity.texts=[pydoc]", "task.perplexity.untrained=true",
         "calibration.text=pydoc", "reference_methods=[]"]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small checkpoints with the tokenizer of the embedded model; heads of 16 have Hadamard matrices for KV4."""
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(committed_folder())
    for family in ("llama", "qwen2", "qwen3"):
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 96, "intermediate_size": 128}
        save_random(folder / family, family, **sizes, **({} if family == "qwen2" else {"head_dim": 16}))
        tokenizer.save_pretrained(folder / family)
    return folder


def run(models: Path, family: str, words: tuple[str, ...], device: str, *, packed: bool) -> Execution:
    reference._kept.clear()
    settings = compose([*SMALL, f"model.path={models / family}", f"paths.cache={models / 'cache'}", *words])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sq.runs.build.pick_device", lambda name: torch.device(device))
        return execute(settings, None, packed=packed)


def on_device(models: Path, family: str, *words: str, packed: bool = False) -> tuple[Execution, Counter[str]]:
    with PretendDevice() as device:
        made = run(models, family, words, "pretend", packed=packed)
        return made, Counter(device.waits)


def assert_like(found: Execution, expected: Execution) -> None:
    """So small a model answers to the last digit of a sum with another code, and few tokens average little."""
    assert found.metrics["kl/pydoc"] > 0
    for name in ("kl/pydoc", "ppl/pydoc"):
        assert 0.5 * expected.metrics[name] < found.metrics[name] < 2 * expected.metrics[name], name
    np.testing.assert_allclose(found.arrays["reference_nll/pydoc"], expected.arrays["reference_nll/pydoc"], rtol=1e-4)


@pytest.mark.parametrize("rounder", ["rtn", "gptq", "gptaq"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_whole_run(models: Path, family: str, rounder: str) -> None:
    words = ("method=singlequant", f"weights={rounder}", "bits=w4a4kv4")
    made, _ = on_device(models, family, *words)
    assert_like(made, run(models, family, words, "cpu", packed=False))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_whole_run_with_packed_layers(models: Path, family: str) -> None:
    words = ("method=singlequant", "weights=gptq", "bits=w4a4kv4", "model.placement=memory")
    made, _ = on_device(models, family, *words, packed=True)
    assert_like(made, run(models, family, words, "cpu", packed=True))
    assert made.model is not None
    assert {part.device.type for part in made.model.parameters()} == {"pretend"}
