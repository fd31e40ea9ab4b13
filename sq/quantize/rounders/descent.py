"""Coordinate descent: codes made better one column at a time, each column given all others, and scales given the codes.

Codes as in QuantEase (Behdin et al., 2309.01885), equation 8. GPTQ never returns to a column that it has rounded; this
does. GPTQ's scales fit a row before rounding; a step of `_refit` is the least squares fit to the codes that were found.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sq.formats.grid import Grid


@torch.no_grad()
def descend(
    columns: Tensor,
    codes: Tensor,
    hessian: Tensor,
    grid: Grid,
    groups: list[int],
    *,
    sweeps: int,
    damping: float = 0.01,
    block: int = 128,
    mismatch: Tensor | None = None,
) -> tuple[Tensor, Grid]:
    """Codes and grid whose error E = tr((w - q) H (w - q)^T) is at most that of the given ones.

    Column j becomes the level nearest to q_j + (w H + w D - q H)_j / H_jj, where E is least in q_j; columns take turns.
    A sweep is one turn of each, and behind it every scale becomes the one of least E (`_refit`). No step raises E. With
    a mismatch D = sum (x' - x)^T x what falls is |w X' - q X|^2.

    Args:
        columns: w (d_in, d_out), float32, in the order of H.
        codes: of the columns, (d_in, d_out).
        hessian: H (d_in, d_in); `damping` times its mean diagonal is added to its diagonal. Every H_jj > 0.
        grid: levels of the rows; zero points and second scales stay as they are.
        groups: of each column, the group whose scale it has.
        sweeps: the most turns of a column.
        block: columns that are brought up to date at once; it changes the speed and not the result.
        mismatch: D (d_in, d_in), in the scale of H, or None.
    """
    damped = hessian.to(torch.float32, copy=True)
    damped.diagonal().add_(damping * hessian.diagonal().mean().to(torch.float32))
    diagonal = damped.diagonal()
    values = torch.stack([grid.column(g).decode_(row.float()) for g, row in zip(groups, codes, strict=True)])
    pull = damped.T @ (columns - values)  # H (w - q), a column of w a row
    if mismatch is not None:
        pull += mismatch.to(torch.float32).T @ columns
    found = codes.clone()
    for sweep in range(sweeps):
        changed = False
        for start in range(0, len(columns), block):
            end = min(start + block, len(columns))
            moves = torch.zeros_like(values[start:end])
            for j in range(start, end):
                own = grid.column(groups[j])
                code = own.encode(values[j] + pull[j] / diagonal[j])
                kept = code.to(found.dtype)
                if torch.equal(kept, found[j]):
                    continue
                found[j] = kept
                move = torch.sub(own.decode_(code), values[j], out=moves[j - start])
                values[j] += move
                pull[start:end].addr_(damped[start:end, j], move, alpha=-1)
                changed = True
            for others in (slice(0, start), slice(end, None)):
                pull[others].addmm_(damped[others, start:end], moves, alpha=-1)
        if not changed and sweep:  # scales fit these codes since the sweep before
            break
        grid = _refit(values, pull, damped, grid, groups)
    return found, grid


def _refit(values: Tensor, pull: Tensor, damped: Tensor, grid: Grid, groups: list[int]) -> Grid:
    """The grid with each scale where E is least given all codes and other scales; values and pull follow, in place.

    With u the entries of a row's q in a group over their step s, and p = (w - q) H + w D there: s + d instead of s adds
    d^2 u H u^T - 2 d (u . p) to E, which is least at d = (u . p) / (u H u^T). A scale stays where the nearest one that
    its type can hold would raise E, or where the whole tensor has but one.
    """
    if grid.format.tensor:
        return grid
    scale = grid.scale.clone()
    for g in sorted(set(groups)):
        own = torch.tensor([j for j, of in enumerate(groups) if of == g], device=values.device)
        column = grid.column(g)
        step, second = column.step, 1.0 if column.second is None else column.second
        units = values[own] / step
        product = damped[:, own] @ units
        slope, curve = (units * pull[own]).sum(0), (units * product[own]).sum(0)
        wish = grid.format.scale.round(((step + slope / curve) / second).clamp(min=grid.format.scale.smallest))
        change = wish * second - step
        better = (wish > 0) & (change * change * curve < 2 * change * slope)
        scale[:, g] = torch.where(better, wish, scale[:, g])
        taken = torch.where(better, change, 0.0)
        values[own] += units * taken
        pull.addcmul_(product, taken.expand_as(product), value=-1)
    return replace(grid, scale=scale)
