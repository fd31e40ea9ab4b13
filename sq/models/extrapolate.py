"""Seconds that quantization should take on a card, from counts of operations and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from sq.models.stream import DecoderStream


@dataclass(frozen=True)
class Card:
    """What a card does in a second; by default an H200 with an NVMe disk.

    Attributes:
        products: multiply-adds in bf16 or TF32 that large products reach, half of 600 TFLOP/s.
        factors: multiply-adds in float32 of a Cholesky factor and a triangular inverse.
        memory: bytes read or written.
        disk: bytes read.
    """

    products: float = 3e14
    factors: float = 1e13
    memory: float = 3.5e12
    disk: float = 5e9


@dataclass(frozen=True)
class ExpectedSeconds:
    """Parts of a quantization.

    Attributes:
        read: all weights once, in 16 bits.
        forward: of the calibration tokens.
        moments: sums of x^T x at every site, for a rounder that reads them.
        weights: transform and rounding.
    """

    read: float
    forward: float
    moments: float
    weights: float

    @property
    def total(self) -> float:
        """With reads behind the rest: the longer of the two."""
        return max(self.read, self.forward + self.moments + self.weights)


def expected_seconds(stream: DecoderStream, tokens: int, card: Card, *, forwards: float) -> ExpectedSeconds:
    """Counts over all layers, for rounding to nearest (1 forward) and GPTQ, whose second forward sees rounded weights.

    The first may leave windows out (`Calibration.some`): 16 of 128 are an eighth of a forward.

    A layer of P weights: forward T P multiply-adds and attention's T^2 terms left out (windows are short); x^T x of a
    site of n features T n^2, where the forward is not the only one; a balance reads a sample of the tokens, a
    thousandth of a forward, and is left out; the transform n (n1 + n2) a row, taken as 2 n^1.5; GPTQ n^2 a row and n^3
    for the factor. The 80 candidates of a clip search pass over a weight once each.
    """
    shapes = [tuple(stream.meta_layer(0).get_submodule(name).weight.shape) for name in _names(stream)]  # type: ignore[arg-type]
    parameters = sum(rows * columns for rows, columns in shapes)
    sites = {site: stream.dimensions.width(site) for site in stream.family.linears}
    layers = stream.count
    moments = (tokens if forwards > 1 else 0) * sum(n**2 for n in sites.values())
    rounding = sum(rows * 2 * columns**1.5 for rows, columns in shapes)
    factors = 0.0
    if forwards > 1:
        rounding += sum(rows * columns**2 for rows, columns in shapes)
        factors = sum(2 * n**3 / 3 for n in sites.values())
    return ExpectedSeconds(
        read=2 * layers * parameters / card.disk,
        forward=layers * forwards * tokens * parameters / card.products,
        moments=layers * moments / card.products,
        weights=layers * (rounding / card.products + factors / card.factors + 80 * 4 * parameters / card.memory),
    )


def _names(stream: DecoderStream) -> list[str]:
    return [name for names in stream.family.linears.values() for name in names]
