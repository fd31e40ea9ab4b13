# mypy: allow-untyped-calls
"""Arguments and launch parameters of the Triton kernels."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..backend import interpreted, sm_count
from ..coded import Coded
from ..schemes import Scheme
from ..tuned.autotune import stored_autotune
from ..tuning import token_bucket
from . import tiles
from .tiles import Launch, Shape
from .triton import decode_kernel, prefill_kernel

_FLIP = {"symmetric": 0, "midrise": 8, "asymmetric": -128}  # see halves() in triton_tile.py
# Added to the zeros of activations: packed unsigned nibbles become q - 8, mid-rise bytes q stand for q + 1/2.
_SHIFT = {("asymmetric", True): -8.0, ("midrise", False): -0.5}
_TUNED = ("BLOCK_O", "BLOCK_T", "BLOCK_D", "SPLIT", "PROGRAMS_PER_SM")


def launch(
    x: Coded, w: Coded, x_scheme: Scheme, w_scheme: Scheme,
    bias: Tensor | None, residual: Tensor | None, out: Tensor, decode: bool,
) -> None:  # fmt: skip
    """Arguments as for `int4_matmul_blocked`, with at least one token; decode takes up to tiles.DECODE_TOKENS."""
    packed = x.codes.dtype == torch.uint8
    codes = x.codes.flatten(1).view(torch.int8)
    codes = codes if codes.stride(1) == 1 else codes.contiguous()
    tokens, (d_out, row_bytes) = len(out), w.codes.shape
    weights = w.codes.contiguous().view(torch.int8)
    optional = (w.zero, w.sums, x.scale, x.zero, bias, residual)
    w_zero, w_sums, x_scale, x_zero, *added = (out if i is None else i.contiguous() for i in optional)
    # fmt: off
    meta: dict[str, Any] = {
        "T": tokens, "stride_x": codes.stride(0),
        "T_BUCKET": tiles.decode_tokens(tokens) if decode else token_bucket(tokens),
        "D_IN": 2 * row_bytes, "D_OUT": d_out, "GROUP_B": row_bytes // w.scale.shape[1],
        "X_PACKED": packed, "X_FLIP": _FLIP[x_scheme] if packed else 0, "X_ASM": _unpacking(x_scheme) if packed else "",
        "W_FLIP": _FLIP[w_scheme], "W_ASM": _unpacking(w_scheme),
        "UNIT": 1 / 256 if packed else 1 / 16, "HAS_W_ZERO": w.zero is not None, "HAS_X_ZERO": x.zero is not None,
        "X_SHIFT": _SHIFT.get((x_scheme, packed), 0.0),
        "HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None,
    }
    # fmt: on
    pointers = [weights, w.scale.contiguous(), w_zero, w_sums, codes, x_scale, x_zero, *added, out]
    shape, sms = _shape(meta), sm_count(out.device)
    if decode:
        launches = tiles.decode_launches(shape, sms, interpreted())
        entries = tiles.workspace_entries(launches, d_out)
        dtype = torch.float32 if shape.float_sums else torch.int32
        pointers += [torch.empty(entries, dtype=dtype, device=out.device), _counters(out.device)]
    else:
        launches = tiles.prefill_launches(shape, sms, interpreted())

    def grid(config: dict[str, int]) -> tuple[int, ...]:
        tiles_o = triton.cdiv(d_out, config["BLOCK_O"])
        if decode:
            return tiles_o, config["SPLIT"]
        return (min(tiles_o * triton.cdiv(tokens, config["BLOCK_T"]), sms * config["PROGRAMS_PER_SM"]),)

    with torch.cuda.device_of(out):  # Triton launches on the current device
        if interpreted():  # nothing to tune, and no driver to tune with
            kernel, config = decode_kernel if decode else prefill_kernel, _config(launches[0], decode).kwargs
            kernel[grid(config)](*pointers, **meta, **config)
        else:
            _tuned(decode)[grid](*pointers, **meta)


@cache
def _tuned(decode: bool) -> Any:
    """The kernel, tuned once for each shape, scheme and power-of-two bucket of tokens."""
    kernel = decode_kernel if decode else prefill_kernel
    known = {_config(item, decode): item for item in (tiles.DECODE if decode else tiles.PREFILL)}

    def prune(configs: list[triton.Config], named_args: dict[str, Any], **meta: Any) -> list[triton.Config]:
        find = tiles.decode_launches if decode else tiles.prefill_launches
        fitting = set(find(_shape(meta), sm_count(named_args["p_w"].device)))
        return [config for config in configs if known[config] in fitting]

    key = [name for name in kernel.arg_names if name.isupper() and name not in ("T", *_TUNED)]
    return stored_autotune(kernel, configs=list(known), key=key, prune=prune)


def _config(item: Launch, decode: bool) -> triton.Config:
    values = dict(zip(_TUNED, item[: len(_TUNED)], strict=True))
    if not decode:
        del values["SPLIT"]
    return triton.Config(values, num_warps=item.warps, num_stages=item.stages)


def _shape(meta: dict[str, Any]) -> Shape:
    row_bytes, group_bytes = meta["D_IN"] // 2, meta["GROUP_B"]
    float_sums = meta["HAS_W_ZERO"] or group_bytes < row_bytes
    return Shape(meta["D_OUT"], row_bytes, group_bytes, meta["T_BUCKET"], meta["X_PACKED"], float_sums)


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
