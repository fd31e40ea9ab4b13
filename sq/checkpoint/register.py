"""Register packed checkpoints with transformers once it is imported, and not before: `import sq` stays light."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

QUANT_METHOD = "singlequant"  # in config.json of a packed checkpoint
FORMAT = 3  # raised when a checkpoint of today could not be read as what it is tomorrow
WATCHED = "transformers.quantizers.auto"  # where transformers looks up how a checkpoint was quantized


def register() -> None:
    """Register now if transformers' quantizers are loaded, else right after they are."""
    if WATCHED in sys.modules:
        import_module("sq.checkpoint.hf")
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


class _Watcher(MetaPathFinder):
    """Stands in front of the other finders until the watched module is imported, once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(Loader):
    """Another loader, followed by our registration."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        import_module("sq.checkpoint.hf")
