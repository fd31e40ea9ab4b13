"""Apply a method's plan to one decoder layer: fold, transform, and put quantizers in front of its linears."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from sq.formats.activation import ActivationQuantizer
from sq.formats.qtensor import QTensor
from sq.models.families import Family, ModelDimensions
from sq.models.fold import fold_query_key, fold_site
from sq.models.parts import bias_of, weight_of
from sq.models.site_transform import SiteTransform
from sq.nn.attention import AttentionInput
from sq.nn.fuse import fuse
from sq.nn.hooks import replace_linear, set_attention_input
from sq.nn.linear import PackedLinear, QuantizedLinear
from sq.nn.site_input import SiteInput
from sq.quantize.method import LayerPlan
from sq.quantize.recipe import Recipe


def install_plan(
    family: Family, dimensions: ModelDimensions, layer: nn.Module, plan: LayerPlan
) -> dict[str, SiteInput]:
    """Fold what folds, transform the readers' weights and replace each linear by a `QuantizedLinear`, in place.

    Weights and activations stay unrounded. Returns the input module of each site.
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


def pack_weights(family: Family, layer: nn.Module, rounded: Mapping[str, QTensor]) -> None:
    """Exchange the fake weights of an installed layer for their codes, in place, and `fuse` it; transforms go on in
    float32."""
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
    for site, quantizer in site_quantizers(inputs, plan, recipe).items():
        inputs[site].quantizer = quantizer
    if recipe.quantizes_attention:
        keys = plan.keys if recipe.quantizes_scores else None
        set_attention_input(family, layer, AttentionInput(keys, recipe.queries, recipe.keys, recipe.values))


def site_quantizers(sites: Iterable[str], plan: LayerPlan, recipe: Recipe) -> dict[str, ActivationQuantizer | None]:
    """The activation quantizer of each site, with the clip and peak that the plan has for it; None at 16 bits."""
    own, clips = {site: recipe.activations_at(site) for site in sites}, plan.activation_clips
    found = {site: one if one is None or site not in clips else one.with_clip(clips[site]) for site, one in own.items()}
    peaks = plan.activation_peaks
    return {site: one.with_peak(peaks[site]) if one and site in peaks else one for site, one in found.items()}
