"""SingleQuant: 4-bit weights and activations in one gradient-free pass, beside the baselines to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sq.checkpoint.register import register

if TYPE_CHECKING:
    from sq.api import Quantized as Quantized
    from sq.api import quantize as quantize
    from sq.checkpoint.hub import push_to_hub as push_to_hub
    from sq.checkpoint.packed_folder import save_packed as save_packed
    from sq.nn.kv_cache import Int4Cache as Int4Cache

__version__ = "0.1.0"
__all__ = ["Int4Cache", "Quantized", "push_to_hub", "quantize", "save_packed"]

register()


def __getattr__(name: str) -> Any:
    """Load the API when it is first used: `import sq` alone must not pull in torch."""
    if name == "Int4Cache":
        from sq.nn.kv_cache import Int4Cache

        return Int4Cache
    if name == "push_to_hub":
        from sq.checkpoint.hub import push_to_hub

        return push_to_hub
    if name == "save_packed":
        from sq.checkpoint.packed_folder import save_packed

        return save_packed
    if name in __all__:
        from sq import api

        return getattr(api, name)
    raise AttributeError(f"module 'sq' has no attribute {name!r}; it offers {', '.join(__all__)}")
