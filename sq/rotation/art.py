"""ART, the alignment rotation for massive outliers: plane rotations that share the largest entry between two channels.

The derivation is in README.md beside this file.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sq.rotation.samples import channel_rows, fitting_threads

Partner = Literal["smallest", "best"]
Statistic = Literal["channel_max", "peak_row"]


def art_rotation(x: Tensor, steps: int, partner: Partner = "smallest", statistic: Statistic = "channel_max") -> Tensor:
    """R, the product of at most `steps` plane rotations that lower the largest |entry| of x, shape (m, m), float64.

    A step takes the largest |entry| `(t*, i)` and a partner channel j, and rotates the plane (i, j) by art_angle of
    the two entries of token `t*`. Steps end early when the plane's peak would not fall; x R never has a higher peak
    than x.

    Args:
        x: samples, shape (T, m).
        steps: most rotations to take.
        partner: "smallest" takes the channel with the smallest profile; "best" tries all channels, m times dearer,
            and takes the one whose plane ends with the lowest peak.
        statistic: profile of "smallest": "channel_max" is max_t |x_tj|, "peak_row" is `|x_t*j|`.

    CalibrationError is raised as by check_samples.
    """
    if steps < 0 or partner not in ("smallest", "best") or statistic not in ("channel_max", "peak_row"):
        raise ValueError(
            f"ART got steps={steps}, partner={partner!r}, statistic={statistic!r}; steps is 0 or more, partner "
            "'smallest' or 'best', statistic 'channel_max' or 'peak_row'"
        )
    rows = channel_rows(x)
    m = rows.shape[0]
    rotation = torch.eye(m, dtype=torch.float64, device=x.device)  # rows of R^T: rotated exactly as those of x^T
    if m < 2:
        return rotation
    peaks, tokens = rows.abs().max(1)
    with fitting_threads(rows.numel()):
        for _ in range(steps):
            i, j, theta = _step(rows, peaks, tokens, partner, statistic)
            plane = _rotated(rows[[i, j]], theta)
            plane_peaks, plane_tokens = plane.abs().max(1)
            if not bool(plane_peaks.max() < peaks[i]):
                break
            rows[[i, j]] = plane
            peaks[[i, j]], tokens[[i, j]] = plane_peaks, plane_tokens
            rotation[[i, j]] = _rotated(rotation[[i, j]], theta)
    return rotation.T.contiguous()


def art_step(x: Tensor, partner: Partner = "smallest", statistic: Statistic = "channel_max") -> tuple[int, int, Tensor]:
    """Channels i, j and the angle theta (), float64, of art_rotation's first step on x (T, m), m at least 2."""
    rows = channel_rows(x)
    return _step(rows, *rows.abs().max(1), partner, statistic)


def art_angle(a: Tensor, b: Tensor) -> Tensor:
    """theta = atan2(b, a) - pi/4: x_i' = c a + s b and x_j' = -s a + c b both become sqrt(a^2 + b^2) / sqrt(2).

    No plane rotation leaves a smaller max(|x_i'|, |x_j'|), because a^2 + b^2 is kept.
    """
    return torch.atan2(b, a) - torch.pi / 4


def _step(
    rows: Tensor, peaks: Tensor, tokens: Tensor, partner: Partner, statistic: Statistic
) -> tuple[int, int, Tensor]:
    i = int(peaks.argmax())
    token = int(tokens[i])
    j = _best(rows, i, token) if partner == "best" else _smallest(rows, peaks, i, token, statistic)
    return i, j, art_angle(rows[i, token].double(), rows[j, token].double())


def _rotated(plane: Tensor, theta: Tensor) -> Tensor:
    """The two rows of plane, shape (2, T), rotated by theta."""
    c, s = theta.cos(), theta.sin()
    rotation = torch.stack([torch.stack([c, s]), torch.stack([-s, c])])
    return rotation.to(plane.dtype) @ plane


def _smallest(rows: Tensor, peaks: Tensor, i: int, token: int, statistic: Statistic) -> int:
    profile = peaks.clone() if statistic == "channel_max" else rows[:, token].abs()
    profile[i] = torch.inf
    return int(profile.argmin())


def _best(rows: Tensor, i: int, token: int) -> int:
    theta = art_angle(rows[i, token].double(), rows[:, token].double()).to(rows.dtype)
    c, s = theta.cos()[:, None], theta.sin()[:, None]
    first = (c * rows[i] + s * rows).abs().amax(1)
    second = (c * rows - s * rows[i]).abs().amax(1)
    peak = torch.maximum(first, second)
    peak[i] = torch.inf
    return int(peak.argmin())
