"""The pipeline: what a quantized layer computes, what calibration sees, and what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.checkpoints import SIZES, save_random
from quantizers import activation_quantizer, rounder, weight_quantizer
from recipes import folded
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sq.data.windows import Windows
from sq.errors import CalibrationError
from sq.evaluate.scores import score_windows
from sq.evaluate.stream import StreamEvaluation
from sq.methods.yardsticks import FullPrecision, RoundToNearest
from sq.models.families import SITES
from sq.models.stream import DecoderStream
from sq.nn.linear import QuantizedLinear
from sq.nn.site_input import SiteInput
from sq.quantize.collect import collect
from sq.quantize.pass_record import peak_over_rms
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.rotation import Kronecker, random_orthogonal

# The default starts with a Hadamard, which some of these sizes do not admit.
ONLINE: dict[str, Any] = {"placement": "online", "order": ("urt",)}


def windows(count: int = 6, length: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (count, length), generator=torch.Generator().manual_seed(seed))


def pipeline_of(folder: Path, method: object, *, bits: int = 4, activations: int = 4, **recipe: object) -> Pipeline:
    stream = DecoderStream(folder, dtype=torch.float32)
    propagate: Any = recipe.pop("propagate", "quantized_weights")
    weights = rounder(str(recipe.pop("name", "rtn")), weight_quantizer(bits), **recipe)
    made = Recipe(weights, activation_quantizer(activations), propagate=propagate)
    return Pipeline(stream, method, made, windows(), batch=4)  # type: ignore[arg-type]


@torch.no_grad()
def test_quantized_linear_is_transform_quantize_matmul_bias() -> None:
    rotation = Kronecker(random_orthogonal(3, 0), random_orthogonal(5, 1))
    quantizer, weight, bias, x = activation_quantizer(4), torch.randn(7, 15), torch.randn(7), torch.randn(2, 6, 15)
    linear = QuantizedLinear(SiteInput(rotation, quantizer, 1), weight, bias)
    expected = quantizer(x @ rotation.matrix(torch.float32)) @ weight.T + bias
    torch.testing.assert_close(linear(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_site_input_is_computed_once_for_its_readers_and_never_stale() -> None:
    calls = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return x.round()

    site = SiteInput(None, Counting(), readers=3)
    x, y = torch.randn(4, 5), torch.randn(4, 5)
    for source in (x, x, x, y, y, y, x, x, y):
        torch.testing.assert_close(site(source), source.round())
    assert len(calls) == 4


@pytest.mark.parametrize("weights", ["rtn", "gptq"])
@torch.no_grad()
def test_rtn_method_equals_quantizing_transformers_weights_directly(weights: str, tmp_path: Path) -> None:
    """At A16 with diagonal-free RTN the result is transformers' own model with its linears' weights rounded."""
    model = save_random(tmp_path, "qwen2")
    pipeline = pipeline_of(tmp_path, RoundToNearest(), activations=16, name=weights, propagate="full_precision")
    pipeline.prepare()
    found = pipeline.stream.assemble(list(pipeline.layers()), pipeline.embeddings_and_head)(windows()).logits
    quantizer = weight_quantizer(4)
    for module in model.model.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(quantizer.quantize(module.weight).dequantize())
    expected = model(windows()).logits
    if weights == "rtn":
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    else:
        assert float((found - expected).abs().max()) > 1e-3, "GPTQ rounds otherwise than RTN"


@torch.no_grad()
def test_gptq_lowers_the_error_of_layer_outputs(tmp_path: Path) -> None:
    model = save_random(tmp_path, "llama")
    reference = model(windows()).logits
    errors = {}
    for name in ("rtn", "gptq"):
        pipeline = pipeline_of(tmp_path, folded(**ONLINE), bits=3, activations=16, name=name)
        pipeline.prepare()
        logits = pipeline.stream.assemble(list(pipeline.layers()), pipeline.embeddings_and_head)(windows()).logits
        errors[name] = float((logits - reference).square().mean())
    assert errors["gptq"] < 0.8 * errors["rtn"], errors


@torch.no_grad()
def test_gptq_hessians_are_those_of_the_transformed_activations(tmp_path: Path) -> None:
    """One layer, full-precision inputs: the first site's Hessian is the same either way, and so are its weights."""
    save_random(tmp_path, "llama", num_hidden_layers=1)
    found = {}
    for way in (False, True):
        pipeline = pipeline_of(tmp_path, folded(**ONLINE), name="gptq", sequential=way, propagate="full_precision")
        pipeline.prepare()
        layer = next(iter(pipeline.layers()))
        found[way] = layer.get_submodule("self_attn.q_proj").weight
    agreement = float((found[True] == found[False]).float().mean())
    assert agreement > 0.97, "codes differ only where float rounding tips one"


