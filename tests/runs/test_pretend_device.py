"""Whole runs on an accelerator, without one: settings, model, calibration, quantization, packed layers, scores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from models.checkpoints import save_random
from pretend_device import PretendDevice
from transformers import PreTrainedTokenizerFast

from sq.config.compose import compose
from sq.embedded.model_folder import committed_folder
from sq.evaluate import reference
from sq.runs.execute import Execution, execute

pytestmark = pytest.mark.slow

LAYERS = 2  # of which Qwen2's second has a sliding window

SMALL = ["model=custom", "model.dtype=float32", "model.window=32", "model.calibration_tokens=256", "tracker=none",
         "model.evaluation_windows=3", "task.perplexity.texts=[pydoc]", "task.perplexity.untrained=true",
         "calibration.text=pydoc", "reference_methods=[]"]  # fmt: skip
QUICK = "weights.clip=1.0"  # the search over 80 candidates is two thirds of a run here; those that count waits do it


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small checkpoints with the tokenizer of the embedded model; heads of 16 have Hadamard matrices for KV4."""
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(committed_folder())
    for family in ("llama", "qwen2", "qwen3"):
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": LAYERS}
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
    words = ("method=singlequant", f"weights={rounder}", "bits=w4a4kv4", QUICK)
    made, _ = on_device(models, family, *words)
    assert_like(made, run(models, family, words, "cpu", packed=False))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_whole_run_with_packed_layers(models: Path, family: str) -> None:
    words = ("method=singlequant", "weights=gptq", "bits=w4a4kv4", "model.placement=memory", QUICK)
    made, _ = on_device(models, family, *words, packed=True)
    assert_like(made, run(models, family, words, "cpu", packed=True))
    assert made.model is not None
    assert {part.device.type for part in [*made.model.parameters(), *made.model.buffers()]} == {"pretend"}
    ids = torch.arange(24).reshape(2, 12)
    with PretendDevice(), torch.no_grad():
        logits = made.model(ids.to("pretend")).logits
        assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("method", ["fp16", "smoothquant", "quarot", "duquant", "singlequant_folded"])
def test_a_whole_run_of_other_methods(models: Path, method: str) -> None:
    words = (f"method={method}", "weights=rtn", "bits=w4a4kv4", QUICK)
    made, _ = on_device(models, "llama", *words)
    expected = run(models, "llama", words, "cpu", packed=False)
    if method == "fp16":
        np.testing.assert_allclose(made.metrics["ppl/pydoc"], expected.metrics["ppl/pydoc"], rtol=1e-4)
    else:
        assert_like(made, expected)


def test_a_run_that_saves_and_one_that_resumes(models: Path, tmp_path: Path) -> None:
    words = ("method=singlequant", "weights=rtn", "bits=w4a4kv4", f"save_to={tmp_path / 'packed'}")
    made, _ = on_device(models, "llama", *words)
    again, _ = on_device(models, "llama", *words)  # every layer comes from the folder
    assert again.metrics["kl/pydoc"] == pytest.approx(made.metrics["kl/pydoc"], rel=1e-3)


@pytest.mark.parametrize(
    ("words", "packed", "a_layer"),
    [
        (("method=quarot", "weights=rtn", "bits=w4a4"), False, 31),
        (("method=singlequant", "weights=gptq", "bits=w4a4kv4"), False, 212),
        (("method=singlequant", "weights=gptq", "bits=w4a4kv4"), True, 220),
    ],
    ids=["quarot-rtn", "singlequant-gptq-kv4", "packed"],
)
def test_waits_of_a_whole_run_do_not_grow(models: Path, words: tuple[str, ...], packed: bool, a_layer: int) -> None:
    """Each is a moment in which a GPU has nothing to do. Beside those of layers, a run has two: the hidden states that
    are kept for the next run, and the scores."""
    _, waits = on_device(models, "llama", *words, packed=packed)
    assert sum(waits.values()) <= LAYERS * a_layer + 2, waits.most_common(12)
