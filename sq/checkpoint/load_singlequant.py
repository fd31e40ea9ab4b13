"""A copy of this file is in every packed folder: transformers runs it under `trust_remote_code=True`, and never else.

It imports the package that reads the folder, which then registers itself with transformers.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

try:  # transformers would name a package after the module: `pip install sq` is another one
    from sq.checkpoint.register import register
except ImportError as error:
    raise ImportError("pip install singlequant; import sq\n\nThe package that reads this model is missing.") from error

register()


class PackedConfig(PretrainedConfig):
    """What `auto_map` in config.json names: reading it gives the config of the model's own family."""

    @classmethod
    def from_pretrained(cls, name: Any, **others: Any) -> Any:  # type: ignore[override]
        """As `AutoConfig.from_pretrained` without code of the folder."""
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **others)
