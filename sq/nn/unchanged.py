"""Whether modules still hold the objects that something was prepared from, at 0.1 us each."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Unchanged:
    """Watches attributes of modules: plain ones, parameters, buffers and submodules.

    `nn.Module.__getattr__` takes 0.5 us an attribute; what is read here are the dictionaries behind it. A tensor must be
    the same object at the same address: moving a module gives its parameters new memory and keeps the objects.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[dict[str, Any], str, Any]] = []
        self._addresses: list[tuple[Tensor, int]] = []

    def watch(self, module: nn.Module, *names: str) -> None:
        """From now on, these attributes as they are."""
        places: list[dict[str, Any]] = [module.__dict__, module._modules, module._buffers, module._parameters]
        for name in names:
            holders = [place for place in places if place.get(name) is not None]
            value = getattr(module, name)
            if value is None:  # wherever it may be set
                self._entries += [(place, name, None) for place in places]
            else:
                self._entries.append((holders[0], name, value))
            if isinstance(value, Tensor):
                self._addresses.append((value, value.data_ptr()))

    def holds(self) -> bool:
        """Whether all are what they were."""
        for place, name, value in self._entries:
            if place.get(name) is not value:
                return False
        return all(tensor.data_ptr() == address for tensor, address in self._addresses)
