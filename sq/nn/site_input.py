"""What the linears of one site read: norm or gate in front -> transform -> activation quantizer, computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sq.formats.activation import ActivationQuantizer
from sq.formats.format import Format
from sq.formats.qtensor import QTensor
from sq.kernels.block_product import block_product
from sq.kernels.block_product import form_of as block_form
from sq.kernels.coded import Coded
from sq.kernels.compiled import Prepared
from sq.kernels.rms_norm import rms_norm
from sq.kernels.rotate_quantize import Norm, form_of, obstacle, rotate_quantize
from sq.kernels.schemes import Scheme
from sq.kernels.site_rows import runs
from sq.nn.cpu_site import CpuSite, as_planes
from sq.rotation.transform import Transform


class DeferredNorm(nn.Module):
    """The RMSNorm of gain `weight` (n,) in front of a site, which the site computes: forward hands its input on.

    Between norm and linears a decoder layer does nothing, so the site can read the residual stream once for the norm,
    the rotation and the codes.
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        return x

    def apply_to(self, x: Tensor) -> Tensor:
        """x / sqrt(mean(x^2) + eps) times the gain: float32, rounded to x's dtype in front of the gain."""
        return rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}, computed by the site"


class SiteInput(nn.Module):
    """Transform and quantize the activations of one site, once for all linears that read it.

    Args:
        transform, quantizer: applied online, each or None.
        readers: number of linears that read the site; the result is kept until the last has it.

    Attributes:
        norm: computed in front of the transform, or None. A submodule of the decoder layer, not of this one.
        fused: whether `packed` computes all steps in one kernel of float32 sums, which may put an activation into the
            neighbouring cell. None: on a GPU; on a CPU bfloat16 takes the compiled passes of sq/nn/cpu_site.py. False:
            module by module.
    """

    norm: DeferredNorm | None

    def __init__(self, transform: Transform | None, quantizer: nn.Module | None, readers: int) -> None:
        super().__init__()
        self.transform, self.quantizer, self.readers = transform, quantizer, readers
        self.fused: bool | None = None
        self.observer: Callable[[Tensor], None] | None = None
        self.__dict__["norm"] = None
        self._kept: tuple[Tensor, Any, int] | None = None
        self._prepared: Prepared[CpuSite] = Prepared()

    def defer(self, norm: DeferredNorm) -> None:
        """Compute this norm from now on; it stays where it is in the decoder layer, for state dicts and devices."""
        self.__dict__["norm"] = norm

    def forward(self, x: Tensor, up: Tensor | None = None) -> Tensor:
        """Fake-quantized f(x) T, shape (..., n), dtype of x; f is the norm, or silu(x) up, or nothing."""

        def fake() -> Tensor:
            y = self._transformed(x, up)
            return y if self.quantizer is None else self.quantizer(y)

        result: Tensor = self._once(x, fake)
        return result

    def encoded(self, x: Tensor, up: Tensor | None = None) -> QTensor:
        """Codes and scales of f(x) T (..., n); the quantizer must be an `ActivationQuantizer`."""
        quantizer = self.quantizer
        assert isinstance(quantizer, ActivationQuantizer)
        result: QTensor = self._once(x, lambda: quantizer.encode(self._transformed(x, up)))
        return result

    def packed(self, x: Tensor, up: Tensor | None = None) -> Coded:
        """The same as int8 planes (..., 2, n / 2), what `int4_matmul` reads without rearranging; n even, no groups."""
        result: Coded = self._once(x, lambda: self._planes(x, up))
        return result

    def on_cpu(self, x: Tensor, up: Tensor | None) -> CpuSite | None:
        """The compiled passes of this site, made once; None for activations that they do not take."""
        if self.fused is not None or self.observer is not None or not runs(x, up):
            return None
        site = self._prepared.value
        if site is None or not site.holds():
            site = self._prepared.value = CpuSite(self, x)
        return site

    def _once(self, x: Tensor, quantize: Callable[[], Any]) -> Any:
        if self._kept is not None and self._kept[0] is x:
            source, result, left = self._kept
            self._kept = (source, result, left - 1) if left > 1 else None
            return result
        result = quantize()
        # Full readers within one forward see the very same tensor; identity is the safe key.
        self._kept = (x, result, self.readers - 1) if self.readers > 1 else None
        return result

    def _transformed(self, x: Tensor, up: Tensor | None) -> Tensor:
        if self.norm is not None:
            x = self.norm.apply_to(x)
        if up is not None:
            x = nn.functional.silu(x) * up
        transformed = x if self.transform is None else _transform(self.transform, x)
        if self.observer is not None:
            self.observer(transformed)
        return transformed

    def _planes(self, x: Tensor, up: Tensor | None) -> Coded:
        quantizer = self.quantizer
        assert isinstance(quantizer, ActivationQuantizer)
        if (site := self.on_cpu(x, up)) is not None and (planes := site.planes(x, up)) is not None:
            return planes
        fused = x.is_cuda if self.fused is None else self.fused
        if not fused or obstacle(quantizer.format) is not None:
            return as_planes(quantizer, self._transformed(x, up))
        form = form_of(() if self.transform is None else self.transform.steps(x))
        norm = None if self.norm is None else Norm(self.norm.eps, self.norm.weight.detach())
        if form is None:  # a transform that the kernel has no form for: it quantizes behind
            x, up, norm, form = self._transformed(x, up), None, None, (None, None, None)
        r1, r2, balance = form
        return rotate_quantize(
            x,
            r1,
            r2,
            scheme=scheme_of(quantizer.format),
            clip=quantizer.clips,
            ends=quantizer.clip if isinstance(quantizer.clip, tuple) else (1.0, 1.0),
            norm=norm,
            up=up,
            balance=balance,
            container="int8_planes",
        )


def _transform(transform: Transform, x: Tensor) -> Tensor:
    """x T; low rank and blocks in one launch on a GPU."""
    if x.is_cuda and not (x.requires_grad and torch.is_grad_enabled()):
        form = block_form(transform.steps(x))
        if form is not None:
            return block_product(x, *form)
    return transform(x)  # type: ignore[no-any-return]


def scheme_of(format: Format) -> Scheme:
    """The scheme of a format that kernels of integers take."""
    assert format.scheme is not None
    return format.scheme
