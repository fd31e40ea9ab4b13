"""Install a method's plan in one decoder layer and quantize it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from sq.formats.weight import QuantizedWeight
from sq.models.families import Family, ModelDimensions
from sq.models.fold import fold_query_key, fold_site
from sq.models.parts import bias_of, weight_of
from sq.models.site_transform import SiteTransform
from sq.nn.attention import AttentionInput
from sq.nn.fuse import fuse
from sq.nn.linear import PackedLinear, QuantizedLinear
from sq.nn.parts import replace_linear
from sq.nn.site_input import SiteInput
from sq.quantize.method import LayerPlan
from sq.quantize.recipe import Recipe, WeightRecipe
from sq.quantize.rounders.gptq import gptq
from sq.quantize.rounders.hessian import HessianAccumulator
from sq.quantize.rounders.rtn import rtn


def install_plan(
    family: Family, dimensions: ModelDimensions, layer: nn.Module, plan: LayerPlan
) -> dict[str, SiteInput]:
    """Fold what folds, transform the readers' weights and replace each linear by a `QuantizedLinear`, in place.

    The weights stay unrounded, and activations too until the caller sets `SiteInput.quantizer`.

    Returns:
        Site -> its input module.
    """
    inputs: dict[str, SiteInput] = {}
    if plan.query_key_scale is not None:
        fold_query_key(family, layer, plan.query_key_scale, dimensions)
    for site, names in family.linears.items():
        transform = plan.sites.get(site, SiteTransform())
        if transform.folded is not None:
            fold_site(family, layer, site, transform.folded, dimensions.head_dim)
        inputs[site] = SiteInput(transform.online, None, len(names))
        for name in names:
            weight = weight_of(layer, name)
            weight.copy_(transform.weights(weight, site, dimensions))
    for site, names in family.linears.items():
        for name in names:
            owns = name == names[0]
            linear = QuantizedLinear(inputs[site], weight_of(layer, name), bias_of(layer, name), owns_inputs=owns)
            replace_linear(layer, name, linear)
    return inputs


@contextmanager
def without_quantizers(family: Family, layer: nn.Module) -> Iterator[None]:
    """Run a quantized layer as it ran before `install_quantizers`: its weights rounded, nothing else."""
    owner = layer.get_submodule(family.attention)
    attention = owner._modules.pop("attention_input", None)
    sites = {module: module.quantizer for module in layer.modules() if isinstance(module, SiteInput)}
    for site in sites:
        site.quantizer = None
    try:
        yield
    finally:
        for site, quantizer in sites.items():
            site.quantizer = quantizer
        if attention is not None:
            owner.attention_input = attention


def pack_weights(family: Family, layer: nn.Module, rounded: Mapping[str, QuantizedWeight]) -> None:
    """Exchange the fake weights of an installed layer for their integers, in place; transforms are held in float32.

    Sites then compute what stands in front of them (sq/nn/fuse.py).
    """
    for module in layer.modules():
        if isinstance(module, (SiteInput, AttentionInput)) and module.transform is not None:
            module.transform.narrow(torch.float32)
    for names in family.linears.values():
        for name in names:
            fake = layer.get_submodule(name)
            assert isinstance(fake, QuantizedLinear)
            packed = PackedLinear(fake.inputs, rounded[name], fake.bias, owns_inputs=name == names[0])
            replace_linear(layer, name, packed)
    fuse(family, layer)


def install_quantizers(
    family: Family, layer: nn.Module, inputs: Mapping[str, SiteInput], plan: LayerPlan, recipe: Recipe
) -> None:
    """Quantize from now on: activations at every site; queries, keys and values inside attention."""
    for site, found in inputs.items():
        found.quantizer = recipe.activations
        if recipe.activations is not None and site in plan.activation_clips:
            found.quantizer = recipe.activations.with_clip(plan.activation_clips[site])
    if recipe.quantizes_attention:
        keys = plan.keys if recipe.quantizes_scores else None
        owner = layer.get_submodule(family.attention)
        owner.attention_input = AttentionInput(keys, recipe.queries, recipe.keys, recipe.values)


def round_weights(
    family: Family,
    layer: nn.Module,
    inputs: Mapping[str, SiteInput],
    recipe: WeightRecipe,
    *,
    index: int,
    moments: Mapping[str, Tensor],
    ranges: Mapping[str, tuple[Tensor, Tensor]],
    run: Callable[[], Sequence[Tensor]],
) -> dict[str, QuantizedWeight]:
    """Round the weights of an installed layer, in place.

    Args:
        ranges: linear -> (low, high) that its weight is clamped to, see `LayerPlan`.
        moments: site -> second moment of the transformed activations, for GPTQ that is not sequential.
        run: forwards all calibration batches through the layer, for sequential GPTQ.

    Returns:
        Linear name -> its integer weight. Empty at 16 bits.
    """
    rounded: dict[str, QuantizedWeight] = {}
    if recipe.quantizer.bits == 16:
        return rounded
    for site, names in family.linears.items():
        hessian = None
        if recipe.name == "gptq":
            hessian = _observed_hessian(inputs[site], run) if recipe.sequential else 2 * moments[site]
        for name in names:
            weight, quantizer = weight_of(layer, name), recipe.quantizer
            if name in ranges:
                low, high = ranges[name]
                weight.copy_(weight.clamp(low.to(weight), high.to(weight)))
                quantizer = replace(quantizer, clip=1.0)
            if hessian is None:
                integer = rtn(weight, quantizer)
            else:
                integer = gptq(
                    weight,
                    hessian,
                    quantizer,
                    block=recipe.block,
                    damping=recipe.damping,
                    act_order=recipe.act_order,
                    name=f"layer {index}, {name}",
                )
            weight.copy_(integer.dequantize(weight.dtype))
            rounded[name] = integer
    return rounded


def _observed_hessian(site: SiteInput, run: Callable[[], Sequence[Tensor]]) -> Tensor:
    accumulator: list[HessianAccumulator] = []

    def observe(x: Tensor) -> None:
        tokens = x.flatten(0, -2)
        if not accumulator:
            accumulator.append(HessianAccumulator(tokens.shape[-1]))
        accumulator[0].update(tokens)

    site.observer = observe
    try:
        run()
    finally:
        site.observer = None
    return accumulator[0].value
