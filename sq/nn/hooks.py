"""The one place that exchanges modules of a decoder layer, hooks into them, and sets what stands before attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from sq.models.families import Family
from sq.nn.attention import AttentionInput
from sq.nn.site_input import SiteInput

_NAME = "attention_input"  # sq/models/attention.py looks it up on the module that calls the attention function


def replace_linear(layer: nn.Module, name: str, linear: nn.Module) -> None:
    """Put a module in the place of the linear at a path."""
    owner, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(owner), attribute, linear)


def attention_input(family: Family, layer: nn.Module) -> AttentionInput | None:
    """What a layer does to queries, keys and values in front of attention."""
    found = getattr(layer.get_submodule(family.attention), _NAME, None)
    return found if isinstance(found, AttentionInput) else None


def set_attention_input(family: Family, layer: nn.Module, new: AttentionInput | None) -> None:
    """Do this to queries, keys and values from now on; None: nothing."""
    owner = layer.get_submodule(family.attention)
    owner._modules.pop(_NAME, None)
    if new is not None:
        setattr(owner, _NAME, new)


@contextmanager
def with_attention_input(family: Family, layer: nn.Module, new: AttentionInput | None) -> Iterator[None]:
    """Do this to queries, keys and values inside the block; afterwards what was done before."""
    before = attention_input(family, layer)
    set_attention_input(family, layer, new)
    try:
        yield
    finally:
        set_attention_input(family, layer, before)


@contextmanager
def watched_sites(family: Family, layer: nn.Module, watchers: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Show the inputs (..., n) of sites to functions, inside the block; the linears are plain ones."""

    def hook(watch: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, arguments: watch(arguments[0])

    with ExitStack() as stack:
        for site, watch in watchers.items():
            first = layer.get_submodule(family.linears[site][0])
            stack.callback(first.register_forward_pre_hook(hook(watch)).remove)
        yield


@contextmanager
def mapped_sites(family: Family, layer: nn.Module, maps: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Put a map of its features (..., n) in front of each site's linears, once for all readers, inside the block."""

    def hook(shared: SiteInput) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda module, arguments: (shared(arguments[0]), *arguments[1:])

    with ExitStack() as stack:
        for site, apply in maps.items():
            names = family.linears[site]
            shared = SiteInput(None, _Function(apply), len(names))
            for name in names:
                stack.callback(layer.get_submodule(name).register_forward_pre_hook(hook(shared)).remove)
        yield


@contextmanager
def observed(inputs: Mapping[str, SiteInput], observers: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Show what the sites of a quantized layer hand to their quantizers, inside the block."""
    try:
        for site, observer in observers.items():
            inputs[site].observer = observer
        yield
    finally:
        for site in observers:
            inputs[site].observer = None


class SeenAll(Exception):
    """Ends a forward whose outputs nobody needs; see `up_to_the_last`."""


def up_to_the_last(observers: Mapping[str, Callable[[Tensor], None]]) -> dict[str, Callable[[Tensor], None]]:
    """The same observers, by site in the order of a forward; the last one ends the forward by `SeenAll`.

    A Llama's `down`, which is left out then, is a fifth of a layer's operations.
    """
    *before, (last, see) = observers.items()

    def see_and_end(x: Tensor) -> None:
        see(x)
        raise SeenAll

    return {**dict(before), last: see_and_end}


@contextmanager
def without_quantizers(family: Family, layer: nn.Module) -> Iterator[None]:
    """Run a quantized layer with its weights rounded and nothing else, inside the block."""
    sites = {module: module.quantizer for module in layer.modules() if isinstance(module, SiteInput)}
    with with_attention_input(family, layer, None):
        for site in sites:
            site.quantizer = None
        try:
            yield
        finally:
            for site, quantizer in sites.items():
                site.quantizer = quantizer


class _Function(nn.Module):
    """A function as a module, for `SiteInput`."""

    def __init__(self, apply: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.apply_to = apply

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_to(x)
