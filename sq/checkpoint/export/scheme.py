"""Number formats in compressed-tensors' words, and why some have none. Nothing here imports torch."""

from __future__ import annotations

from typing import Any

from sq.errors import QuantizationError
from sq.formats.elements import E2M1, E4M3, FULL_RANGE
from sq.formats.format import Format

# How compressed-tensors stores weights.
PACKED, BYTES, MXFP4, NVFP4 = "pack-quantized", "int-quantized", "mxfp4-pack-quantized", "nvfp4-pack-quantized"
ACTIVATION_BITS = (4, 8)  # of integers that engines have products for


def storage_of(weights: Format, activations: Format | None) -> str:
    """How weights are stored: integers packed, but for those of 8 bits with 8-bit integer activations, which engines
    have read as bytes since before there were others; else by the name of the format."""
    if weights.grid is None:
        return NVFP4 if weights.second else MXFP4
    both = activations is not None and activations.grid is not None and weights.bits == activations.bits == 8
    return BYTES if both and weights.group is None else PACKED


def weight_arguments(format: Format) -> dict[str, Any]:
    """The fields of compressed-tensors' QuantizationArgs for weights of a format.

    Raises:
        QuantizationError: the format cannot be said; the reason, and the nearest that can.
    """
    if format.grid in ("symmetric", FULL_RANGE):  # any positive scale is one of theirs
        return {**_integers(format, "channel"), "dynamic": False}
    if _is_mxfp4(format):
        return {**_MXFP4, "dynamic": False}
    if _is_nvfp4(format):
        return {**_NVFP4, "dynamic": False}
    if format.second:
        reason = "engines read q, k and v (gate and up) as one weight with one second scale, and here each has its own"
        raise QuantizationError(f"weights in {format.name}: {reason}; write bits=nvfp4_static")
    if format.grid is not None:
        reason = (
            "its levels lie halfway between codes"
            if format.grid == "midrise"
            else "only weights without zero points are written"
        )
        raise QuantizationError(f"weights in the {format.grid} grid: {reason}; set weights.scheme=symmetric")
    raise QuantizationError(f"weights in {format.name}: integers and MXFP4 are written; set bits=w4a4 or bits=w4a16")


def activation_arguments(format: Format) -> dict[str, Any]:
    """The same for activations, which get their scales when they come.

    Raises:
        QuantizationError: as `weight_arguments`.
    """
    if format.grid is not None:
        if format.grid != FULL_RANGE:
            top = 2 ** (format.bits - 1)
            theirs = f"the format's scale is max|x| / {top - 0.5} with codes {-top}..{top - 1}"
            raise QuantizationError(f"activations in the {format.grid} grid: {theirs}; set activations=full_range")
        if format.bits not in ACTIVATION_BITS:
            raise QuantizationError(
                f"activations of {format.bits} bits: engines multiply integers of 4 and 8 bits; set bits=w4a4 or w4a8"
            )
        return {**_integers(format, "token"), "dynamic": True}
    if format.element == E4M3 and format.group is None:
        return {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token"}
    if _is_mxfp4(format):
        if format.scale.up_from != 1.75:
            reason = "the format rounds a group's scale up from 1.75 times a power of two on"
            raise QuantizationError(f"activations in {format.name}: {reason}; write bits=mxfp4_up")
        return {**_MXFP4, "dynamic": True}
    if _is_nvfp4(format):
        return {**_NVFP4, "dynamic": "local"}
    if format.second:
        reason = "the format has one second scale a linear, from calibration, and here each token brings its own"
        raise QuantizationError(f"activations in {format.name}: {reason}; write bits=nvfp4_static")
    raise QuantizationError(
        f"activations in {format.name}: 4 or 8-bit integers, fp8 and mxfp4_up are written; set bits=w4a4 or bits=w4a8"
    )


def pair_obstacle(weights: Format, activations: Format | None) -> str | None:
    """Why no engine multiplies these two formats, or None."""
    if activations is None:
        return None
    both_fp4 = weights.element == activations.element == E2M1 and weights.group == activations.group
    if both_fp4 or (weights.grid is not None and activations.element != E2M1):
        return None
    return (
        f"weights in {weights.name} with activations in {activations.name}: engines have no such product; set "
        "bits=w4a4, w4a8, w4afp8 or w4a16, bits=mxfp4_up or bits=nvfp4_static"
    )


_MXFP4 = {
    "num_bits": 4,
    "type": "float",
    "symmetric": True,
    "strategy": "group",
    "group_size": 32,
    "scale_dtype": "torch.uint8",
    "zp_dtype": "torch.uint8",
}


_NVFP4 = {
    "num_bits": 4,
    "type": "float",
    "symmetric": True,
    "strategy": "tensor_group",
    "group_size": 16,
    "scale_dtype": "torch.float8_e4m3fn",
    "zp_dtype": "torch.float8_e4m3fn",
}


def _integers(format: Format, row: str) -> dict[str, Any]:
    """Bits, and who shares a scale: a `row`, or each group of it."""
    shared = {"strategy": row} if format.group is None else {"strategy": "group", "group_size": format.group}
    return {"num_bits": format.bits, "type": "int", "symmetric": True, **shared}


def _is_mxfp4(format: Format) -> bool:
    return format.element == E2M1 and format.group == 32 and format.scale.is_power


def _is_nvfp4(format: Format) -> bool:
    return format.element == E2M1 and format.group == 16 and format.scale.name == "e4m3" and format.static
