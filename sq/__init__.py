"""SingleQuant: 4-bit weights and activations in one gradient-free pass, beside the baselines to compare with."""

from __future__ import annotations

__version__ = "0.1.0"
