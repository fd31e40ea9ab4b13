"""Rounding of a layer: one walk through its sites is a loop over them, and stacked weights are each by itself."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import save_random
from quantizers import activation_quantizer, rounder, weight_quantizer
from torch import Tensor, nn

from sq.formats import clip_search
from sq.formats.catalog import NVFP4_STATIC
from sq.formats.elements import SCHEMES, Scheme
from sq.formats.qtensor import QTensor
from sq.formats.weight import WeightQuantizer
from sq.models.families import SITES
from sq.models.parts import weight_of
from sq.models.site_transform import SiteTransform
from sq.models.stream import DecoderStream
from sq.quantize.apply import install_plan
from sq.quantize.method import LayerPlan
from sq.quantize.round import LayerRounding
from sq.quantize.rounders.gptq import gptq
from sq.rotation import Kronecker, random_orthogonal

# Three query heads share a KV head, biases on q, k and v, and every query head with a KV head of its own.
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "llama, grouped heads": ("llama", {}),
    "qwen2, biases": ("qwen2", {}),
    "llama, a KV head for each query head": (
        "llama",
        {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12},
    ),
}


def rotations(stream: DecoderStream) -> LayerPlan:
    """Rotations in front of every site, so that sites see other activations than those of the original layer."""
    widths = {site: stream.dimensions.width(site) for site in SITES}
    return LayerPlan(
        {
            site: SiteTransform(None, Kronecker(random_orthogonal(n // 2, seed), random_orthogonal(2, seed + 9)))
            for seed, (site, n) in enumerate(widths.items())
        }
    )


class Case:
    """Layer 1 of a random model with a plan installed, and three batches of hidden states of unequal size."""

    def __init__(self, folder: Path, model: str, dtype: torch.dtype = torch.float32, length: int = 13) -> None:
        family, sizes = MODELS[model]
        save_random(folder, family, **sizes)
        self.stream = DecoderStream(folder, dtype=dtype)
        self.layer = self.stream.layer(1)
        self.inputs = install_plan(self.stream.family, self.stream.dimensions, self.layer, rotations(self.stream))
        generator = torch.Generator().manual_seed(3)
        self.hidden = [
            torch.randn(size, length, self.stream.dimensions.hidden, generator=generator).to(dtype)
            for size in (4, 4, 1)
        ]
        self.reference = [x + 0.2 * torch.randn(x.shape, generator=generator).to(dtype) for x in self.hidden]

    def run(self, batches: list[Tensor]) -> list[Tensor]:
        return [self.stream.forward(1, self.layer, batch) for batch in batches]

    def rounding(self, weights: Any, activations: Any = None, **ranges: Any) -> LayerRounding:
        return LayerRounding(self.stream.family, self.layer, self.inputs, weights, 1, ranges, activations)


def assert_same(found: QTensor, expected: QTensor) -> None:
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scale, expected.scale)
    for name in ("zero", "second"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "options"),
    [("gptq", {}), ("gptq", {"act_order": True}), ("gptaq", {"quantized_activations": True}), ("qronos", {})],
    ids=["gptq", "act_order", "gptaq", "qronos"],
)
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_all_windows_at_once_and_batch_by_batch_give_the_same_codes(
    model: str, name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = rounder(name, weight_quantizer(4), **options)
    assert weights is not None
    streams = 2 if weights.reads_reference else 1
    found: dict[float, dict[str, QTensor]] = {}
    for share in (0.25, 0.0):
        monkeypatch.setattr("sq.quantize.round._SHARE", share)
        case = Case(tmp_path, model)
        sizes: list[int] = []

        def run(batches: list[Tensor], case: Case = case, sizes: list[int] = sizes) -> list[Tensor]:
            sizes.extend(len(batch) for batch in batches)
            return case.run(batches)

        work = case.rounding(weights, dict.fromkeys(SITES, activation_quantizer(4)))
        unrounded = case.run(case.reference)
        outputs = work.site_by_site(run, case.hidden, case.reference)
        found[share] = work.rounded
        if streams == 1:
            assert sizes == ([9] if share else [4, 4, 1] * len(SITES))
            assert work.reference_outputs is None
        else:
            assert sizes == ([4, 4, 1, 9] if share else [4, 4, 4, 4, 1, 1] * len(SITES))
            assert work.reference_outputs is not None
            for out, expected in zip(work.reference_outputs, unrounded, strict=True):
                torch.testing.assert_close(out, expected)
        assert (outputs is None) == (share == 0)
        if outputs is not None:  # those of the rounded layer, although its sites were rounded on the way
            for out, expected in zip(outputs, case.run(case.hidden), strict=True):
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert found[0.25].keys() == found[0.0].keys()
    for name, made in found[0.25].items():
        assert_same(made, found[0.0][name])


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_the_walk_is_a_loop_over_sites_that_rounds_each_linear_by_itself(model: str, tmp_path: Path) -> None:
    """Inputs of each linear are seen by hooks of our own, and its Hessian is summed over all tokens in float64."""
    case = Case(tmp_path, model, torch.float64)
    quantizer = weight_quantizer(4)
    expected, layer = {}, copy.deepcopy(case.layer)
    for names in case.stream.family.linears.values():
        seen: list[Tensor] = []
        linears = [layer.get_submodule(name) for name in names]
        inputs = linears[0].inputs
        assert isinstance(inputs, nn.Module)
        handle = inputs.register_forward_hook(lambda module, arguments, out, seen=seen: seen.append(out.flatten(0, 1)))
        for batch in case.hidden:
            case.stream.forward(1, layer, batch)
        handle.remove()
        x = torch.cat(seen[:: len(names)])  # every reader asks for it
        for name in names:
            weight = weight_of(layer, name)
            (expected[name],) = gptq([weight], 2 / len(x) * x.T @ x, quantizer)
            weight.copy_(expected[name].dequantize(weight.dtype))
    work = case.rounding(rounder("gptq", quantizer))
    assert work.site_by_site(case.run, case.hidden) is not None
    assert work.rounded.keys() == expected.keys()
    for name, made in work.rounded.items():
        agreement = float((made.codes == expected[name].codes).float().mean())
        assert agreement > 0.995, f"{name}: {agreement}"  # Hessians differ in float32's last bits
        assert torch.equal(weight_of(case.layer, name), made.dequantize(torch.float64))


@pytest.mark.parametrize("share", [0.25, 0.0], ids=["all windows at once", "batch by batch"])
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_many_tokens_are_spared_the_transforms_with_the_same_result(
    model: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,800 tokens, whose transforms see rows of Hessians and weights alone, beside the same tokens transformed."""
    monkeypatch.setattr("sq.quantize.round._SHARE", share)
    quantizer, made = weight_quantizer(4), []
    for spared in (False, True):
        case = Case(tmp_path, model, torch.float64, length=200)
        transforms = {site: inputs.transform for site, inputs in case.inputs.items()}
        rows: list[int] = []
        for transform in transforms.values():
            assert transform is not None
            transform.register_forward_hook(lambda module, given, out, rows=rows: rows.append(given[0][..., 0].numel()))
        work = case.rounding(rounder("gptq", quantizer))
        if not spared:
            monkeypatch.setattr(LayerRounding, "_rows", lambda self, site: 10**9)
        outputs = work.site_by_site(case.run, case.hidden)
        monkeypatch.undo()
        monkeypatch.setattr("sq.quantize.round._SHARE", share)
        assert (max(rows) < 300) == spared
        assert {site: inputs.transform for site, inputs in case.inputs.items()} == transforms
        for name, found in work.rounded.items():
            assert torch.equal(weight_of(case.layer, name), found.dequantize(torch.float64))
        if outputs is not None:
            for out, expected in zip(outputs, case.run(case.hidden), strict=True):
                torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)
        made.append(work.rounded)
    for name, found in made[1].items():
        torch.testing.assert_close(found.scale, made[0][name].scale)
        agreement = float((found.codes == made[0][name].codes).float().mean())
        assert agreement > 0.995, f"{name}: {agreement}"  # Hessians differ in float32's last bits


