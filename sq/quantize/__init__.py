"""One pass over a model: collect statistics, plan transforms, apply them, round weights.

`sq.quantize` is the function of sq/api.py, and this package as soon as one of its modules is loaded: hence a package
that can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from sq.api import quantize

        return quantize(*arguments, **options)


sys.modules[__name__].__class__ = _Package
