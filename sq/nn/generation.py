"""`generate` of a model with 4-bit keys and values keeps them in int4."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from sq.nn.kv_cache import Int4Cache, int4_obstacle

_HOOK = "_prepare_cache_for_generation"
_NAMES = ("cache", "past_key_values")  # of the argument: transformers 5.24 and later, and before


@cache
def cache_argument(forward: Callable[..., Any]) -> str:
    """What the forward of a class of models calls the cache that it is given."""
    taken = inspect.signature(forward).parameters
    return next(name for name in _NAMES if name in taken)


def generate_in_int4(model: PreTrainedModel) -> None:
    """Have `generate` make an `Int4Cache` where it would make a DynamicCache, if the model has a use for one.

    The caller's own choice is left alone: a cache of their own, `cache_implementation`, `use_cache=False`, and
    assisted generation. Keys and values that are not both of 4 bits stay in floating point, in transformers' cache.
    """
    if int4_obstacle(model) is None:
        setattr(model, _HOOK, _PrepareCache(model))


class _PrepareCache:
    """Stands before one model's `_prepare_cache_for_generation`, the one place where `generate` chooses a cache.

    It is set on the instance, so that other models keep theirs. The model is referenced weakly: in a cycle with it, a
    deleted model would keep its memory until the garbage collector comes by.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = weakref.ref(model)

    def __reduce__(self) -> tuple[type[_PrepareCache], tuple[PreTrainedModel | None]]:
        """A copied or unpickled model has a hook of its own."""
        return type(self), (self.model(),)

    def __call__(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        model = self.model()
        assert model is not None, "the model calls this itself"
        given = [model_kwargs.get(name) for name in _NAMES]
        prepare = getattr(type(model), _HOOK)
        prepare(model, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)
        made = next((name for name in _NAMES if type(model_kwargs.get(name)) is DynamicCache), None)
        own_choice = given == [None, None] and generation_config.cache_implementation is None
        assisted = generation_mode == GenerationMode.ASSISTED_GENERATION or generation_config.is_assistant
        if made is not None and own_choice and not assisted and int4_obstacle(model) is None:
            model_kwargs[made] = Int4Cache(model, most=max_cache_length)
