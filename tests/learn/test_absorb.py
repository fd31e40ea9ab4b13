"""Absorbed parameters against the layer that `install_plan` changes in place, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.checkpoints import FAMILIES, save_random
from torch import Tensor, nn

from sq.learn.absorb import absorbed
from sq.models.families import SITES
from sq.models.site_transform import SiteTransform
from sq.models.stream import DecoderStream
from sq.quantize.apply import install_plan
from sq.quantize.method import LayerPlan
from sq.quantize.recipe import Recipe
from sq.quantize.training_block import TrainingBlock
from sq.quantize.training_log import TrainingLog
from sq.rotation import Diagonal, Kronecker, PerHead


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def block_of(stream: DecoderStream, layer: nn.Module) -> TrainingBlock:
    recipe = Recipe()

    def run(call: object, hidden: Tensor) -> Tensor:
        return stream.forward(0, call, hidden)  # type: ignore[arg-type]

    return TrainingBlock(0, layer, run, stream.family, stream.dimensions, recipe, (), (), TrainingLog(None, "someone"))


@pytest.mark.parametrize(
    "chosen", [SITES, ("o",), ("down",), ("qkv",), ()], ids=lambda sites: "+".join(sites) or "none"
)
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_outputs_are_those_of_the_installed_layer(
    family: str, chosen: tuple[str, ...], tmp_path: Path
) -> None:
    save_random(tmp_path, family)
    stream = DecoderStream(tmp_path, dtype=torch.float64)
    dimensions = stream.dimensions
    sites = {}
    for seed, site in enumerate(chosen):
        n = dimensions.width(site)
        folded = Diagonal(random(n, seed=seed)) if site != "o" else None
        online = Kronecker(n // 2, random(2, 2, seed=seed), orthogonal=False)
        sites[site] = SiteTransform(
            folded or PerHead(random(dimensions.kv_heads, dimensions.head_dim, dimensions.head_dim), False), online
        )
    block = block_of(stream, stream.layer(0))
    hidden = torch.randn(2, 9, dimensions.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    original = stream.forward(0, block.layer, hidden)
    found = absorbed(block, sites)
    with block.quantized({site: t.online for site, t in sites.items() if t.online is not None}):
        outputs = block.outputs(hidden, found)
    torch.testing.assert_close(outputs, original, rtol=1e-9, atol=1e-9)

    installed = stream.layer(0)
    install_plan(stream.family, dimensions, installed, LayerPlan(sites))
    changed = {**dict(block.layer.named_parameters()), **found}
    for name, value in [*installed.named_parameters(), *installed.named_buffers()]:
        if name in changed:
            torch.testing.assert_close(changed[name].detach(), value, rtol=1e-9, atol=1e-9, msg=name)
    assert set(found) <= {name for name, _ in [*installed.named_parameters(), *installed.named_buffers()]}
    torch.testing.assert_close(stream.forward(0, installed, hidden), original, rtol=1e-9, atol=1e-9)
