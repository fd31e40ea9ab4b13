"""Tensors of a quantized weight as compressed-tensors stores them."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.checkpoint.export.scheme import BYTES, PACKED
from sq.formats.activation import ActivationQuantizer
from sq.formats.grid import second_scale
from sq.formats.qtensor import QTensor


def weight_tensors(weight: QTensor, storage: str) -> dict[str, Tensor]:
    """Codes and scales of a weight (d_out, d_in) by name, as `storage` says (`sq.checkpoint.export.scheme.storage_of`).

    Integers: `weight_packed`, codes as int32 words without gaps, `weight_scale` (d_out, G) in float32 and
    `weight_shape`; as bytes: `weight` in int8 and `weight_scale`. MXFP4: `weight_packed`, two codes a byte, the first
    in the low nibble, and `weight_scale` as E8M0 bytes. NVFP4: the same with E4M3 scales, and the inverse of the second
    scale as `weight_global_scale` (1,).
    """
    if storage not in (PACKED, BYTES):
        packed = weight.pack()
        if weight.second is None:
            return {"weight_packed": packed.codes, "weight_scale": packed.scale}
        scale = packed.scale.view(torch.float8_e4m3fn)
        return {"weight_packed": packed.codes, "weight_scale": scale, "weight_global_scale": _inverse(weight.second)}
    from compressed_tensors.compressors import pack_to_int32

    plain = weight.unpack()
    if storage == BYTES:
        return {"weight": plain.codes, "weight_scale": plain.scale}
    return {
        "weight_packed": pack_to_int32(plain.codes, weight.format.bits),
        "weight_scale": plain.scale,
        "weight_shape": torch.tensor(weight.shape),
    }


def input_tensors(quantizer: ActivationQuantizer | None) -> dict[str, Tensor]:
    """What a linear stores of its activations: the inverse of a static second scale as `input_global_scale` (1,)."""
    if quantizer is None or quantizer.peak is None:
        return {}
    second = second_scale(torch.tensor([quantizer.peak]), quantizer.format)
    return {} if second is None else {"input_global_scale": _inverse(second)}


def _inverse(second: Tensor) -> Tensor:
    return second.reshape(1).reciprocal()
