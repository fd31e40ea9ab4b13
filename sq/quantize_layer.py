"""Install a method's transforms in one decoder layer and quantize its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sq.linear import QuantizedLinear, SiteInput
from sq.models.families import Family, Geometry
from sq.models.fold import fold_site
from sq.models.parts import bias_of, weight_of
from sq.quant import HessianAccumulator, QuantizedWeight, WeightQuantizer, gptq, rtn
from sq.site import SiteTransform


@dataclass(frozen=True)
class WeightRecipe:
    """How weights are rounded.

    Attributes:
        name: "rtn" or "gptq".
        quantizer: the integer grid and its clip search.
        block, damping, act_order: of GPTQ.
        sequential: GPTQ sees, at each site, activations of the sites before it with their weights already rounded.
        propagate: what the next layer is calibrated on, "full_precision" or "quantized" outputs of this one (weights
            rounded, activations not).
    """

    name: str
    quantizer: WeightQuantizer
    block: int = 128
    damping: float = 0.01
    act_order: bool = False
    sequential: bool = True
    propagate: str = "quantized"


def install_transforms(
    family: Family,
    geometry: Geometry,
    layer: nn.Module,
    transforms: Mapping[str, SiteTransform],
) -> dict[str, SiteInput]:
    """Fold what folds, transform the readers' weights and replace each linear by a `QuantizedLinear`, in place.

    The weights stay unrounded, and activations too until the caller sets `SiteInput.quantizer`.

    Returns:
        Site -> its input module.
    """
    inputs: dict[str, SiteInput] = {}
    for site, names in family.linears.items():
        transform = transforms.get(site, SiteTransform())
        if transform.folded is not None:
            fold_site(family, layer, site, transform.folded, geometry.head_dim)
        inputs[site] = SiteInput(transform.online, None, len(names))
        for name in names:
            weight = weight_of(layer, name)
            weight.copy_(transform.weights(weight, site, geometry))
    for site, names in family.linears.items():
        for name in names:
            owner, _, attribute = name.rpartition(".")
            linear = QuantizedLinear(inputs[site], weight_of(layer, name), bias_of(layer, name))
            setattr(layer.get_submodule(owner), attribute, linear)
    return inputs


def round_weights(
    family: Family,
    layer: nn.Module,
    inputs: Mapping[str, SiteInput],
    recipe: WeightRecipe,
    *,
    index: int,
    moments: Mapping[str, Tensor],
    run: Callable[[], Sequence[Tensor]],
) -> dict[str, QuantizedWeight]:
    """Round the weights of an installed layer, in place.

    Args:
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
            weight = weight_of(layer, name)
            if hessian is None:
                integer = rtn(weight, recipe.quantizer)
            else:
                integer = gptq(
                    weight,
                    hessian,
                    recipe.quantizer,
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


def peak_over_rms(tokens: Tensor) -> float:
    """Median over tokens of max |x| / rms(x): 1 is perfectly flat, sqrt(n) a single spike. tokens (T, n)."""
    rms = tokens.square().mean(-1).sqrt().clamp_min(torch.finfo(tokens.dtype).tiny)
    return float((tokens.abs().amax(-1) / rms).median())
