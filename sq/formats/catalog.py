"""The formats that labels and files know by name. A format in a file of its own is imported here."""

from __future__ import annotations

from sq.formats.elements import E2M1, E4M3, Integers
from sq.formats.format import Format, register
from sq.formats.scales import E4M3_SCALE, E8M0_SCALE, E8M0_UP_SCALE, FLOAT16_SCALE

# OCP Microscaling Formats (MX) v1.0: groups of 32 with a power of two for scale.
MXFP4 = register(Format("mxfp4", E2M1, group=32, scale=E8M0_SCALE))
# The same, scales rounded up from 1.75 times a power of two on: what vLLM and compressed-tensors make of activations.
MXFP4_UP = register(Format("mxfp4_up", E2M1, group=32, scale=E8M0_UP_SCALE))
MXFP8 = register(Format("mxfp8", E4M3, group=32, scale=E8M0_SCALE))
# NVFP4 (NVIDIA Blackwell): groups of 16 with a scale in E4M3, and a float32 scale on top.
NVFP4 = register(Format("nvfp4", E2M1, group=16, scale=E4M3_SCALE, second=True))
# Four over six: each group maps its largest entry to 6 or to 4, whichever has the smaller error.
NVFP4_46 = register(Format("nvfp4_46", E2M1, group=16, scale=E4M3_SCALE, second=True, spans=(1.0, 1.5)))
# The second scales that engines have: one a site for its weights, and one from calibration for its activations.
NVFP4_STATIC = register(Format("nvfp4_static", E2M1, group=16, scale=E4M3_SCALE, second=True, static=True))
FP8 = register(Format("fp8", E4M3))
FP8_TENSOR = register(Format("fp8_tensor", E4M3, tensor=True))
INT4G16 = register(Format("int4g16", Integers(4, "symmetric"), group=16, scale=FLOAT16_SCALE))
INT4G32 = register(Format("int4g32", Integers(4, "symmetric"), group=32, scale=FLOAT16_SCALE))
