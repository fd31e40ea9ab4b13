"""OmniQuant (Shao et al., arXiv 2308.13137): learned scales between activations and weights, learned ranges of weights.

    LET: x_j / s_j, W_j s_j,  q_i / t_i, k_i t_i        LWC: w clamped to [sigmoid(l) min(w), sigmoid(u) max(w)]

How they are trained, sites, defaults and differences from the released code: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sq.errors import QuantizationError
from sq.formats.format import Format
from sq.formats.grid import grid_from_range
from sq.learn.clips import LearnedRange, fake_weight, integers_only
from sq.learn.fit import Group, batches_of, fit
from sq.learn.rounding import RangeGradient, differentiable, round_on
from sq.models.families import SITES
from sq.models.site_transform import SiteTransform, from_heads, over_heads
from sq.nn.attention import AttentionInput
from sq.quantize.method import LayerPlan, LayerView, Method, below_least
from sq.quantize.training_block import TrainingBlock
from sq.rotation import Diagonal

LEAST_SCALE = 1e-2  # models/transformation.py of the released code, truncate_number
KEYS = "keys"  # beside the sites, the name of t


@dataclass(frozen=True)
class OmniQuant(Method):
    """Learn LET and LWC of each layer; ValueError for an option outside its range, or neither LET nor LWC.

    Args:
        let: learn scales.
        lwc: learn ranges of the weights; at 16 bits there are none.
        alpha: strength of the scales that training starts from, in [0, 1].
        epochs: passes over the calibration windows; 0 keeps what training starts from.
        let_lr, lwc_lr: learning rates of scales and of logits.
        batch: windows a step.
        aug_loss: add the error to the full-precision layer fed by the rounded ones.
    """

    name: str = "omniquant"
    let: bool = True
    lwc: bool = True
    alpha: float = 0.5
    epochs: int = 20
    let_lr: float = 5e-3
    lwc_lr: float = 1e-2
    batch: int = 1
    aug_loss: bool = False
    propagates: ClassVar[str | None] = "quantized"
    reads_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        wrong = [] if 0 <= self.alpha <= 1 else [f"alpha={self.alpha} (0 to 1)"]
        wrong += below_least(self, {"epochs": 0, "batch": 1})
        wrong += [f"{k}={getattr(self, k)} (above 0)" for k in ("let_lr", "lwc_lr") if not getattr(self, k) > 0]
        wrong += [] if self.let or self.lwc else [f"let={self.let} (true where lwc is false)"]
        if wrong:
            raise ValueError(f"out of range: {', '.join(wrong)}")

    def obstacle(self, weights: Format | None, activations: Format | None) -> str | None:
        """Its ranges are those of integers."""
        return integers_only(weights, activations)

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """diag(1/s) that training starts from."""
        return _folded(initial_scales(layer, self.alpha)) if self.let else {}

    def plan(self, layer: LayerView) -> LayerPlan:
        """Train on the layer's calibration windows; TrainingError for a loss of NaN or inf."""
        block = layer.block
        if block is None:
            raise QuantizationError(f"layer {layer.index} came without a block to train on; OmniQuant needs one")
        learned = LearnedLayer(block, initial_scales(layer, self.alpha) if self.let else {}, lwc=self.lwc)
        if not (learned.scales or learned.ranges):
            raise QuantizationError(
                "16-bit weights have no ranges to learn; set method.let=true, or fewer bits, for example bits=w4a4"
            )
        self._train(learned, block)
        return learned.plan()

    def _train(self, learned: LearnedLayer, block: TrainingBlock) -> None:
        if not self.epochs:
            return
        inputs, targets = batches_of(block.inputs, self.batch), [batches_of(block.targets(), self.batch)]
        if self.aug_loss:
            with torch.no_grad():
                targets.append([block.outputs(hidden) for hidden in inputs])

        def loss(batch: int) -> Tensor:
            learned.truncate_scales()
            out = block.outputs(inputs[batch], learned.rounded())
            return torch.stack([mse_loss(out, target[batch]) for target in targets]).sum()

        logits = [logit for found in learned.ranges.values() for logit in found.parameters()]
        groups = [Group("let_lr", list(learned.scales.values()), self.let_lr), Group("lwc_lr", logits, self.lwc_lr)]
        recipe = block.recipe
        quantizers = {site: recipe.activations_at(site) for site in SITES}
        sites = {site: RangeGradient(found) for site, found in quantizers.items() if found is not None}
        inside = AttentionInput(None, *map(differentiable, (recipe.queries, recipe.keys, recipe.values)))
        with block.quantized(sites, inside if recipe.quantizes_attention else None):
            fit(groups, loss, batches=len(inputs), epochs=self.epochs, log=block.log, layer=block.index)


