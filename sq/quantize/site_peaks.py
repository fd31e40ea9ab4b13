"""The largest magnitude at each site on its calibration tokens, which a static second scale is made of."""

from __future__ import annotations

from dataclasses import replace

from sq.models.families import SITES
from sq.models.site_transform import SiteTransform
from sq.quantize.method import LayerPlan, LayerView
from sq.quantize.recipe import Recipe


def with_site_peaks(layer: LayerView, plan: LayerPlan, recipe: Recipe) -> LayerPlan:
    """The plan with max |x| for each site of the layer, x its calibration tokens behind the plan's transforms.

    As it is where the recipe's activations have no static second scale.
    """
    if not recipe.has_static_scale:
        return plan
    peaks = {}
    for site in (site for site in layer.statistics if site in SITES):
        transform = plan.sites.get(site, SiteTransform())
        peaks[site] = float(transform.tokens(layer.statistics[site].tokens, site, layer.dimensions).abs().max())
    return replace(plan, activation_peaks=peaks)
