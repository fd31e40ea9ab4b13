"""One pass over a model: collect statistics, plan transforms, apply them, round weights.

`sq.quantize` is the function of sq/api.py, and this package as soon as one of its modules is loaded. So the package can
be called as well, and both ways of import give users the function.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("sq.api").quantize(*arguments, **options)  # above this room: looked up when it is called


sys.modules[__name__].__class__ = _Package
