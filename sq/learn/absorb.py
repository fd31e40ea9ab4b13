"""A layer's parameters with transforms absorbed, differentiable: what `install_plan` does to a layer in place."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sq.models.site_transform import SiteTransform
from sq.quantize.training_block import TrainingBlock


def absorbed(block: TrainingBlock, sites: Mapping[str, SiteTransform]) -> dict[str, Tensor]:
    """Gains, weights and biases by full name, for `TrainingBlock.outputs` with the online transforms at their sites.

    Readers get W T^-T, of the folded and of the online part; norms, and rows and bias of producers, the folded part.
    Weights of all linears are there, in full precision; of gains and biases only those that change.
    """
    family = block.family
    found: dict[str, Tensor] = {}
    for site, names in family.linears.items():
        transform = sites.get(site, SiteTransform())
        for name in names:
            found[f"{name}.weight"] = transform.weights(block.weight(name), site, block.dimensions)
    for site, transform in sites.items():
        if transform.folded is None:
            continue
        if site in family.norms:
            found[f"{family.norms[site]}.weight"] = transform.folded(block.weight(family.norms[site]))
            continue
        producer = family.producers[site]
        found[f"{producer}.weight"] = transform.folded(found[f"{producer}.weight"].T).T
        bias = block.bias(producer)
        if bias is not None:
            found[f"{producer}.bias"] = transform.folded(bias)
    return found
