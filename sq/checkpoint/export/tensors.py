"""Tensors of a quantized weight as compressed-tensors stores them."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.checkpoint.export.scheme import PACKED, storage_of
from sq.formats.activation import ActivationQuantizer
from sq.formats.grid import second_scale
from sq.formats.qtensor import QTensor


def weight_tensors(weight: QTensor) -> dict[str, Tensor]:
    """Codes and scales of a weight (d_out, d_in) by name: `weight_packed`, `weight_scale`, and `weight_shape`.

    Integers: codes as int32 words, packed without gaps, scales (d_out, G) in float32, and the shape. MXFP4: two codes a
    byte, the first in the low nibble, and scales as E8M0 bytes. NVFP4: the same with scales as E4M3 bytes, and the
    inverse of the second scale as `weight_global_scale` (1,).
    """
    if storage_of(weight.format) != PACKED:
        packed = weight.pack()
        if weight.second is None:
            return {"weight_packed": packed.codes, "weight_scale": packed.scale}
        scale = packed.scale.view(torch.float8_e4m3fn)
        return {"weight_packed": packed.codes, "weight_scale": scale, "weight_global_scale": _inverse(weight.second)}
    from compressed_tensors.compressors import pack_to_int32

    plain = weight.unpack()
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
