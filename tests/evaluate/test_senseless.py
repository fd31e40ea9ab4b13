"""Numbers that mean nothing are errors, with layer and site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models.checkpoints import SIZES, save_random
from safetensors.torch import load_file, save_file

from sq.data.windows import Windows
from sq.errors import CalibrationError, EvaluationError
from sq.evaluate.scores import refuse_guessing
from sq.evaluate.stream import StreamEvaluation
from sq.models.stream import DecoderStream
from sq.quantize.collect import collect

IDS = torch.randint(0, SIZES["vocab_size"], (2, 12), generator=torch.Generator().manual_seed(0))


def evaluate(folder: Path, change: Callable[[int, torch.nn.Module], None] | None = None) -> StreamEvaluation:
    """Both streams through a model, of which `change` makes the measured one."""
    stream = DecoderStream(folder, dtype=torch.float32)
    text = [Windows(IDS, "t", "")]
    evaluation = StreamEvaluation(stream, text, stream.embeddings_and_head(), measured=change is not None)
    for index in range(stream.count):
        layer = stream.layer(index)
        if change is not None:
            change(index, layer)
        evaluation.advance(index, layer)
    return evaluation


def scale(folder: Path, name: str, factor: float) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = tensors[name] * factor
    save_file(tensors, file, metadata={"format": "pt"})


@torch.no_grad()
@pytest.mark.parametrize(("linear", "site"), [("mlp.up_proj", "'down'"), ("self_attn.v_proj", "'o'")])
def test_layer_and_site_of_what_is_not_finite_are_named(tmp_path: Path, linear: str, site: str) -> None:
    save_random(tmp_path, "llama")

    def overflow(index: int, layer: torch.nn.Module) -> None:
        if index == 1:
            layer.get_submodule(linear).weight.mul_(float("inf"))

    with pytest.raises(EvaluationError, match=rf"quantized model has NaN or inf in layer 1, site {site}"):
        evaluate(tmp_path, overflow)
    scale(tmp_path, "model.layers.2.mlp.up_proj.weight", 1e30)
    scale(tmp_path, "model.layers.2.mlp.down_proj.weight", 1e30)
    with pytest.raises(EvaluationError, match=r"full-precision model has NaN or inf in layer 2"):
        evaluate(tmp_path)


@torch.no_grad()
def test_a_head_that_overflows_is_told(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    scale(tmp_path, "lm_head.weight", 1e38)
    with pytest.raises(EvaluationError, match=r"of text t, window \d, is NaN or inf"):
        evaluate(tmp_path).finish()


@torch.no_grad()
@pytest.mark.parametrize("factor", [1.0, 0.0])
def test_a_model_that_guesses_is_told(tmp_path: Path, factor: float) -> None:
    save_random(tmp_path, "llama")
    scale(tmp_path, "lm_head.weight", factor)
    scores = evaluate(tmp_path).finish()["t"]
    with pytest.raises(EvaluationError, match=r"no better than guessing among its .*untrained=true"):
        refuse_guessing("t", scores, SIZES["vocab_size"])
    refuse_guessing("t", scores, 10**9)


@torch.no_grad()
@pytest.mark.parametrize(("value", "said"), [(1e20, r"activations of 1e\+20, whose squares overflow"),
                                             (float("nan"), "found 1 NaN or inf")])  # fmt: skip
def test_calibration_says_what_it_found(tmp_path: Path, value: float, said: str) -> None:
    save_random(tmp_path, "llama")
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    layer = stream.layer(0)
    hidden = torch.randn(1, 12, SIZES["hidden_size"])

    def forward(batch: torch.Tensor) -> torch.Tensor:
        x = torch.ones_like(batch)
        x[0, 3, 5] = value
        for linear in ("q_proj", "k_proj", "v_proj"):
            layer.get_submodule(f"self_attn.{linear}")(x)
        return batch

    with pytest.raises(CalibrationError, match=rf"{said}.* layer 0, site 'qkv'"):
        collect(stream.family, layer, forward, [hidden], index=0, sites=("qkv",))
