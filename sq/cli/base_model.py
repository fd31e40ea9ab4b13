"""The model that a packed folder was made from, in full precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from sq.cli.status import Mistake
from sq.config.compose import compose
from sq.config.settings import ModelSettings
from sq.models.place import EMBEDDED, PIP, RANDOM, is_hub_id
from sq.runs.build import load_model


def base_model(config: Any, path: str | None, device: str) -> PreTrainedModel:
    """The model behind a packed one, in memory, in the dtype that it was quantized from.

    Args:
        config: of the packed model; its recipe names the base.
        path: folder, GGUF file, pip:<distribution> or hub id; None takes what the recipe names.

    Raises:
        Mistake: the recipe names no model that can be found from here.
    """
    recipe = getattr(getattr(config, "quantization_config", None), "recipe", None)
    made = recipe.get("model") if isinstance(recipe, Mapping) else None
    if not isinstance(made, Mapping) or "path" not in made:
        raise Mistake("--compare needs a packed folder whose config.json says what it was made from; this one does not")
    named = str(made["path"])
    if path is None and not _found_by_name(named):
        raise Mistake(f"the folder was made from {named!r}, which lies elsewhere on this machine; give --compare PATH")
    settings = ModelSettings(**{**made, "path": path or named, "device": device})
    _, stream = load_model(settings, compose([]).paths.cache)
    same = ("hidden_size", "num_hidden_layers", "vocab_size")
    if wrong := [key for key in same if getattr(stream.config, key) != getattr(config, key)]:
        got, wanted = ([getattr(one, key) for key in wrong] for one in (stream.config, config))
        raise Mistake(f"--compare {path or named} is another model: its {', '.join(wrong)} are {got}, not {wanted}")
    return stream.assemble(list(stream.layers()), stream.embeddings_and_head())


def _found_by_name(path: str) -> bool:
    """Whether a recipe's path leads somewhere from any folder: of local folders and files it holds the names alone."""
    if path == RANDOM:
        return False
    return path == EMBEDDED or path.startswith(PIP) or is_hub_id(path)
