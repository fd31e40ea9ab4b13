"""FlatQuant (Sun et al., arXiv 2410.09426): an affine transform in front of every linear, learned layer by layer.

    x -> (x d) (P1 (x) P2),    W -> (W / d) (P1 (x) P2)^-T,    P = U diag(s) V^T,    W clamped to its learned range

How they are learned, sites, defaults and differences from the released code: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrize

from sq.errors import QuantizationError, TrainingError
from sq.formats.format import Format
from sq.learn.absorb import absorbed
from sq.learn.affine import AffineFactor, AffineKronecker, Scaling
from sq.learn.clips import LearnedClip, LearnedRange, clipped_weight, integers_only
from sq.learn.fit import Group, batches_of, fit
from sq.learn.rounding import RangeGradient, differentiable
from sq.models.families import SITES, ModelDimensions
from sq.models.site_transform import SiteTransform
from sq.nn.attention import AttentionInput
from sq.quantize.method import LayerPlan, LayerView, Method, below_least
from sq.rotation import Transform, diagonal_balance, kronecker_factors

SEEDS = 18  # a layer's: U and V of nine factors
FINAL_RATE = 1e-3  # share of lr that the cosine of every group ends at: flatquant/train_utils.py, eta_min
WEIGHT_DECAY = 1e-2  # torch's default for AdamW, which the released code takes


@dataclass(frozen=True)
class FlatQuant(Method):
    """Learn affine transforms and clips of each layer; ValueError for an option outside its range.

    Args:
        epochs: passes over the calibration windows; 0 keeps what training starts from.
        steps: steps an epoch, on equal shares of the windows; with fewer windows one step on each.
        lr: learning rate of factors and scales.
        clip_lr: learning rate of the clips' logits.
        diagonal: scale channels by d.
        alpha: strength of the d that training starts from, in [0, 1].
        weight_clip: learn the range of each weight row; without, the weight quantizer's own clip is used.
        activation_clip: learn two factors on the range of each site's tokens; without, the run's clip is used.
        seed: of the random rotations.
    """

    name: str = "flatquant"
    epochs: int = 15
    steps: int = 32
    lr: float = 5e-3
    clip_lr: float = 5e-2
    diagonal: bool = True
    alpha: float = 0.3
    weight_clip: bool = True
    activation_clip: bool = True
    seed: int = 0
    reads_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        wrong = below_least(self, {"epochs": 0, "steps": 1})
        wrong += [f"{k}={getattr(self, k)} (above 0)" for k in ("lr", "clip_lr") if not getattr(self, k) > 0]
        wrong += [] if 0 <= self.alpha <= 1 else [f"alpha={self.alpha} (0 to 1)"]
        if wrong:
            raise ValueError(f"out of range: {', '.join(wrong)}")

    def obstacle(self, weights: Format | None, activations: Format | None) -> str | None:
        """Its clips are learned on ranges of integers."""
        return integers_only(weights, activations)

    def export_obstacle(self, dimensions: ModelDimensions | None = None) -> str | None:
        """Each site of each layer has a learned transform of its own."""
        return "its learned transforms are online at every site; take method=singlequant_export"

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """The transforms that training starts from."""
        return FlatLayer(self, layer).plan().sites

    def plan(self, layer: LayerView) -> LayerPlan:
        """Train on the layer's calibration windows; TrainingError if a loss or a scale leaves the range of floats."""
        flat = FlatLayer(self, layer)
        flat.fit()
        try:
            return flat.plan()
        except ValueError as error:  # a transform that cannot be inverted
            raise TrainingError(
                f"{self.name} diverged by step {self.epochs * self.steps} of layer {layer.index} with method.lr="
                f"{self.lr}, method.clip_lr={self.clip_lr}: {error}. Lower the learning rates"
            ) from error


