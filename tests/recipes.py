"""SingleQuant as tests build it from its parts: nothing but what they name."""

from __future__ import annotations

from typing import Any

from sq.methods.singlequant import SingleQuant

FOLDED: dict[str, Any] = {
    "order": ("hadamard", "urt"), "rank": 0, "mixing": "none", "block": 64, "brake": 1.0, "placement": "folded"
}  # fmt: skip


def folded(**changes: Any) -> SingleQuant:
    """The recipe of conf/method/singlequant_folded.yaml under the name of the default, with changes."""
    return SingleQuant(**{**FOLDED, **changes})
