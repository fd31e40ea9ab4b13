"""SingleQuant: closed-form rotations built of Givens rotations, in one pass and without gradients (arXiv 2511.22316).

The paper's abstract names two rotations, both with Kronecker structure. ART smooths massive outliers: each step rotates
the channel with the largest peak and a partner channel in their plane, so that the two share the peak. URT makes the
channels uniform: it maps a profile of them to an even target, or mixes them until they are even. Balance, an addition
of this project, maps the channels so that activations and weights have equal second moments and share the error evenly.
sq/rotation/README.md derives what the abstract leaves open; every choice is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.methods.head_rotations import key_blocks, value_rotations
from sq.models.families import SITES, ModelDimensions
from sq.models.site_transform import SiteTransform, over_heads
from sq.quantize.method import LayerView, Method, SiteStatistics
from sq.rotation import (
    Art,
    BlockHadamard,
    Compose,
    Diagonal,
    Kronecker,
    OfMatrix,
    OfRows,
    Partner,
    PerHead,
    RandomHadamard,
    RandomOrthogonal,
    SecondMoment,
    Stage,
    Statistic,
    Stretched,
    Target,
    Transform,
    Urt,
    absorb,
    block_balance,
    block_factors,
    build_rotation,
    dense_balance,
    diagonal_balance,
    has_hadamard,
    kronecker_factors,
    largest_block,
    largest_power,
    low_rank_balance,
    random_signs,
    reads_samples,
)

StageName = Literal["art", "urt", "hadamard", "orthogonal"]
Placement = Literal["online", "folded"]
KeyTransform = Literal["balance", "rotation", "none"]
Mixing = Literal["none", "block", "merged", "dense"]
DownTransform = Literal["rotation", "hadamard", "none"]
POOLED_TOKENS = 16384  # for the one residual rotation of "folded": twice as many change its KL by less than noise


@dataclass(frozen=True)
class SingleQuant(Method):
    """The method and its options; the defaults are the best recipe of the ablation in README.

    Args:
        name: as printed in tables.
        order: the stages, first to last: "art", "urt", "hadamard" (random signs), "orthogonal" (Haar).
        art_steps: the most plane rotations of ART on an axis; ART stops earlier when the peak no longer falls.
        art_partner, art_statistic: the partner of the channel with the peak, and the measure of a peak.
        urt_target: the target of URT: "uniform", "flat", "hadamard", or "kurtosis" (least fourth moment).
        urt_sweeps: sweeps of "kurtosis" over all pairs of channels.
        kronecker: R = R1 (x) R2 at every online site, n1 and n2 closest to each other (and with a Hadamard matrix each,
            where a stage needs one); False builds one n x n rotation (n^2 multiply-adds online).
        balance: scale channels so that activations and weights have equal rms; folded into the weights before them.
        balance_strength: 0.5 splits evenly; 0 would follow the weights alone, 1 the activations alone.
        rank: of the low-rank balance in front of the rotation and of `mixing`, online; 0 for none.
        mixing: non-orthogonal balance in front of the rotation. "block": blocks of `block` channels. "merged": blocks
            of n2 that take in the rotation's second factor, so that both together cost n (n1 + n2) online. "dense" is
            a bound, n^2 online.
        block: size of the blocks of "block"; the most n2 may be for "merged" (block_factors).
        across_blocks: mix the blocks of mixing="merged" by the rotation's first factor; False leaves it out, and
            the cost is n n2. With `block` the group of an FP4 format, nothing then crosses a scale's group.
        brake: l of every balance that is not diagonal: 1 balances activations and weights fully, less moves less.
        placement: "online" builds a rotation for each site. "folded" rotates the residual stream once and each head's
            values once, both absorbed into weights, and leaves only `down` online.
        down: what is online at `down`: "rotation", built as at other sites; "hadamard", on blocks of the largest power
            of two that divides the features, its random signs folded into the rows of up, which engines know by name;
            "none", so that the diagonal balance is all.
        sites: sites that are transformed.
        keys: the transform of keys and queries after RoPE, where either is quantized: "rotation" builds one for each KV
            head; "balance" adds a dense balance of the two before it, at the same cost online; "none".
        seed: of random stages.

    Raises:
        ValueError: an option outside its range.
    """

    name: str = "singlequant"
    order: Sequence[StageName] = ("hadamard",)
    art_steps: int = 8
    art_partner: Partner = "smallest"
    art_statistic: Statistic = "channel_max"
    urt_target: Target = "kurtosis"
    urt_sweeps: int = 1
    kronecker: bool = True
    balance: bool = True
    balance_strength: float = 0.5
    rank: int = 16
    mixing: Mixing = "merged"
    block: int = 128
    across_blocks: bool = True
    brake: float = 1.0
    placement: Placement = "online"
    down: DownTransform = "rotation"
    sites: Sequence[str] = SITES
    keys: KeyTransform = "balance"
    seed: int = 0
    fold_norms: ClassVar[bool] = True

    def __post_init__(self) -> None:
        problems = [f"stage {stage!r}" for stage in self.order if stage not in get_args(StageName)]
        problems += [f"site {site!r}" for site in self.sites if site not in SITES]
        if problems:
            raise ValueError(
                f"{', '.join(problems)} unknown; stages: {', '.join(get_args(StageName))}; sites: {', '.join(SITES)}"
            )
        choices = {"placement": Placement, "mixing": Mixing, "keys": KeyTransform, "down": DownTransform}
        if wrong := [name for name, allowed in choices.items() if getattr(self, name) not in get_args(allowed)]:
            said = (f"{name}={getattr(self, name)!r}; allowed: {', '.join(get_args(choices[name]))}" for name in wrong)
            raise ValueError(". ".join(said))
        if self.rank < 0 or self.art_steps < 0 or self.urt_sweeps < 1 or not 0 <= self.balance_strength <= 1:
            raise ValueError(
                f"rank={self.rank}, art_steps={self.art_steps} must be at least 0, urt_sweeps={self.urt_sweeps} at "
                f"least 1, balance_strength={self.balance_strength} within [0, 1]"
            )
        if self.rank and self.mixing == "dense":
            raise ValueError(f"rank={self.rank} does nothing in front of mixing='dense', which balances all directions")
        if self.mixing == "merged" and not self.kronecker:
            raise ValueError("mixing='merged' merges with a Kronecker rotation; set kronecker=true, or mixing=block")
        if not 0 < self.brake <= 1:
            raise ValueError(f"brake={self.brake}; above 0, and 1 for the full balance")
        self._stages()  # raises for an unknown target or partner, before anything is loaded

    @property
    def reads_residual(self) -> bool:
        """The folded placement has one rotation for the whole residual stream."""
        return self.placement == "folded"

    @property
    def second_moments(self) -> Sequence[str]:
        """All sites, for a dense balance. Others read few numbers of them, which a sample of the tokens gives."""
        return self.sites if self.mixing == "dense" else ()

    @property
    def samples_windows(self) -> bool:
        """All but a dense balance read a sample of the tokens anyway."""
        return self.mixing != "dense"

    def export_obstacle(self, dimensions: ModelDimensions | None = None) -> str | None:
        """Anything but a Hadamard of blocks at `down` is one of this method's own."""
        if self.placement == "online":
            return "its rotations are online at every site; take method=singlequant_export, which folds them"
        if self.rank or self.mixing != "none":
            given = f"rank={self.rank} and mixing={self.mixing}"
            return f"{given} are online at every site; set method.rank=0 method.mixing=none"
        if "down" in self.sites and self.down == "rotation" and self.order:
            way = "set +method.down=hadamard (a Hadamard of blocks) or +method.down=none"
            return f"its rotation in front of `down` differs from layer to layer, which the format cannot say; {way}"
        return None

    def residual_rotation(
        self, samples: Mapping[str, Sequence[Tensor]], dimensions: ModelDimensions
    ) -> Transform | None:
        """One rotation from the pooled, normalized tokens of every layer; folded, so full width costs nothing."""
        if not (self.reads_residual and set(samples).intersection(self.sites)):
            return None
        pooled = torch.cat([tokens for site, layers in samples.items() if site in self.sites for tokens in layers])
        pooled = pooled[:: -(-len(pooled) // POOLED_TOKENS)]
        return build_rotation(pooled, self._stages(), None, self.seed, "the residual stream")

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """Balance, then the rotation, at each of `sites`."""
        return {site: self.site_after(layer, site, len(self.order)) for site in self.sites}

    def key_transform(self, layer: LayerView) -> Transform | None:
        """One block for each KV head, from its keys and the queries that read them, online after RoPE."""
        if self.keys == "none":
            return None
        return key_blocks(
            layer.statistics["keys"].tokens,
            layer.statistics["queries"].tokens,
            self._stages(),
            layer.dimensions,
            self.seed + 1 + len(SITES) * layer.dimensions.layers + layer.index,
            f"layer {layer.index}",
            balanced=self.keys == "balance",
        )

    def site_after(self, layer: LayerView, site: str, stages: int) -> SiteTransform:
        """The transform of one site with the first `stages` of `order`; the method itself applies all of them."""
        statistics, weights, dimensions = layer.statistics[site], layer.weights[site], layer.dimensions
        name, seed = f"layer {layer.index}, {site}", self.seed + 1 + len(SITES) * layer.index + SITES.index(site)
        folded: list[Transform] = []
        if self.balance:
            folded.append(self._balance(statistics.rms, weights, site, dimensions))
        if self.placement == "folded" and site == "o":
            balanced = SiteTransform(folded=_chain(folded)).tokens(statistics.tokens, site, dimensions)
            folded.append(value_rotations(balanced, self._stages(), dimensions, seed, name))
        done = SiteTransform(folded=_chain(folded))
        online: list[Transform] = []
        if site == "down" and self.down != "rotation":
            signed, hadamards = self._block_hadamard(dimensions.width(site), stages, seed, name)
            return SiteTransform(_chain([*folded, *signed]), _chain(hadamards))
        rotated = self.placement == "online" or site == "down"
        factors = self._factors(dimensions.width(site), name) if self.kronecker and rotated else None
        if self.rank or self.mixing != "none":
            activations = self._moment(statistics, done, site, dimensions)
            online += self._balances(activations, OfRows(done.weights(weights, site, dimensions)), factors)
        if rotated:
            tokens = statistics.tokens
            if any(map(reads_samples, self._stages()[:stages])):  # others take their shape alone
                tokens = done.tokens(tokens, site, dimensions)
                for part in online:
                    tokens = part(tokens)
            rotation = self._rotation(tokens, stages, factors, seed, name)
            if self.mixing == "merged" and isinstance(blocks := online[-1], PerHead):
                online[-1] = absorb(blocks, rotation) if isinstance(rotation, Kronecker) else blocks
            else:
                online.append(rotation)
        return SiteTransform(done.folded, _chain(online))

    def _block_hadamard(self, n: int, stages: int, seed: int, name: str) -> tuple[list[Transform], list[Transform]]:
        """Signs, folded, and the blocks behind them, online; nothing where `down` is "none" or no stage has run."""
        if self.down == "none" or not stages:
            return [], []
        k = largest_power(n)
        if k == 1:
            raise QuantizationError(f"{name}: {n} features have no block of a power of two; set method.down=none")
        return [Diagonal(random_signs(n, seed))], [BlockHadamard(n, k)]

    def _balance(self, rms: Tensor, weights: Tensor, site: str, dimensions: ModelDimensions) -> Diagonal:
        columns = weights.square().mean(0).sqrt()
        if site == "o":  # the query heads of a group share their KV head's channels
            rms = over_heads(rms, dimensions).square().mean(0).sqrt()
            columns = over_heads(columns, dimensions).square().mean(0).sqrt()
        return Diagonal(1 / diagonal_balance(rms, columns, self.balance_strength))

    def _moment(
        self, statistics: SiteStatistics, done: SiteTransform, site: str, dimensions: ModelDimensions
    ) -> SecondMoment:
        """Of the activations behind `done`: of all tokens where they were gathered, else of the sample.

        On SmolLM2 blocks and 16 directions of 4,096 tokens have a criterion J, on other tokens, 0.7% above that of
        16,384, and the products of whole moments took as long as half a forward.
        """
        if statistics.second_moment is not None and self.second_moments:
            return OfMatrix(done.moment(statistics.second_moment, site, dimensions))
        return OfRows(done.tokens(statistics.tokens, site, dimensions))

    def _rotation(
        self, tokens: Tensor, stages: int, factors: tuple[int, int] | None, seed: int, name: str
    ) -> Transform:
        made = self._stages()[:stages]
        if factors is None or self.across_blocks or self.mixing != "merged":
            return build_rotation(tokens, made, factors, seed, name)
        n1, n2 = factors
        return Kronecker(n1, build_rotation(tokens.reshape(-1, n2), made, None, seed, name).matrix())

    def _factors(self, n: int, name: str) -> tuple[int, int]:
        needs_hadamard = "hadamard" in self.order or ("urt" in self.order and self.urt_target == "hadamard")
        admits = has_hadamard if needs_hadamard else bool
        try:
            if self.mixing != "merged":
                return kronecker_factors(n, admits)
            if self.across_blocks:
                return block_factors(n, self.block, admits)
            n2 = largest_block(n, self.block, admits)
            return n // n2, n2
        except ValueError as error:
            hint = "set method.kronecker=false, or leave the site out of method.sites"
            if self.mixing == "merged":
                hint = "set method.across_blocks=false, method.order=[orthogonal] or method.mixing=block"
            raise QuantizationError(f"{name}: {error}. For this method: {hint}") from error

    def _balances(
        self, activations: SecondMoment, weights: SecondMoment, factors: tuple[int, int] | None
    ) -> list[Transform]:
        """Low rank in front, then blocks or all channels; each balances what those before it leave."""
        parts: list[Transform] = []
        if self.rank:
            low_rank = low_rank_balance(activations, weights, min(self.rank, activations.n), brake=self.brake)
            activations = Stretched(activations, low_rank)
            weights = Stretched(weights, low_rank, of_weights=True)
            parts.append(low_rank)
        if self.mixing == "merged" and factors is not None:
            parts.append(block_balance(activations, weights, factors[1], brake=self.brake))
        elif self.mixing == "block":
            parts.append(block_balance(activations, weights, self.block, brake=self.brake))
        elif self.mixing == "dense":
            parts.append(dense_balance(activations, weights, brake=self.brake))
        return parts

    def _stages(self) -> list[Stage]:
        made: dict[str, Stage] = {
            "art": Art(self.art_steps, self.art_partner, self.art_statistic),
            "urt": Urt(self.urt_target, self.urt_sweeps),
            "hadamard": RandomHadamard(),
            "orthogonal": RandomOrthogonal(),
        }
        return [made[stage] for stage in self.order]


def _chain(parts: Sequence[Transform]) -> Transform | None:
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else Compose(parts)