class LearnedLayer:
    """What is learned of one layer, and the layer's weights with that in them.

    Attributes:
        scales: site -> s, (n,), at o (kv_heads * head_dim,); KEYS -> t, (kv_heads or 1, head_dim / 2), where it counts.
            They start from `initial`, which is empty without LET.
        ranges: linear -> its logits; empty at 16 bits or without LWC.
    """

    def __init__(self, block: TrainingBlock, initial: Mapping[str, Tensor], *, lwc: bool) -> None:
        self.block, self.quantizer = block, block.recipe.weight_quantizer
        names = [name for site in SITES for name in block.family.linears[site]]
        like = block.weight(names[0])
        self.scales = {site: nn.Parameter(s.to(like)) for site, s in initial.items()}
        if initial and block.recipe.quantizes_scores:
            heads = 1 if block.family.head_norms else block.dimensions.kv_heads
            self.scales[KEYS] = nn.Parameter(like.new_ones(heads, block.dimensions.head_dim // 2))
        ranged = names if lwc and self.quantizer is not None else []
        self.ranges = {name: LearnedRange(len(block.weight(name)), device=like.device) for name in ranged}

    def transformed(self) -> dict[str, Tensor]:
        """Gains, weights and biases with s and t in them, by full name; differentiable, not rounded."""
        block, family, dimensions = self.block, self.block.family, self.block.dimensions
        columns: dict[str, Tensor] = {}  # site -> factors on the columns of all its weights
        rows: dict[str, Tensor] = {}  # linear -> factors on its rows and bias
        found: dict[str, Tensor] = {}
        group = dimensions.heads // dimensions.kv_heads
        for site, s in self.scales.items():
            if site in family.norms:
                found[f"{family.norms[site]}.weight"] = block.weight(family.norms[site]) / s
                columns[site] = s
            elif site == "o":
                rows[family.producers[site]] = 1 / s
                columns[site] = from_heads(s.expand(group, -1), dimensions)
            elif family.head_norms:
                for path, factor in zip(family.head_norms, (1 / s[0], s[0]), strict=True):
                    found[f"{path}.weight"] = block.weight(path) * factor.repeat(2)
            else:
                query, key, _ = family.linears["qkv"]
                t = torch.cat([s, s], dim=1)  # (kv_heads, head_dim)
                rows[query], rows[key] = 1 / t.repeat_interleave(group, dim=0).flatten(), t.flatten()
        for site, names in family.linears.items():
            for name in names:
                weight, bias = block.weight(name), block.bias(name)
                weight = weight * columns[site] if site in columns else weight
                found[f"{name}.weight"] = weight * rows[name][:, None] if name in rows else weight
                if bias is not None and name in rows:
                    found[f"{name}.bias"] = bias * rows[name]
        return found

    def rounded(self) -> dict[str, Tensor]:
        """The same, its weights clamped to their ranges and rounded to nearest."""
        found = self.transformed()
        if self.quantizer is None:
            return found
        for name in [name for names in self.block.family.linears.values() for name in names]:
            w = found[f"{name}.weight"]
            found[f"{name}.weight"] = self._round(name, w) if name in self.ranges else self.quantizer(w)
        return found

    @torch.no_grad()
    def plan(self) -> LayerPlan:
        """What the pipeline installs."""
        self.truncate_scales()
        weights, scales = self.transformed(), {site: s.detach() for site, s in self.scales.items()}
        ranges = {name: self._range(name, weights[f"{name}.weight"]) for name in self.ranges}
        return LayerPlan(query_key_scale=scales.pop(KEYS, None), sites=_folded(scales), weight_ranges=ranges)

    @torch.no_grad()
    def truncate_scales(self) -> None:
        """Keep |s| and |t| at `LEAST_SCALE` or more; no gradient sees it."""
        for s in self.scales.values():
            s.copy_(torch.where(s < 0, -1, 1) * s.abs().clamp_min(LEAST_SCALE))

    def _range(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.ranges[name](weight)
        if self.quantizer is not None and self.quantizer.format.scheme == "asymmetric":
            return low, high
        peak = torch.maximum(-low, high)
        return -peak, peak

    def _round(self, name: str, weight: Tensor) -> Tensor:
        assert self.quantizer is not None, "there are ranges where weights are rounded"
        format = self.quantizer.format
        low, high = self._range(name, weight)
        if format.group is not None:
            return fake_weight(weight.clamp(low, high), self.quantizer)
        grid = grid_from_range(low.float(), high.float(), format)
        # What is clamped to a symmetric range never gets the code -2^(b-1).
        lowest = format.element.code_range[0] + (format.scheme == "symmetric")
        return round_on(weight.float(), grid, lowest=lowest).to(weight)


def initial_scales(layer: LayerView, alpha: float) -> dict[str, Tensor]:
    """s_j = max|x_j|^alpha / max|W_j|^(1 - alpha) of each site, float64; 1 where either is 0."""
    dimensions, weights = layer.dimensions, layer.weights
    balanced = {
        "qkv": weights["qkv"][: dimensions.heads * dimensions.head_dim],  # q
        "o": weights["o"],
        "gate_up": weights["gate_up"][-dimensions.intermediate :],  # up
    }
    scales = {}
    for site, weight in balanced.items():
        peaks: Sequence[Tensor] = (layer.statistics[site].peak, weight.abs().amax(0))
        if site == "o":
            peaks = [over_heads(peak, dimensions).amax(0) for peak in peaks]
        x, w = (peak.double() for peak in peaks)
        scales[site] = torch.where((x > 0) & (w > 0), x**alpha / w ** (1 - alpha), 1.0)
    return scales


def _folded(scales: Mapping[str, Tensor]) -> dict[str, SiteTransform]:
    return {site: SiteTransform(folded=Diagonal(1 / s.double())) for site, s in scales.items()}
