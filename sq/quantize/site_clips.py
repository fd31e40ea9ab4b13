"""One activation clip for each site, chosen on its calibration tokens: activations.clip=site, for every method.

A clip p in (0, 1] shrinks the range of every token, and so its step, at the price of what is cut off. The clip of a
site is the candidate p of least

    mean over tokens x of |q_p(x) - x|^2 / |x|^2,

where q_p rounds in the run's format with clip p and x is what the site's linears read: calibration tokens behind the
method's transforms. Each token counts by its own size, as it does where its scale is its own. At run time the clip is a
constant, so that it costs nothing, where a search for each token tries every candidate again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sq.formats.activation import ActivationQuantizer, shared_clip
from sq.models.families import SITES
from sq.models.site_transform import SiteTransform
from sq.quantize.apply import site_quantizers
from sq.quantize.method import LayerPlan, LayerView
from sq.quantize.recipe import Recipe

TOKENS = 1024  # of a site, evenly spaced


def with_site_clips(layer: LayerView, plan: LayerPlan, recipe: Recipe) -> LayerPlan:
    """The plan with a clip for each site of the layer; those that the plan holds already stay.

    A method that learns clips trained everything else against them, so its own ones win.

    Args:
        layer: its statistics are tokens in front of the plan's transforms.
        recipe: has the quantizer of each site's activations, whose own clip does not matter; none at 16 bits.
    """
    chosen: Mapping[str, float] = {
        site: site_clip(layer, plan, site, quantizer)
        for site in layer.statistics
        if site in SITES
        and site not in plan.activation_clips
        and (quantizer := site_quantizers([site], plan, recipe)[site])
    }
    return replace(plan, activation_clips={**chosen, **plan.activation_clips})


def site_clip(layer: LayerView, plan: LayerPlan, site: str, quantizer: ActivationQuantizer) -> float:
    """The clip of one site, a candidate of the quantizer."""
    tokens = layer.statistics[site].tokens
    transform = plan.sites.get(site, SiteTransform())
    return shared_clip(transform.tokens(tokens[:: -(-len(tokens) // TOKENS)], site, layer.dimensions), quantizer)
