"""The transforms of one site, and what they do to tokens, weights and second moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sq.models.families import ModelDimensions
from sq.rotation.transform import Transform


@dataclass(frozen=True)
class SiteTransform:
    """T of one site: x' = online(folded(x)); the site's weights take the inverse transpose of both.

    Attributes:
        folded: absorbed into what produces the site's features, or None. At `o` it acts on the kv_heads * head_dim
            channels of the values, one block a KV head, and every query head of a group gets its KV head's block.
        online: applied to the activations at run time, or None.
    """

    folded: Transform | None = None
    online: Transform | None = None

    def tokens(self, x: Tensor, site: str, dimensions: ModelDimensions) -> Tensor:
        """x T, shape (T, n)."""
        if self.folded is not None:
            x = on_values(x, self.folded, dimensions) if site == "o" else self.folded(x)
        return x if self.online is None else self.online(x)

    def weights(self, w: Tensor, site: str, dimensions: ModelDimensions) -> Tensor:
        """w T^-T, shape (d_out, n)."""
        if self.folded is not None:
            inverse = self.folded.inverse_transpose
            w = on_values(w, inverse, dimensions) if site == "o" else inverse(w)
        return w if self.online is None else self.online.inverse_transpose(w)

    def moment(self, m: Tensor, site: str, dimensions: ModelDimensions) -> Tensor:
        """T^T m T, the second moment (n, n) of the transformed activations."""
        half = self.tokens(m, site, dimensions).T  # each is 3 GB at a 70B model's `down`: one less at a time
        half = half.contiguous()
        return self.tokens(half, site, dimensions)


def on_values(x: Tensor, apply: Callable[[Tensor], Tensor], dimensions: ModelDimensions) -> Tensor:
    """Apply a map of the values' channels, (..., kv_heads * head_dim), to the o input (..., heads * head_dim)."""
    return from_heads(apply(over_heads(x, dimensions)), dimensions)


def over_heads(x: Tensor, dimensions: ModelDimensions) -> Tensor:
    """(..., heads * head_dim) -> (..., group, kv_heads * head_dim): query head h reads KV head h // group."""
    group = dimensions.heads // dimensions.kv_heads
    x = x.unflatten(-1, (dimensions.kv_heads, group, dimensions.head_dim))
    return x.transpose(-3, -2).flatten(-2)


def from_heads(x: Tensor, dimensions: ModelDimensions) -> Tensor:
    """Inverse of `over_heads`."""
    x = x.unflatten(-1, (dimensions.kv_heads, dimensions.head_dim)).transpose(-3, -2)
    return x.flatten(-3)
