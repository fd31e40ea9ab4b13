"""DuQuant (Lin et al., arXiv 2406.01721): smoothing, and block rotations with a permutation between two of them.

    x -> x / s -> blocks R1 -> permutation P -> blocks R2,    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

How R1, P and R2 are found, sites, defaults and differences from the released code: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Literal, get_args

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.models.families import SITES, ModelDimensions
from sq.models.site_transform import SiteTransform
from sq.quantize.method import LayerView, Method, below_least
from sq.rotation import (
    Compose,
    Diagonal,
    Kronecker,
    Permutation,
    Transform,
    diagonal_balance,
    givens_chain,
    hadamard_matrix,
    has_hadamard,
    largest_block,
    random_orthogonal,
)
from sq.rotation.samples import check_samples, fitting_threads

Keys = Literal["greedy", "hadamard"]
FIRST_ROWS = 256  # rows that a search starts on; it takes more as soon as they cannot prove the peak


@dataclass(frozen=True)
class DuQuant(Method):
    """Smoothing, then rotation - permutation - rotation, at every site; ValueError for an option outside its range.

    Args:
        alpha: strength of the smoothing, in [0, 1].
        block: most channels of a rotated block; a site takes the largest divisor of its features up to it.
        rotation_steps: most factors of one rotation.
        permutations: P's between rotations; 0 leaves a single rotation.
        search_tokens: calibration tokens that rotations and permutations are found on.
        keys: how keys and queries are rotated after RoPE, where either is quantized: "greedy" as the sites, without
            smoothing, or "hadamard", one Hadamard of a block as in the released code.
        seed: of the base rotations.
    """

    name: str = "duquant"
    alpha: float = 0.6
    block: int = 128
    rotation_steps: int = 256
    permutations: int = 1
    search_tokens: int = 2048
    keys: Keys = "greedy"
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = below_least(self, {"block": 2, "rotation_steps": 0, "permutations": 0, "search_tokens": 1})
        wrong += [] if 0 <= self.alpha <= 1 else [f"alpha={self.alpha} (0 to 1)"]
        wrong += [] if self.keys in get_args(Keys) else [f"keys={self.keys!r} ({' or '.join(get_args(Keys))})"]
        if wrong:
            raise ValueError(f"out of range: {', '.join(wrong)}")

    def resolved(self, dimensions: ModelDimensions) -> Mapping[str, str]:
        """`block`, as "96/128", where it does not divide the features of every site."""
        sizes = {largest_block(dimensions.width(site), self.block) for site in SITES}
        return {} if sizes == {self.block} else {"block": "/".join(map(str, sorted(sizes)))}

    def export_obstacle(self, dimensions: ModelDimensions | None = None) -> str | None:
        """Each site of each layer has rotations and permutations of its own."""
        return "its rotations and permutations are online at every site; take method=singlequant_export"

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """The whole sequence at every site."""
        return {site: self._site(layer, site) for site in SITES}

    def _site(self, layer: LayerView, site: str) -> SiteTransform:
        statistics, dimensions = layer.statistics[site], layer.dimensions
        weight_peak = layer.weights[site].abs().amax(0)
        smooth = Diagonal(1 / diagonal_balance(statistics.peak, weight_peak, self.alpha))
        stride = -(-len(statistics.tokens) // self.search_tokens)
        x = smooth(statistics.tokens[::stride])
        check_samples(x, f"layer {layer.index}, {site}")
        seed = self.seed + 1 + (len(SITES) * layer.index + SITES.index(site)) * (self.permutations + 1)
        try:
            block = largest_block(dimensions.width(site), self.block)
        except ValueError as error:
            raise QuantizationError(f"layer {layer.index}, {site}: {error}; set method.block to more") from error
        rotations = self._rotations(x, block, seed)
        if site == "o" and dimensions.kv_heads != dimensions.heads:
            return SiteTransform(online=Compose([smooth, *rotations]))
        return SiteTransform(smooth, Compose(rotations))

    def key_transform(self, layer: LayerView) -> Transform | None:
        """On head_dim features, one for all heads: the whole sequence without smoothing, or Hadamards of blocks."""
        head_dim, tokens = layer.dimensions.head_dim, layer.statistics["keys"].tokens
        block = gcd(self.block, head_dim)
        if self.keys == "hadamard":
            if not has_hadamard(block):
                raise QuantizationError(
                    f"layer {layer.index}, keys: method.block={self.block} cuts heads of {head_dim} features into "
                    f"blocks of {block}, which have no Hadamard matrix; set method.keys=greedy"
                )
            return Kronecker(head_dim // block, hadamard_matrix(block) / block**0.5)
        x = tokens[:: -(-len(tokens) // self.search_tokens)].reshape(-1, head_dim)
        check_samples(x, f"layer {layer.index}, keys")
        seed = self.seed + 1 + (len(SITES) * layer.dimensions.layers + layer.index) * (self.permutations + 1)
        return Compose(self._rotations(x, block, seed))

    def _rotations(self, x: Tensor, block: int, seed: int) -> list[Transform]:
        """R1, P, R2, ... for tokens x (T, n), each from x as those before left it."""
        parts: list[Transform] = []
        for turn in range(self.permutations + 1):
            if turn:
                parts.append(Permutation(zigzag(x.abs().amax(0), block)))
                x = parts[-1](x)
            base = base_rotation(block, seed + turn).to(x.device)
            rotation = greedy_rotation(x.reshape(-1, block), base, self.rotation_steps)
            parts.append(Kronecker(x.shape[1] // block, rotation))
            x = parts[-1](x)
        return parts


def base_rotation(block: int, seed: int) -> Tensor:
    """B = F diag(1, Q), shape (block, block), float64: F flat in its first row, Q Haar."""
    flat = givens_chain(torch.ones(block)).T
    mixed: Tensor = torch.cat([flat[:, :1], flat[:, 1:] @ random_orthogonal(block - 1, seed)], dim=1)
    return mixed


def greedy_step(base: Tensor, coordinate: int) -> Tensor:
    """B with rows and columns 0 and `coordinate` swapped: B's first row then meets that coordinate."""
    swap = torch.arange(len(base), device=base.device)
    swap[0], swap[coordinate] = coordinate, 0
    return base[swap][:, swap]