@pytest.mark.slow
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [None, 8, 16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_stacked_weights_are_rounded_as_each_alone(scheme: Scheme, group_size: int | None, act_order: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 48, generator=generator) @ torch.randn(48, 48, generator=generator)
    hessian = 2 / 200 * x.T @ x
    weights = [torch.randn(rows, 48, generator=generator) * size for rows, size in ((24, 1.0), (5, 9.0), (7, 0.1))]
    quantizer = weight_quantizer(4, scheme, group_size)
    together = gptq(weights, hessian, quantizer, block=20, act_order=act_order)
    assert [made.shape for made in together] == [tuple(weight.shape) for weight in weights]
    for made, weight in zip(together, weights, strict=True):
        (alone,) = gptq([weight], hessian, quantizer, block=20, act_order=act_order)
        assert torch.equal(made.codes, alone.codes)
        # Groups read their scale from updated weights: a matrix product of other sizes may end in another last bit.
        torch.testing.assert_close(made.scale, alone.scale, rtol=1e-6 if group_size and not act_order else 0, atol=0)
        assert made.zero is None or torch.equal(made.zero, alone.zero)  # type: ignore[arg-type]


@pytest.mark.parametrize("group_size", [None, 6])
@torch.no_grad()
def test_weights_with_a_range_are_clamped_and_need_no_clip_search(
    group_size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of the site are searched as ever."""
    rows: list[int] = []
    search = clip_search.best_clip

    def watched(part: Tensor, *arguments: Any, **options: Any) -> Tensor:
        rows.append(part.numel())
        return search(part, *arguments, **options)

    case = Case(tmp_path, "llama, grouped heads")
    before = {
        name: weight_of(case.layer, name).clone() for names in case.stream.family.linears.values() for name in names
    }
    ranged = [name for name in before if name != "self_attn.v_proj"]
    ranges = {
        name: (0.6 * before[name].amin(1, keepdim=True), 0.7 * before[name].amax(1, keepdim=True)) for name in ranged
    }
    quantizer = weight_quantizer(4, "asymmetric", group_size)
    work = case.rounding(rounder("rtn", quantizer), **ranges)
    monkeypatch.setattr(clip_search, "best_clip", watched)
    work.from_statistics({})
    monkeypatch.undo()
    assert sum(rows) == before["self_attn.v_proj"].numel()
    plain = weight_quantizer(4, "asymmetric", group_size, clip=1.0)
    for name, weight in before.items():
        expected = plain.quantize(weight.clamp(*ranges[name])) if name in ranges else quantizer.quantize(weight)
        assert_same(work.rounded[name], expected)
        assert torch.equal(weight_of(case.layer, name), expected.dequantize())


@torch.no_grad()
def test_a_joint_scale_is_the_same_where_tokens_are_spared_the_transforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of static NVFP4 for k and v, which are rounded behind a clamped q and share its second scale."""
    seconds = []
    for spared in (False, True):
        case = Case(tmp_path, "llama, grouped heads", torch.float64, length=200)
        if not spared:
            monkeypatch.setattr(LayerRounding, "_rows", lambda self, site: 10**9)
        weight = weight_of(case.layer, "self_attn.q_proj").mul_(3)
        name = "self_attn.q_proj"
        ranges = {name: (0.9 * weight.amin(1, keepdim=True), 0.9 * weight.amax(1, keepdim=True))}
        work = case.rounding(rounder("gptq", WeightQuantizer(replace(NVFP4_STATIC, group=12))), **ranges)
        work.site_by_site(case.run, case.hidden)
        monkeypatch.undo()
        second = work.rounded["self_attn.k_proj"].second
        assert second is not None
        seconds.append(second)
    torch.testing.assert_close(seconds[1], seconds[0], rtol=1e-6, atol=0)
