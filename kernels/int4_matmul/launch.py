# mypy: allow-untyped-calls
"""Arguments and launch parameters of the Triton kernels."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import triton
from torch import Tensor

from ..backend import interpreted, sm_count
from ..coded import Coded
from ..schemes import Scheme
from ..tuned.autotune import stored_autotune
from ..tuned.choice import fastest
from ..tuning import token_bucket
from . import tiles
from .takes import Form, workspace_obstacle
from .tiles import Launch, Shape
from .triton import decode_kernel, prefill_kernel
from .triton_workspace import widen_kernel, workspace_kernel

_FLIP = {"symmetric": 0, "midrise": 8, "asymmetric": -128}  # see halves() in triton_tile.py
# Added to the zeros of activations: packed unsigned nibbles become q - 8, mid-rise bytes q stand for q + 1/2.
_SHIFT = {("asymmetric", True): -8.0, ("midrise", False): -0.5}
_KERNELS: dict[Form, Any] = {"decode": decode_kernel, "prefill": prefill_kernel, "workspace": workspace_kernel}
_LAUNCHES: dict[Form, Any] = {
    "decode": tiles.decode_launches,
    "prefill": tiles.prefill_launches,
    "workspace": tiles.workspace_launches,
}
_TUNED = ("BLOCK_O", "BLOCK_T", "BLOCK_D", "SPLIT", "PROGRAMS_PER_SM")


def launch(
    x: Coded, w: Coded, x_scheme: Scheme, w_scheme: Scheme,
    bias: Tensor | None, residual: Tensor | None, out: Tensor, form: Form,
) -> None:  # fmt: skip
    """Arguments as for `int4_matmul_blocked`, with at least one token and a form that takes them."""
    packed = x.codes.dtype == torch.uint8
    codes = x.codes.flatten(1).view(torch.int8)
    codes = codes if codes.stride(1) == 1 else codes.contiguous()
    tokens, (d_out, row_bytes) = len(out), w.codes.shape
    weights = w.codes.contiguous().view(torch.int8)
    optional = (w.zero, w.sums, x.scale, x.zero, bias, residual)
    w_zero, w_sums, x_scale, x_zero, *added = (out if i is None else i.contiguous() for i in optional)
    # fmt: off
    meta: dict[str, Any] = {
        "T": tokens, "stride_x": codes.stride(0), "T_BUCKET": token_bucket(tokens),
        "D_IN": 2 * row_bytes, "D_OUT": d_out, "GROUP_B": row_bytes // w.scale.shape[1],
        "X_PACKED": packed, "X_FLIP": _FLIP[x_scheme] if packed else 0, "X_ASM": _unpacking(x_scheme) if packed else "",
        "W_FLIP": _FLIP[w_scheme], "W_ASM": _unpacking(w_scheme),
        "UNIT": 1 / 256 if packed else 1 / 16, "HAS_W_ZERO": w.zero is not None, "HAS_X_ZERO": x.zero is not None,
        "X_SHIFT": _SHIFT.get((x_scheme, packed), 0.0),
        "HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None,
    }
    # fmt: on
    pointers = [weights, w.scale.contiguous(), w_zero, w_sums, codes, x_scale, x_zero, *added, out]
    if form == "auto":
        form = _form(pointers, meta, workspace_obstacle(x, w) is None)
    _run(form, pointers, meta)


def _form(pointers: list[Tensor], meta: dict[str, Any], takes_workspace: bool) -> Form:
    """Decode for few tokens, else the faster of the two others: by the shape, timed once."""
    if meta["T"] <= tiles.DECODE_TOKENS:
        return "decode"
    if not takes_workspace or interpreted():  # the interpreter has no clock worth reading
        return "prefill"
    names = ("T_BUCKET", "D_IN", "D_OUT", "HAS_X_ZERO", "HAS_BIAS", "HAS_RESIDUAL")
    key = {name: meta[name] for name in names} | {"dtype": str(pointers[-1].dtype)}
    forms: tuple[Form, ...] = ("prefill", "workspace")
    with torch.cuda.device_of(pointers[-1]):
        return forms[fastest("int4_matmul form", key, [partial(_run, form, pointers, meta) for form in forms])]


def _run(form: Form, pointers: list[Tensor], meta: dict[str, Any]) -> None:
    weights, out = pointers[0], pointers[-1]
    tokens, d_out = out.shape
    with torch.cuda.device_of(out):  # Triton launches on the current device
        if form == "decode":
            meta = meta | {"T_BUCKET": tiles.decode_tokens(tokens)}
        shape, sms = _shape(meta), sm_count(out.device)
        launches = _LAUNCHES[form](shape, sms, interpreted())
        if form == "decode":
            entries = tiles.workspace_entries(launches, d_out)
            dtype = torch.float32 if shape.float_sums else torch.int32
            pointers = [*pointers, torch.empty(entries, dtype=dtype, device=out.device), _counters(out.device)]
        elif form == "workspace":
            _, w_scale, _, w_sums, *others = pointers
            pointers = [_widened(weights, meta), w_scale, w_sums, *others]

        def grid(config: dict[str, int]) -> tuple[int, ...]:
            tiles_o = triton.cdiv(d_out, config["BLOCK_O"])
            if form == "decode":
                return tiles_o, config["SPLIT"]
            return (min(tiles_o * triton.cdiv(tokens, config["BLOCK_T"]), sms * config["PROGRAMS_PER_SM"]),)

        kernel, config = _KERNELS[form], _config(launches[0], form).kwargs
        meta = {name: value for name, value in meta.items() if name in kernel.arg_names}
        if interpreted():  # nothing to tune, and no driver to tune with
            kernel[grid(config)](*pointers, **meta, **config)
        else:
            _tuned(form)[grid](*pointers, **meta)


def _widened(weights: Tensor, meta: dict[str, Any]) -> Tensor:
    """Bytes (d_out, d_in) of packed weights (d_out, d_in / 2), in one launch."""
    d_out, row_bytes = weights.shape
    wide = torch.empty(d_out, 2 * row_bytes, dtype=torch.int8, device=weights.device)
    block = min(triton.next_power_of_2(row_bytes), 2048)
    widen_kernel[(d_out, triton.cdiv(row_bytes, block))](
        weights, wide, D_B=row_bytes, W_FLIP=meta["W_FLIP"], W_ASM=meta["W_ASM"], BLOCK_D=block
    )
    return wide


@cache
def _tuned(form: Form) -> Any:
    """The kernel, tuned once for each shape, scheme and power-of-two bucket of tokens."""
    kernel = _KERNELS[form]
    items = {"decode": tiles.DECODE, "prefill": tiles.PREFILL, "workspace": tiles.WORKSPACE}[form]
    known = {_config(item, form): item for item in items}

    def prune(configs: list[triton.Config], named_args: dict[str, Any], **meta: Any) -> list[triton.Config]:
        weights = named_args["p_wide" if form == "workspace" else "p_w"]
        fitting = set(_LAUNCHES[form](_shape(meta), sm_count(weights.device)))
        return [config for config in configs if known[config] in fitting]

    key = [name for name in kernel.arg_names if name.isupper() and name not in ("T", *_TUNED)]
    return stored_autotune(kernel, configs=list(known), key=key, prune=prune)


def _config(item: Launch, form: Form) -> triton.Config:
    values = dict(zip(_TUNED, item[: len(_TUNED)], strict=True))
    if form != "decode":
        del values["SPLIT"]
    return triton.Config(values, num_warps=item.warps, num_stages=item.stages)


def _shape(meta: dict[str, Any]) -> Shape:
    row_bytes = meta["D_IN"] // 2
    group_bytes = meta.get("GROUP_B", row_bytes)  # what is not among a kernel's arguments it does not take
    float_sums = meta.get("HAS_W_ZERO", False) or group_bytes < row_bytes
    return Shape(meta["D_OUT"], row_bytes, group_bytes, meta["T_BUCKET"], meta.get("X_PACKED", False), float_sums)


def _unpacking(scheme: Scheme) -> str:
    """PTX of halves() for four bytes at a time: LLVM would take them one by one. 0x6A is (a & b) ^ c."""
    if interpreted():
        return ""
    flips = 0x01010101 * (_FLIP[scheme] & 0xFF)
    high = f"lop3.b32 $1, $2, 0xF0F0F0F0, {flips:#x}, 0x6A;"
    low = f"shl.b32 t, $2, 4; {high} lop3.b32 $0, t, 0xF0F0F0F0, {flips:#x}, 0x6A;"
    return f"{{ .reg .b32 t; {low} }}"


_shared_counters: dict[tuple[torch.device, int | None], Tensor] = {}


def _counters(device: torch.device) -> Tensor:
    """Zeros that every launch leaves as zeros: a set for each stream, and one for all CUDA graphs of a device."""
    cuda = device.type == "cuda"
    if cuda and torch.cuda.is_current_stream_capturing():
        found = _shared_counters.get((device, None))
        return _zeros(device) if found is None else found  # what a capture allocates must not be shared beyond it
    stream = torch.cuda.current_stream(device).cuda_stream if cuda else 0
    for owner in (None, stream):
        if (device, owner) not in _shared_counters:
            _shared_counters[device, owner] = _zeros(device)
    return _shared_counters[device, stream]


def _zeros(device: torch.device) -> Tensor:
    return torch.zeros(tiles.LARGEST_SPLIT_ROWS, dtype=torch.int32, device=device)
