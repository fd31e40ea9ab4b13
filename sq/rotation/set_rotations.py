"""Rotations of many independent sets of samples, such as the heads of a layer, stage by stage for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sq.rotation.samples import check_samples, token_rms
from sq.rotation.stages import Stage, build_rotation, draw_seed, orthonormalize, reads_samples


def set_rotations(x: Tensor, stages: Sequence[Stage], seed: int = 0, name: str = "set") -> Tensor:
    """R_b, (B, m, m) float64, the full-width rotation that build_rotation makes of each of B sets of samples.

    A stage with a method `rotations(x, seed)`, (B, S, m) to (B, m, m), builds all sets at once; others build one set
    after the other. Random stages draw the same for every set.

    Args:
        x: calibration tokens, shape (B, T, m).
        stages: as for build_rotation; without any the rotations are identities.
        seed: of the random stages.
        name: what a set is, for error messages: "layer 3, KV head" makes "layer 3, KV head 0" of the first.

    Raises:
        CalibrationError: as check_samples.
        ValueError: x has no three axes; a stage that cannot serve the size.
    """
    if x.dim() != 3 or len(x) == 0:
        raise ValueError(f"got samples of shape {tuple(x.shape)}; (B, T, m) with at least one set is allowed")
    for index, tokens in enumerate(x):
        check_samples(tokens, f"{name} {index}")
    batch, _, m = x.shape
    if not any(map(reads_samples, stages)):
        return build_rotation(x[0], stages, None, seed, name).matrix().repeat(batch, 1, 1)
    x = x.detach() if x.dtype == torch.float64 else x.detach().to(torch.float32)
    rms = token_rms(x)
    seeds = torch.Generator().manual_seed(seed)
    rotations = torch.eye(m, dtype=torch.float64, device=x.device).repeat(batch, 1, 1)
    for index, stage in enumerate(stages):
        step = _steps(stage, x / rms if stage.unit_tokens else x, draw_seed(seeds)).to(x.device)
        rotations = rotations @ step
        if index < len(stages) - 1:  # nothing looks at what the last one leaves
            x = x @ step.to(x.dtype)
    return torch.stack([orthonormalize(rotation) for rotation in rotations])


def _steps(stage: Stage, x: Tensor, seed: int) -> Tensor:
    at_once = getattr(stage, "rotations", None)
    made: Tensor = at_once(x, seed) if at_once else torch.stack([stage.rotation(samples, seed) for samples in x])
    return made
