"""Tensors of a quantized weight as compressed-tensors stores them."""

from __future__ import annotations

import torch
from torch import Tensor

from sq.checkpoint.export.scheme import PACKED, storage_of
from sq.formats.qtensor import QTensor


def weight_tensors(weight: QTensor) -> dict[str, Tensor]:
    """Codes and scales of a weight (d_out, d_in) by name: `weight_packed`, `weight_scale`, and `weight_shape`.

    Integers: codes as int32 words, packed without gaps, scales (d_out, G) in float32, and the shape. MXFP4: two codes a
    byte, the first in the low nibble, and scales as E8M0 bytes.
    """
    if storage_of(weight.format) != PACKED:
        packed = weight.pack()
        return {"weight_packed": packed.codes, "weight_scale": packed.scale}
    from compressed_tensors.compressors import pack_to_int32

    plain = weight.unpack()
    return {
        "weight_packed": pack_to_int32(plain.codes, weight.format.bits),
        "weight_scale": plain.scale,
        "weight_shape": torch.tensor(weight.shape),
    }
