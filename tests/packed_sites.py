"""A method with every kind of site, and activation quantizers, that packed layers are tested with."""

from __future__ import annotations

from quantizers import activation_quantizer
from recipes import folded

METHOD = folded(order=("orthogonal", "urt"), rank=3)
QUANTIZERS = {
    "symmetric": activation_quantizer(4),
    "searched": activation_quantizer(4, "midrise", clip="search"),
    "clipped ends": activation_quantizer(4, "asymmetric", clip=(0.9, 0.8)),
    "8 bits": activation_quantizer(8),
}
