"""BlockHadamard: one Hadamard matrix of a power of two on every block of neighbouring features."""

from __future__ import annotations

from sq.rotation.hadamard_orders import sylvester
from sq.rotation.kronecker import Kronecker


class BlockHadamard(Kronecker):
    """T = I (x) H_k / sqrt(k), H_k by Sylvester's construction: n / k blocks share it, so engines know it by its size.

    ValueError is raised for a k that is no power of two above 1, or does not divide n.
    """

    def __init__(self, n: int, k: int) -> None:
        if k < 2 or k & (k - 1) or n % k:
            raise ValueError(f"BlockHadamard of {n} features got blocks of {k}; use a power of two that divides {n}")
        super().__init__(n // k, sylvester(k) / k**0.5)

    def macs(self) -> int:
        """n log2 k: the butterflies of a fast transform, though here the block is multiplied as it is."""
        return self.n * (self.n2.bit_length() - 1)


def largest_power(n: int) -> int:
    """The largest power of two that divides n."""
    return n & -n
