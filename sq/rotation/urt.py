"""URT, the uniformity rotation: takes a profile vector to an even target, or mixes channels until they are even.

The derivation and what each target is good for are in README.md beside this file.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sq.rotation.art import Statistic
from sq.rotation.givens import givens_chain
from sq.rotation.hadamard import hadamard_matrix
from sq.rotation.kurtosis import kurtosis_rotation
from sq.rotation.samples import check_samples

Target = Literal["uniform", "flat", "hadamard", "kurtosis"]
TARGETS: tuple[Target, ...] = ("uniform", "flat", "hadamard", "kurtosis")


def urt_rotation(
    x: Tensor, target: Target, statistic: Statistic = "peak_row", sweeps: int = 1, unit_tokens: bool = True
) -> Tensor:
    """R (m, m), float64, from samples x (T, m); v is profile(x, statistic), G_v its Givens chain, v G_v = |v| e_1.

    Args:
        target: "uniform" is R = G_v G_u^T, v R = |v| u / |u| with u evenly spaced in the rank order of v; "flat" has u
            all equal; "hadamard" is R = G_v H / sqrt(m); "kurtosis" is kurtosis_rotation(x, sweeps, unit_tokens).

    CalibrationError is raised as by check_samples, ValueError for a target or statistic that does not exist, and for
    "hadamard" with an m that has no Hadamard matrix.
    """
    if target not in TARGETS:
        raise ValueError(f"URT got target {target!r}; allowed are {', '.join(TARGETS)}")
    if target == "kurtosis":
        return kurtosis_rotation(x, sweeps, unit_tokens)
    v = profile(x, statistic)
    chain = givens_chain(v)
    m = v.numel()
    if target == "hadamard":
        mixed: Tensor = chain @ hadamard_matrix(m).to(chain.device) / m**0.5
        return mixed
    u = torch.ones_like(v) if target == "flat" else evenly_spaced(v)
    return chain @ givens_chain(u).T


def profile(x: Tensor, statistic: Statistic) -> Tensor:
    """A vector that stands for x (T, m), shape (m,), float64: "peak_row" is the signed token that holds the largest
    |entry|, "channel_max" is max_t |x_tj|."""
    check_samples(x)
    if statistic == "peak_row":
        return x[int(x.abs().amax(1).argmax())].detach().to(torch.float64)
    if statistic == "channel_max":
        return x.abs().amax(0).detach().to(torch.float64)
    raise ValueError(f"got statistic {statistic!r}; allowed are 'peak_row' and 'channel_max'")


def evenly_spaced(v: Tensor) -> Tensor:
    """Mid-quantiles of a uniform distribution in the rank order of v: on (-1, 1) if v has both signs, else on (0, 1) or
    (-1, 0). Ties are ranked in channel order. Shape (m,), float64."""
    m = v.numel()
    rank = torch.empty(m, dtype=torch.float64, device=v.device)
    rank[v.argsort(stable=True)] = torch.arange(m, dtype=torch.float64, device=v.device)
    quantile = (rank + 0.5) / m
    if bool((v >= 0).all()):
        return quantile
    return quantile - 1 if bool((v <= 0).all()) else 2 * quantile - 1