@torch.no_grad()
def test_capture_statistics_equal_direct_computation(tmp_path: Path) -> None:
    save_random(tmp_path, "qwen3")
    stream = DecoderStream(tmp_path, dtype=torch.float32)
    layer, hidden = stream.layer(0), stream.embeddings_and_head().embed(windows())
    seen: dict[str, Tensor] = {}
    handle = layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.update(down=inputs[0].clone()))
    expected = stream.forward(0, layer, hidden)
    handle.remove()
    x = seen["down"].flatten(0, 1).double()
    found, outputs = collect(
        stream.family, layer, lambda b: stream.forward(0, layer, b), hidden.split(4), index=0, sites=SITES,
        second_moment=["down"], sample=50,
    )  # fmt: skip
    torch.testing.assert_close(torch.cat(outputs), expected)
    down = found["down"]
    torch.testing.assert_close(down.rms.double(), x.square().mean(0).sqrt(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(down.peak.double(), x.abs().amax(0), rtol=1e-5, atol=1e-7)
    assert down.second_moment is not None
    torch.testing.assert_close(down.second_moment.double(), x.T @ x / len(x), rtol=1e-4, atol=1e-6)
    assert down.count == 120
    torch.testing.assert_close(down.tokens.double(), x[::3], rtol=1e-5, atol=1e-7)  # stride ceil(120 / 50) = 3
    assert found["qkv"].second_moment is None


def test_nan_in_calibration_names_layer_and_site(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1e30
    weights["model.layers.1.mlp.gate_proj.weight"] *= 1e30
    save_file(weights, tmp_path / "model.safetensors")
    pipeline = pipeline_of(tmp_path, folded(**ONLINE))
    pipeline.prepare()
    with pytest.raises(CalibrationError, match=r"layer 1, site 'down'"):
        list(pipeline.layers())


@torch.no_grad()
def test_streamed_scores_equal_those_of_whole_models(tmp_path: Path) -> None:
    reference = save_random(tmp_path, "mistral")
    pipeline = pipeline_of(tmp_path, folded(**ONLINE))
    pipeline.prepare()
    texts = [Windows(windows(5, 16, seed), f"text{seed}", "") for seed in (3, 4)]
    evaluation = StreamEvaluation(pipeline.stream, texts, pipeline.embeddings_and_head, batch=2)
    layers = []
    for index, layer in enumerate(pipeline.layers()):
        evaluation.advance(index, layer)
        layers.append(layer)
    measured = pipeline.stream.assemble(layers, pipeline.embeddings_and_head)
    scores = evaluation.finish()
    for text in texts:
        whole = score_windows(measured(text.ids).logits, reference(text.ids).logits, text.ids)
        np.testing.assert_allclose(scores[text.text].kl, whole.kl, rtol=2e-2)  # a code may tip between batch sizes
        np.testing.assert_allclose(scores[text.text].reference_nll, whole.reference_nll, rtol=1e-5)


def test_full_precision_reports_no_divergence(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    pipeline = pipeline_of(tmp_path, FullPrecision())
    pipeline.prepare()
    evaluation = StreamEvaluation(
        pipeline.stream, [Windows(windows(), "t", "")], pipeline.embeddings_and_head, measured=False
    )
    for index, layer in enumerate(pipeline.layers()):
        evaluation.advance(index, layer)
    assert evaluation.finish()["t"].metrics("t") | {"ppl/t": 0} == {"ppl/t": 0, "kl/t": 0.0, "top1/t": 1.0}
    assert pipeline.record.packed_bytes == pipeline.record.full_bytes


def test_sizes_are_counted_from_the_parts(tmp_path: Path) -> None:
    """4-bit codes, 16-bit scales a row, and 16 bits for all else; counted here from the config alone."""
    model = save_random(tmp_path, "llama")
    pipeline = pipeline_of(tmp_path, RoundToNearest())
    pipeline.prepare()
    list(pipeline.layers())
    linears = [m for m in model.model.modules() if isinstance(m, nn.Linear)]
    quantized = sum(m.weight.numel() for m in linears)
    total = sum(p.numel() for p in model.parameters())
    assert pipeline.record.full_bytes == 2 * total
    scales = sum(m.out_features for m in linears)
    assert pipeline.record.packed_bytes == 2 * (total - quantized) + quantized // 2 + 2 * scales


def test_a_tied_head_counts_once_unless_the_recipe_unties_it(tmp_path: Path) -> None:
    """torch lists a shared parameter once; a rotated residual stream adds vocabulary times hidden 16-bit entries."""
    model = save_random(tmp_path, "llama", tied=True)
    sizes = {}
    for name, method in (("plain", RoundToNearest()), ("folded", folded(order=("orthogonal",)))):
        pipeline = pipeline_of(tmp_path, method)
        pipeline.prepare()
        sizes[name] = pipeline.record.packed_bytes
        list(pipeline.layers())
        assert pipeline.record.full_bytes == 2 * sum(p.numel() for p in model.parameters())
    assert sizes["folded"] - sizes["plain"] == 2 * SIZES["vocab_size"] * SIZES["hidden_size"]


def test_report_describes_every_site(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    pipeline = pipeline_of(tmp_path, folded(**ONLINE))
    pipeline.prepare()
    list(pipeline.layers())
    assert [(entry["layer"], entry["site"]) for entry in pipeline.record.sites] == [
        (layer, site) for layer in range(3) for site in SITES
    ]
    # n (n1 + n2) for 60 = 6 x 10, 72 = 8 x 9 and 84 = 7 x 12
    assert pipeline.record.macs == 3 * (2 * 60 * 16 + 72 * 17 + 84 * 19)


def test_peak_over_rms_of_known_tokens() -> None:
    spike = torch.zeros(3, 16)
    spike[:, 2] = 7.0
    assert peak_over_rms(spike) == pytest.approx(4.0)
    assert peak_over_rms(torch.ones(3, 16)) == pytest.approx(1.0)
