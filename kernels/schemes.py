"""The schemes of integer grids by name; formulas in grid.py. Imports no torch: configs are read without it."""

from __future__ import annotations

from typing import Literal

Scheme = Literal["symmetric", "asymmetric", "midrise"]
