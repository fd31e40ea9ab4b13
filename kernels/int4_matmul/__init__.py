"""Products of packed 4-bit weights and quantized activations; derivation in README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import check_choice, check_tensor
from ..backend import Backend, picks_triton
from ..coded import Coded, HasCodes
from ..schemes import Scheme
from .blocked import int4_matmul_blocked
from .cpu_weight import CpuWeight
from .planes import int8_planes, weight_sums
from .reference import int4_matmul_reference
from .takes import LARGEST_D_IN, Form, obstacle, workspace_obstacle
from .tiles import DECODE_TOKENS

__all__ = ["CpuWeight", "Form", "int4_matmul", "int4_matmul_reference", "int8_planes", "obstacle", "weight_sums"]

_OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)


@torch.no_grad()
def int4_matmul(
    x: HasCodes, w: Coded, *, x_scheme: Scheme = "symmetric", w_scheme: Scheme = "symmetric",
    bias: Tensor | None = None, residual: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16, out: Tensor | None = None, form: Form = "auto", backend: Backend = "auto",
) -> Tensor:  # fmt: skip
    """y = X W^T + bias + residual for X and W that stand for codes: int32 sums, the rest float32, rounded once.

    Args:
        x: of tokens (...), as `rotate_quantize` writes them: codes uint8 (..., d_in / 2), int8 (..., 2, d_in / 2)
            or int8 (..., d_in), which the Triton kernel rearranges; scale (..., 1); zero (..., 1) for asymmetric, else
            None. Symmetric int8 codes may take all 8 bits, others 4.
        w: codes uint8 (d_out, d_in / 2), d_in even: code 2j in the low nibble of byte j, 2j + 1 in the high one; the
            torch backend also takes int8 (d_out, 2, d_in / 2) of `int8_planes`. scale (d_out, G), float32, float16 or
            bfloat16, for groups of an even number d_in / G of consecutive features. zero (d_out, G) of any of these
            dtypes for asymmetric, else None. sums (d_out,) float32 of `weight_sums`: needed where the activations have
            zeros, and by the Triton kernel for mid-rise activations in int8.
        bias, residual: (d_out,) and (..., d_out), any floating dtype.
        dtype: of the result without `out`: bfloat16, float16 or float32.
        out: (..., d_out), contiguous, written and returned; not the residual, since tuning runs a kernel repeatedly.
            With it, and after a first call that tunes, a CUDA graph can capture the call; graphs of one device that
            hold decode calls must not run at the same time.
        form: of the Triton kernel: "decode", up to 64 tokens; "prefill"; "workspace", for int8 activations and weights
            without zeros and groups, which takes d_out d_in bytes while it runs. "auto" is decode up to 64 tokens, and
            beyond them the faster of the two others, timed at the first call of a shape.
        backend: "auto" | "torch" | "triton", see sq/kernels/backend.py.

    Raises:
        ValueError: shapes, dtypes, devices, zeros or sums that do not fit together, groups that d_in does not hold or
            of an odd size, d_in beyond 131,070, an unknown scheme, form or backend, or backend="triton" where it cannot
            run.
    """
    tokens = x.scale.shape[:-1]
    d_out, d_in = len(w.codes), 2 * w.codes.shape[-1]
    _check_weight(w, w_scheme)
    _check_activations(x, x_scheme, w)
    check_choice("form", form, Form)
    count = tokens.numel()
    if form == "decode" and count > DECODE_TOKENS:
        raise ValueError(f'form="decode" got {count} tokens; it takes up to {DECODE_TOKENS}, form="prefill" any number')
    if form == "workspace" and (reason := workspace_obstacle(x, w)) is not None:
        raise ValueError(f'form="workspace" does not take these operands: {reason}; use form="prefill" or "auto"')
    out = _checked_output((*tokens, d_out), w.codes.device, dtype, out, bias, residual)
    triton = picks_triton(backend, x.scale, _kernel_obstacle(x, w, x_scheme))
    if out.numel() == 0:
        return out

    if x.codes.dtype == torch.uint8:
        codes = x.codes.reshape(count, d_in // 2)
    elif x.codes.shape == (*tokens, d_in):
        codes = x.codes.reshape(count, d_in // 2, 2).transpose(1, 2).contiguous()
    else:
        codes = x.codes.reshape(count, 2, d_in // 2)
    rows = Coded(codes, x.scale.reshape(count, 1), None if x.zero is None else x.zero.reshape(count, 1))
    others = None if residual is None else residual.reshape(count, d_out)
    arguments = (rows, w, x_scheme, w_scheme, bias, others, out.view(count, d_out))
    if triton:
        from .launch import launch

        launch(*arguments, form)
    else:
        int4_matmul_blocked(*arguments)
    return out


def _kernel_obstacle(x: HasCodes, w: Coded, x_scheme: Scheme) -> str | None:
    """Why the Triton kernel does not take these, or None."""
    if w.codes.dtype != torch.uint8:
        return "it takes packed weights, not int8 ones"
    if x.codes.dtype == torch.int8 and x_scheme == "midrise" and w.sums is None:
        return "mid-rise activations in int8 need the sums of the weight (w.sums = weight_sums(w, w_scheme))"
    return None


def _check_weight(w: Coded, scheme: str) -> None:
    check_choice("w_scheme", scheme, Scheme)
    packed = w.codes.dtype == torch.uint8 and w.codes.dim() == 2
    planes = w.codes.dtype == torch.int8 and w.codes.dim() == 3 and w.codes.shape[1] == 2
    if not (packed or planes) or w.codes.shape[-1] == 0:
        raise ValueError(
            f"w.codes is {w.codes.dtype} {tuple(w.codes.shape)}; it must be uint8 (d_out, d_in / 2), two codes a byte, "
            "or int8 (d_out, 2, d_in / 2) of int8_planes, with an even d_in > 0"
        )
    d_out, d_in = len(w.codes), 2 * w.codes.shape[-1]
    if d_in > LARGEST_D_IN:
        raise ValueError(f"d_in is {d_in}; int32 sums are exact up to {LARGEST_D_IN}: split the features")
    groups = w.scale.shape[1] if w.scale.dim() == 2 else 0
    if groups == 0 or w.scale.shape[0] != d_out or d_in % groups or (d_in // groups) % 2:
        raise ValueError(
            f"w.scale is {tuple(w.scale.shape)}; it must be ({d_out}, G) with groups of an even number d_in / G of "
            f"features, d_in = {d_in}"
        )
    _check_zero("w", w.zero, w.scale, scheme)
    check_tensor("w.sums", w.sums, (d_out,), (torch.float32,), w.codes.device, of="w.codes")


def _check_activations(x: HasCodes, scheme: str, w: Coded) -> None:
    check_choice("x_scheme", scheme, Scheme)
    tokens, d_in = x.scale.shape[:-1], 2 * w.codes.shape[-1]
    if x.scale.dim() == 0 or x.scale.shape[-1] != 1 or not x.scale.is_floating_point():
        raise ValueError(f"x.scale is {x.scale.dtype} {tuple(x.scale.shape)}; it must be floating-point (..., 1)")
    shapes = {torch.uint8: [(*tokens, d_in // 2)], torch.int8: [(*tokens, d_in), (*tokens, 2, d_in // 2)]}
    if tuple(x.codes.shape) not in shapes.get(x.codes.dtype, []):
        raise ValueError(
            f"x.codes is {x.codes.dtype} {tuple(x.codes.shape)}; for d_in = {d_in} and a scale of "
            f"{tuple(x.scale.shape)} it must be uint8 {(*tokens, d_in // 2)}, two codes a byte, or int8 "
            f"{(*tokens, d_in)} or {(*tokens, 2, d_in // 2)}"
        )
    _check_zero("x", x.zero, x.scale, scheme)
    if x.zero is not None and w.sums is None:
        raise ValueError("activations with zeros need w.sums; compute weight_sums(w, w_scheme) once")
    parts = {"x.codes": x.codes, "x.scale": x.scale, "x.zero": x.zero, "w.scale": w.scale, "w.zero": w.zero}
    for name, tensor in parts.items():
        if tensor is not None and tensor.device != w.codes.device:
            raise ValueError(f"{name} is on {tensor.device} and w.codes on {w.codes.device}; use one device")


def _check_zero(name: str, zero: Tensor | None, scale: Tensor, scheme: str) -> None:
    if (zero is not None) != (scheme == "asymmetric"):
        raise ValueError(
            f"{name}.zero is {'given' if zero is not None else 'None'} for {name}_scheme={scheme!r}; asymmetric codes "
            "have one, others none"
        )
    if zero is not None and zero.shape != scale.shape:
        raise ValueError(f"{name}.zero is {tuple(zero.shape)}; it must be as {name}.scale, {tuple(scale.shape)}")


def _checked_output(
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    out: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """What is written; bias and residual checked as well."""
    check_tensor("bias", bias, shape[-1:], None, device, of="w.codes")
    check_tensor("residual", residual, shape, None, device, of="w.codes")
    dtype = dtype if out is None else out.dtype
    if dtype not in _OUTPUTS:
        raise ValueError(f"the output is {dtype}; use one of {', '.join(map(str, _OUTPUTS))}")
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device)
    check_tensor("out", out, shape, (dtype,), device, of="w.codes", contiguous=True)
    if residual is not None and out.data_ptr() == residual.data_ptr() and out.numel():
        raise ValueError("out is the residual; use another buffer: tuning runs a kernel repeatedly")
    return out
