"""Whether modules still hold the objects that something was prepared from, at 0.1 us each."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_GONE = object()  # a name moves to another dictionary where None gives way to a module


class Unchanged:
    """Watches attributes of modules: plain ones, parameters, buffers and submodules.

    `nn.Module.__getattr__` takes 0.5 us an attribute; what is read here are the dictionaries behind it. A tensor must
    be the same object at the same address: moving a module gives its parameters new memory and keeps the objects.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[dict[str, Any], str, Any]] = []
        self._addresses: list[tuple[Tensor, int]] = []

    def watch(self, module: nn.Module, *names: str) -> None:
        """From now on, these attributes as they are."""
        places: list[dict[str, Any]] = [module.__dict__, module._modules, module._buffers, module._parameters]
        for name in names:
            place = next(place for place in places if name in place)
            value = place[name]
            self._entries.append((place, name, value))
            if isinstance(value, Tensor):
                self._addresses.append((value, value.data_ptr()))

    def holds(self) -> bool:
        """Whether all are what they were."""
        for place, name, value in self._entries:
            if place.get(name, _GONE) is not value:
                return False
        for tensor, address in self._addresses:  # noqa: SIM110  (a generator takes twice as long)
            if tensor.data_ptr() != address:
                return False
        return True
