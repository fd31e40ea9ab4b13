"""A toy format: 5-bit integers in groups of 8 with float16 scales. This file is all that a format needs."""

from __future__ import annotations

from sq.formats.elements import Integers
from sq.formats.format import Format, register
from sq.formats.scales import FLOAT16_SCALE

INT5G8 = register(Format("int5g8", Integers(5), group=8, scale=FLOAT16_SCALE))
