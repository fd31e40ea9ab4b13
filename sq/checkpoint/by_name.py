"""What config.json says to a process that loads a packed folder by its name and has not imported this package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

# transformers takes `transformers_weights` for the name of the weights' file, and raises a ValueError that ends in it
# before it reads anything. The quantizer of this package takes it away first.
ADVICE = (
    "\n\n    pip install singlequant; import sq\n\n"
    "SingleQuant packed these weights. `import sq` before loading registers it with transformers; so does "
    "trust_remote_code=True, which runs load_singlequant.py of this folder"
)
MODULE = "load_singlequant.py"
KEYS = {"auto_map": {"AutoConfig": f"{MODULE.removesuffix('.py')}.PackedConfig"}, "transformers_weights": ADVICE}


def add_module(folder: Path) -> None:
    """Put the module that `auto_map` names into a folder."""
    shutil.copyfile(Path(__file__).with_name(MODULE), folder / MODULE)


def without_keys(config: PretrainedConfig) -> PretrainedConfig:
    """A model's config, in place, without what is said to others."""
    for key in KEYS:
        if hasattr(config, key):
            delattr(config, key)
    return config


def with_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json with what is said to others."""
    return {**config, **KEYS}
