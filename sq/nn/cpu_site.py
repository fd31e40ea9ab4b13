"""A site's steps as one compiled pass, for bfloat16 on a CPU; kept until the site's factors change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sq.formats.activation import ActivationQuantizer
from sq.formats.scales import FLOAT32_SCALE
from sq.kernels.coded import Coded
from sq.kernels.rotate_quantize import Norm
from sq.kernels.site_rows import RowForm, SiteRows, form_of, obstacle
from sq.nn.unchanged import Unchanged
from sq.rotation.transform import Transform

if TYPE_CHECKING:
    from sq.nn.site_input import SiteInput


class CpuSite:
    """The passes of one site, whose activations are like x (bfloat16, on the CPU).

    What no pass computes keeps its module: a transform of another form, between the passes in front of it and behind
    it, and the quantizer of another format or with a clip search, behind both.
    """

    def __init__(self, site: SiteInput, x: Tensor) -> None:
        transform, quantizer, own = site.transform, site.quantizer, site.norm
        assert isinstance(quantizer, ActivationQuantizer)
        self.quantizer = quantizer
        n, format, clip = x.shape[-1], quantizer.format, quantizer.clip
        form = RowForm() if transform is None else form_of(transform.steps(x), n)
        norm = None if own is None else Norm(own.eps, own.weight.detach())
        self.unchanged = Unchanged()
        self.unchanged.watch(site, "transform", "quantizer", "norm", "observer", "fused")
        for part in () if transform is None else transform.modules():
            self.unchanged.watch(part, *(["_casts"] if isinstance(part, Transform) else []))
        if own is not None:
            self.unchanged.watch(own, "weight")
        plain = format.scale is FLOAT32_SCALE and len(format.spans) == 1 and not isinstance(clip, str)
        self.fits = norm is None or norm.gain is None or norm.gain.dtype == x.dtype
        self.encodes = plain and obstacle(format, n) is None
        self.between = transform if form is None else None
        if format.scheme is None or n % 2:
            self.fits = False
            return
        ends = clip if isinstance(clip, tuple) else (1.0, 1.0)
        factor = clip if isinstance(clip, float | int) else 1.0
        settings = format.scheme, format.bits, float(factor), ends
        self.rows = SiteRows(n, norm, form or RowForm(), *settings)
        self.behind = self.rows if form is not None else SiteRows(n, None, RowForm(), *settings)

    def holds(self) -> bool:
        """Whether the site is as it was."""
        return self.unchanged.holds()

    @property
    def is_one_pass(self) -> bool:
        """Whether the compiled pass computes everything, norm to codes."""
        return self.fits and self.encodes and self.between is None

    def planes(self, x: Tensor, up: Tensor | None) -> Coded | None:
        """Codes of the site's input as int8 planes, float32 scales and zeros; None where the modules must make them."""
        if not self.fits:
            return None
        if self.is_one_pass:
            return self.rows.codes(x, up)
        y = self.rows.transformed(x, up)
        if self.between is not None:
            y = self.between(y)
        if self.encodes:
            return self.behind.codes(y)
        return as_planes(self.quantizer, y)


def as_planes(quantizer: ActivationQuantizer, y: Tensor) -> Coded:
    """Codes of y (..., n), n even, by the quantizer's own steps, as int8 planes (..., 2, n / 2)."""
    made = quantizer.encode(y)
    planes = made.codes.to(torch.int8).unflatten(-1, (-1, 2)).transpose(-1, -2).contiguous()
    return Coded(planes, made.scale, made.zero)
