"""The Python API, as README shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models.checkpoints import save_random
from transformers import PreTrainedTokenizerFast

import sq
from sq.errors import CheckpointError, ConfigError
from sq.nn.linear import QuantizedLinear


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model with a tokenizer, and a text to calibrate on."""
    from sq.embedded.model_folder import committed_folder

    tokenizer = PreTrainedTokenizerFast.from_pretrained(committed_folder())
    save_random(
        tmp_path / "model", "qwen3", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, head_dim=16
    )
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("def add(first, second):\n    return first + second\n" * 400)
    return tmp_path


def overrides(folder: Path, *more: str) -> list[str]:
    local = [f"calibration.path={folder / 'text.txt'}", "calibration.text=local", "calibration.tokens=512"]
    return [*local, "calibration.window=64", f"paths.cache={folder / 'cache'}", "model.dtype=float32", *more]


def test_quantize_a_folder_and_generate(folder: Path) -> None:
    quantized = sq.quantize(folder / "model", method="singlequant", bits="w4a4", overrides=overrides(folder))
    linears = [module for module in quantized.model.modules() if isinstance(module, QuantizedLinear)]
    assert len(linears) == 3 * 7
    for linear in linears:
        levels = {len(row.unique()) for row in linear.weight}
        assert max(levels) <= 16, "every weight row holds at most 16 values"
    assert set(quantized.metrics) >= {"quantize/seconds", "model/bytes"}
    assert len(quantized.sites) == 3 * 4
    inputs = quantized.tokenizer("def add(", return_tensors="pt")
    out = quantized.model.generate(inputs["input_ids"], max_new_tokens=4, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 4


def test_sixteen_bits_return_the_model_itself(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    quantized = sq.quantize(folder / "model", bits="w16a16", overrides=overrides(folder))
    ids = torch.randint(0, 4096, (2, 15))
    with torch.no_grad():
        torch.testing.assert_close(quantized.model(ids).logits, reference(ids).logits, rtol=1e-3, atol=1e-3)


def test_task_measures_against_full_precision(folder: Path) -> None:
    quantized = sq.quantize(
        folder / "model",
        task="perplexity",
        overrides=overrides(
            folder, "task.perplexity.texts=[local]", f"task.perplexity.path={folder / 'text.txt'}",
            "task.perplexity.window=64", "task.perplexity.count=4", "task.perplexity.untrained=true",
        ),
    )  # fmt: skip
    assert quantized.metrics["kl/local"] > 0


def test_mistakes_are_told_together() -> None:
    with pytest.raises(
        ConfigError, match=r"method=magic; allowed[\s\S]*bits=w5a1: activations '1' is no format; allowed"
    ):
        sq.quantize("tiny", method="magic", bits="w5a1")


def test_model_that_is_not_there() -> None:
    with pytest.raises((ConfigError, CheckpointError), match="no/such/folder"):
        sq.quantize("/no/such/folder")


@pytest.mark.slow
def test_import_is_light_and_names_are_lazy() -> None:
    code = "import sys, sq; print('torch' in sys.modules, sq.quantize.__module__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "sq.api", "True"]
    with pytest.raises(AttributeError, match="it offers Int4Cache, Quantized, push_to_hub, quantize"):
        _ = sq.magic


def test_a_whole_model_cannot_be_had_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contradiction is told before anything is loaded."""
    import sq.runs.execute

    monkeypatch.setattr(sq.runs.execute, "load_model", lambda *_: pytest.fail("the model was loaded first"))
    with pytest.raises(ConfigError, match=r"model\.placement=memory"):
        sq.quantize("tiny", overrides=["model.placement=stream"])


@pytest.mark.parametrize("name", ["it's", "a\\b", "it\\'s", "end\\", "${seed}", "a,b", "{x}", "a b", "x=1", "[1]"])
def test_any_path_is_taken_literally(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError) as caught:
        sq.quantize(tmp_path / name)
    assert f"model.path={tmp_path / name} has no config.json" in str(caught.value)
    assert "cannot be read" not in str(caught.value)