def greedy_rotation(x: Tensor, base: Tensor, steps: int) -> Tensor:
    """The product of at most `steps` greedy steps with the smallest max(x R) - min(x R); shape (block, block), float64.

    x (N, block) holds the blocks of all tokens as rows. Rows are taken by falling norm, which no rotation changes and
    no entry of the row exceeds: as soon as both extremes reach the norm of the next row, the rest cannot hold them. The
    result is that of a search over all rows.
    """
    norms, order = x.norm(dim=1).sort(descending=True)
    count = min(len(x), FIRST_ROWS)
    rotation = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    best, smallest = rotation, torch.inf
    rows = x[order[:count]]
    with fitting_threads(x.numel()):
        for step in range(steps + 1):
            while True:
                low, high = (float(extreme) for extreme in rows.aminmax())
                if count == len(x) or min(high, -low) >= float(norms[count]):
                    break
                count = min(len(x), 2 * count)
                rows = x[order[:count]] @ rotation.to(x.dtype)
            if high - low < smallest:
                best, smallest = rotation, high - low
            if step < steps:
                peak = int(rows.argmax() if high > -low else rows.argmin())
                factor = greedy_step(base, peak % x.shape[1])
                rotation = rotation @ factor
                rows = rows @ factor.to(x.dtype)
    return best


def zigzag(peaks: Tensor, block: int) -> Tensor:
    """Order of the n channels by peaks (n,), int64: dealt by falling peak to blocks 1, 2, ..., k, k, ..., 2, 1, 1"""
    rounds = peaks.argsort(descending=True, stable=True).reshape(block, -1).clone()  # one channel to each block
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.T.reshape(-1)