class FlatLayer:
    """What is trained of one layer, and the layer with that in it: transforms of `sites` and `keys`, and clips.

    Attributes:
        ranges: linear -> its range; empty for 16-bit weights.
        clips: site -> factors on its tokens' range; empty for 16-bit activations.
    """

    def __init__(self, method: FlatQuant, view: LayerView) -> None:
        if view.block is None:
            raise QuantizationError(f"layer {view.index} came without a block to train on; FlatQuant needs one")
        self.method, self.block = method, view.block
        block, recipe, dimensions = view.block, view.block.recipe, view.dimensions
        like = block.weight(block.family.linears["qkv"][0])
        seeds = count(method.seed + 1 + SEEDS * view.index)

        def factor(n: int) -> AffineFactor:
            return AffineFactor(n, (next(seeds), next(seeds)), like)

        def site(name: str) -> SiteTransform:
            n1, n2 = factor_pair(dimensions.width(name))
            folded = Scaling(initial_scale(view, name, method.alpha), like) if method.diagonal else None
            return SiteTransform(folded, AffineKronecker(1 if n1 == 1 else factor(n1), factor(n2)))

        linears = recipe.weights is not None or recipe.activations is not None
        inside = [quantizer is not None for quantizer in (recipe.queries, recipe.keys, recipe.values)]
        self.learns = linears or any(inside)
        self.sites: dict[str, SiteTransform] = {}
        everywhere = linears or not any(inside)
        if everywhere:
            self.sites = {name: site(name) for name in SITES if name != "o"}
        if everywhere or inside[-1]:
            heads = AffineKronecker(dimensions.kv_heads, factor(dimensions.head_dim))
            across = AffineKronecker(factor(dimensions.heads), dimensions.head_dim) if everywhere else None
            self.sites["o"] = SiteTransform(heads, across)
        self.keys = AffineKronecker(1, factor(dimensions.head_dim)) if "keys" in view.statistics else None
        ranged = method.weight_clip and recipe.weights is not None
        names = [name for site in SITES for name in block.family.linears[site]]
        self.ranges = {name: LearnedRange(len(block.weight(name)), device=like.device) for name in names if ranged}
        clipped = method.activation_clip and recipe.activations is not None
        self.clips = {site: LearnedClip(device=like.device) for site in SITES if clipped}

    def fit(self) -> None:
        """Lower the error of `outputs` on the full-precision stream."""
        method, block = self.method, self.block
        if not self.learns or not method.epochs:
            return
        transforms = [part for site in self.sites.values() for part in (site.folded, site.online)] + [self.keys]
        clips = [*self.ranges.values(), *self.clips.values()]
        groups = [
            Group("lr", [p for part in transforms if part is not None for p in part.parameters()], method.lr),
            Group("clip_lr", [p for clip in clips for p in clip.parameters()], method.clip_lr),
        ]
        size = -(-sum(len(batch) for batch in block.reference_inputs) // method.steps)
        inputs, targets = batches_of(block.reference_inputs, size), batches_of(block.targets(), size)
        fit(
            [group for group in groups if group.parameters],
            lambda batch: mse_loss(self.outputs(inputs[batch]), targets[batch]),
            batches=len(inputs),
            epochs=method.epochs,
            log=block.log,
            layer=block.index,
            schedule="cosine",
            final_lr=method.lr * FINAL_RATE,
            weight_decay=WEIGHT_DECAY,
            relative=True,
        )

    def outputs(self, hidden: Tensor) -> Tensor:
        """The layer's output (B, S, hidden) with transforms, clips and rounding as they are now."""
        block, recipe = self.block, self.block.recipe
        sites = {site: partial(self._tokens, site) for site in SITES}
        inside = (differentiable(quantizer) for quantizer in (recipe.queries, recipe.keys, recipe.values))
        attention = AttentionInput(self.keys, *inside) if recipe.quantizes_attention else None
        with parametrize.cached(), block.quantized(sites, attention):  # one Cayley solve a factor
            return block.outputs(hidden, self._rounded())

    @torch.no_grad()
    def plan(self) -> LayerPlan:
        """What the pipeline installs, in float64."""
        weights = absorbed(self.block, self.sites) if self.ranges else {}
        sites = {name: SiteTransform(_frozen(site.folded), _frozen(site.online)) for name, site in self.sites.items()}
        return LayerPlan(
            sites=sites,
            keys=_frozen(self.keys),
            weight_ranges={name: learned(weights[f"{name}.weight"]) for name, learned in self.ranges.items()},
            activation_clips={site: clip.factors() for site, clip in self.clips.items()},
        )

    def _tokens(self, site: str, x: Tensor) -> Tensor:
        """A site's features, transformed online and rounded."""
        online = self.sites[site].online if site in self.sites else None
        x = x if online is None else online(x)
        quantizer = self.block.recipe.activations_at(site)
        if quantizer is None:
            return x
        rounded: Tensor = self.clips[site](x, quantizer) if self.clips else RangeGradient(quantizer)(x)
        return rounded

    def _rounded(self) -> dict[str, Tensor]:
        quantizer, found = self.block.recipe.weight_quantizer, absorbed(self.block, self.sites)
        if quantizer is None:
            return found
        for name in (name for names in self.block.family.linears.values() for name in names):
            w = found[f"{name}.weight"]
            found[f"{name}.weight"] = clipped_weight(w, self.ranges[name], quantizer) if self.ranges else quantizer(w)
        return found


def initial_scale(view: LayerView, site: str, alpha: float) -> Tensor:
    """d_j = max|W_j|^(1 - alpha) / max|x_j|^alpha over its geometric mean, (n,) float64; 1 for a dead channel."""
    return 1 / diagonal_balance(view.statistics[site].peak, view.weights[site].abs().amax(0), alpha)


def factor_pair(n: int) -> tuple[int, int]:
    """`kronecker_factors`, and (1, n) for a prime n."""
    try:
        return kronecker_factors(n)
    except ValueError:
        return 1, n


def _frozen(transform: Transform | None) -> Transform | None:
    return transform.frozen() if isinstance(transform, AffineKronecker | Scaling) else None
