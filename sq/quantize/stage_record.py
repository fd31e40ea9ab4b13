"""The activations of one site before its transform and after each part of it, kept for figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sq.errors import ConfigError
from sq.io import write_arrays
from sq.models.site_transform import SiteTransform
from sq.quantize.method import LayerView, Method
from sq.rotation import art_step, plane_rotation

STAGES = ("art", "urt")  # shown one by one where they are the last two of a method's order


@runtime_checkable
class Staged(Protocol):
    """A method whose rotation of each of `sites` is a sequence of stages, applied in `order`.

    `site_after` is the transform of a site with the first `stages` of `order` alone.
    """

    @property
    def order(self) -> Sequence[str]: ...

    @property
    def sites(self) -> Sequence[str]: ...

    def site_after(self, layer: LayerView, site: str, stages: int) -> SiteTransform: ...


class StageRecord:
    """Keeps what one site of one layer reads, before its transform and after two parts of it.

    The parts are ART and URT where the method's order ends with them; else the balance, and the rotation behind it.

    Args:
        method: the method of the run.
        layer, site, tokens: index of the layer, its site, and the most tokens that are kept, T.
        layers: number of layers of the model.

    Attributes:
        arrays: empty until the layer was seen. float32 (T, n): `before`, and `after_art`, `after_urt` or
            `after_balance`, `after_rotation`. Of the first step of ART at full width, on all calibration tokens:
            `givens_channels` (2,) int64, `givens_angle` (), and `givens_before`, `givens_after` (T, 2), the two
            channels of `before` and the same rotated by the angle.

    Raises:
        ConfigError: the method has no such stages or leaves the site alone, or the model has no such layer.
    """

    def __init__(self, method: Method, layer: int, site: str, tokens: int, *, layers: int) -> None:
        if not isinstance(method, Staged):
            shows = "task.activations shows a site after each part of its transform"
            shows += f"; method {method.name!r} has no parts"
            raise ConfigError([f"{shows}. Use method=singlequant, or method=ablation/art_then_urt for ART and URT"])
        if site not in method.sites:
            transformed = f"method {method.name!r} transforms {', '.join(method.sites)}"
            raise ConfigError([f"task.activations.site={site}; {transformed}"])
        if layer >= layers:
            raise ConfigError([f"task.activations.layer={layer}; the model has layers 0 to {layers - 1}"])
        self._method: Staged = method
        self._layer, self._site, self._tokens = layer, site, tokens
        self.arrays: dict[str, np.ndarray] = {}

    def see(self, view: LayerView) -> None:
        """Take the layer's view, where it is the wanted one.

        Raises:
            ConfigError: the site's rotation is folded into weights as a whole, so it has no stages of its own.
        """
        if view.index != self._layer:
            return
        site, count = self._site, len(self._method.order)
        names, first = ("after_art", "after_urt"), count - 1
        if tuple(self._method.order[-2:]) != STAGES:
            names, first = ("after_balance", "after_rotation"), 0
        parts = [self._method.site_after(view, site, stages) for stages in (first, count)]
        if parts[-1].online is None:
            folded = f"task.activations.site={site} has no rotation of its own under method.placement=folded"
            raise ConfigError([f"{folded}; use task.activations.site=down, or method.placement=online"])
        seen = view.statistics[site].tokens
        kept = seen[even_sample(seen, self._tokens)]
        i, j, theta = art_step(seen)
        plane = kept[:, [i, j]]
        found = {
            "before": kept,
            **{name: part.tokens(kept, site, view.dimensions) for name, part in zip(names, parts, strict=True)},
            "givens_angle": theta,
            "givens_before": plane,
            "givens_after": plane @ plane_rotation(2, 0, 1, theta).to(plane),
        }
        self.arrays = {name: value.float().cpu().numpy() for name, value in found.items()}
        self.arrays["givens_channels"] = np.array([i, j])

    def write(self, path: Path) -> None:
        """Write the arrays as an .npz file, atomically."""
        write_arrays(path, self.arrays)


def even_sample(x: Tensor, count: int) -> Tensor:
    """Indices of at most `count` rows of x (T, n), evenly spaced, the one nearest to the largest |entry| moved onto it.

    A massive outlier sits in few tokens: a figure of an even sample alone would seldom show it.
    """
    total = len(x)
    rows = torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().to(torch.int64)
    peak = int(x.abs().amax(1).argmax())
    rows[int((rows - peak).abs().argmin())] = peak
    return rows
