"""A step of fourth-moment rotations: disjoint pairs of channels, their angles and rotation; derivation in README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import check_tensor
from ..backend import Backend, picks_triton
from .reference import fourth_moment_angle, fourth_moment_sums, turn_pairs_reference

__all__ = ["fourth_moment_angle", "fourth_moment_sums", "turn_pairs", "turn_pairs_reference"]


@torch.no_grad()
def turn_pairs(rows: Tensor, turned: Tensor, pairs: Tensor, *, backend: Backend = "auto") -> None:
    """Turn each pair of channels by the angle of its least fourth moment, in place; x' = c x + s y, y' = c y - s x.

    Args:
        rows: (B, m, T), float32 or float64, contiguous: B independent sets of samples, a row a channel.
        turned: (B, m, m), float64, contiguous: turned in the same way, so that it holds R^T where it held the identity.
        pairs: (2, P), int32 or int64 on the device of rows, contiguous: row pairs[0, k] meets row pairs[1, k]. No row
            is named twice, which is not checked: it would wait for a GPU.
        backend: see sq/kernels/backend.py; the Triton kernel takes float32 rows.

    Sums are float64 of float64 products in both, angles and turned float64; rows are turned in their own dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other, or backend="triton" where it cannot run.
    """
    if rows.dim() != 3:
        raise ValueError(
            f"rows have shape {tuple(rows.shape)}; they must be (B, m, T), with B = 1 for one set of samples"
        )
    if pairs.dim() != 2 or len(pairs) != 2 or pairs.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"pairs are {pairs.dtype} {tuple(pairs.shape)}; they must be int32 or int64 (2, P)")
    batch, m, _ = rows.shape
    check_tensor("rows", rows, rows.shape, (torch.float32, torch.float64), rows.device, contiguous=True)
    check_tensor("turned", turned, (batch, m, m), (torch.float64,), rows.device, of="rows", contiguous=True)
    check_tensor("pairs", pairs, pairs.shape, (pairs.dtype,), rows.device, of="rows", contiguous=True)
    triton = picks_triton(backend, rows, None)
    if rows.numel() == 0 or pairs.numel() == 0:
        return
    if triton:
        from .triton import launch

        launch(rows, turned, pairs)
    else:
        turn_pairs_reference(rows, turned, pairs)
