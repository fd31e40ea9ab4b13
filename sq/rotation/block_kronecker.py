"""BlockKronecker: a Kronecker transform whose second factor differs from row to row, at the cost of a Kronecker one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sq.kernels.block_product import block_product
from sq.kernels.steps import BlockStep
from sq.rotation.kronecker import Kronecker
from sq.rotation.transform import MatrixTransform, PerHead, check_orthogonal


def block_factors(n: int, block: int, admits: Callable[[int], bool] = lambda _: True) -> tuple[int, int]:
    """(n1, n2), n1 n2 = n: n2 is the largest divisor of n up to `block`; the two are exchanged where n1 is larger.

    The exchange costs nothing, n (n1 + n2) either way, and larger blocks balance more.

    Args:
        admits: which sizes may be used, such as has_hadamard (576 is then 8 x 72 and not 6 x 96).

    ValueError is raised where n has no such pair with n2 above 1.
    """
    found = _largest_divisor(n, block, lambda n2: admits(n // n2) and admits(n2))
    if found is None:
        raise ValueError(f"a size of {n} has no pair n1 n2 with a block n2 of 2 to {block} that can be used")
    n1, n2 = sorted((n // found, found))
    return n1, n2


def largest_block(n: int, block: int, admits: Callable[[int], bool] = lambda _: True) -> int:
    """The largest divisor of n up to `block` that may be used; ValueError where that is 1."""
    found = _largest_divisor(n, block, admits)
    if found is None:
        raise ValueError(f"a size of {n} has no block of 2 to {block} that can be used")
    return found


def _largest_divisor(n: int, block: int, admits: Callable[[int], bool]) -> int | None:
    return next((size for size in range(min(block, n), 1, -1) if n % size == 0 and admits(size)), None)


def absorb(blocks: PerHead, rotation: Kronecker) -> BlockKronecker:
    """The product of block matrices B_i (n2, n2) and R1 (x) R2 behind them: R2 goes into each block, B_i R2.

    ValueError is raised where the blocks are not as large as R2.
    """
    matrices = blocks.get_buffer("blocks")
    if matrices.shape[:2] != (rotation.n1, rotation.n2):
        raise ValueError(
            f"blocks of shape {tuple(matrices.shape)} cannot take in R2 of {rotation.n1} x {rotation.n2}; "
            "each row of X needs one block of n2 channels"
        )
    r1, r2 = rotation.matrices()
    return BlockKronecker(matrices if r2 is None else matrices @ r2.to(matrices.device), r1)


class BlockKronecker(MatrixTransform):
    """T: row i of X (n1, n2), x = vec(X), is multiplied by block B_i, then R1 mixes the rows: x T = R1^T [X_i B_i]_i.

    T^-1 undoes R1 and then each block. With all blocks equal to R2 it is R1 (x) R2, and it costs as much.

    Args:
        blocks: B, invertible, shape (n1, n2, n2).
        r1: orthogonal, shape (n1, n1), or None for an identity.
    """

    def __init__(self, blocks: Tensor, r1: Tensor | None) -> None:
        if blocks.dim() != 3 or blocks.shape[1] != blocks.shape[2]:
            raise ValueError(f"BlockKronecker got blocks of shape {tuple(blocks.shape)}; it needs (n1, n2, n2)")
        n1, n2 = blocks.shape[:2]
        if r1 is not None and tuple(r1.shape) != (n1, n1):
            raise ValueError(f"BlockKronecker got r1 of shape {tuple(r1.shape)}; {n1} blocks need {(n1, n1)}")
        super().__init__(n1 * n2, orthogonal=False)
        self.n1, self.n2, self._mixes = n1, n2, r1 is not None
        self._hold_matrix("blocks", blocks)
        if r1 is not None:
            check_orthogonal(type(self).__name__, r1)
            self._hold("r1", r1)

    def macs(self) -> int:
        """n n2 for the blocks and n n1 for R1."""
        return self.n * (self.n2 + (self.n1 if self._mixes else 0))

    def forward(self, x: Tensor) -> Tensor:
        """x T; by the kernel on a GPU, where no gradient is asked for."""
        if x.is_cuda and not (x.requires_grad and torch.is_grad_enabled()):
            (step,) = self.steps(x)
            return block_product(x, step.blocks, step.first)
        return super().forward(x)

    def steps(self, x: Tensor) -> tuple[BlockStep]:
        """One."""
        return (BlockStep(self._factor("blocks", x), self._factor("r1", x) if self._mixes else None),)

    def extra_repr(self) -> str:
        """Sizes of both factors."""
        return f"n1={self.n1}, n2={self.n2}"

    def _multiply(self, x: Tensor, inverted: bool, transposed: bool) -> Tensor:
        blocks = self._matrix("blocks", x, inverted, transposed)
        r1 = self._factor("r1", x) if self._mixes else None
        shape, x = x.shape, x.reshape(-1, self.n1, self.n2)
        if inverted != transposed and r1 is not None:  # x T^-1: R1 is undone first
            x = torch.matmul(r1, x)
        x = torch.bmm(x.transpose(0, 1), blocks).transpose(0, 1)
        if inverted == transposed and r1 is not None:  # x T, and w T^-T since R1^-T = R1
            x = torch.matmul(r1.mT, x)
        return x.reshape(shape)
