"""Where settings become objects: the model, the method, and all quantizers of a run."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sq.config.settings import ActivationSettings, ExperimentSettings, MethodSettings, ModelSettings, WeightSettings
from sq.errors import CheckpointError, ConfigError
from sq.formats.activation import ActivationQuantizer
from sq.formats.weight import WeightQuantizer
from sq.models.random_source import RandomSource
from sq.models.source import model_folder
from sq.models.stream import DecoderStream
from sq.quantize.method import Method
from sq.quantize.recipe import Recipe, WeightRecipe


def load_model(model: ModelSettings, cache: Path) -> tuple[PreTrainedTokenizerBase | None, DecoderStream]:
    """Tokenizer and layer stream of a model: the embedded one, a local folder, a hub id, or one with random weights,
    which has no tokenizer."""
    dtype, device = torch_dtype(model.dtype), pick_device(model.device)
    if model.architecture is not None:
        return None, DecoderStream(RandomSource(model.architecture, device=device), dtype=dtype, device=device)
    if model.path == "embedded":
        from sq.embedded.model_folder import embedded_checkpoint

        folder = embedded_checkpoint(cache, outliers=model.outliers, strength=model.outlier_strength)
    else:
        folder = model_folder(model.path, model.revision)
    stream = DecoderStream(folder, dtype=dtype, device=device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no tokenizer that transformers can load: {error}") from error
    return tokenizer, stream


def build_method(settings: MethodSettings) -> Method:
    """Instantiate a method from its class path and typed arguments.

    Raises:
        ConfigError: the class is missing, refuses the arguments, or is not a `Method`.
    """
    module, _, name = settings.target.rpartition(".")
    try:
        built = getattr(import_module(module), name)(name=settings.name, **settings.arguments)
    except (ImportError, AttributeError) as error:
        raise ConfigError([f"method._target_={settings.target!r} cannot be imported: {error}"]) from error
    except (TypeError, ValueError) as error:
        raise ConfigError([f"method {settings.name!r} refuses its arguments: {error}"]) from error
    if not isinstance(built, Method):
        raise ConfigError([f"{settings.target} is not a subclass of sq.quantize.method.Method"])
    return built


def recipe(settings: ExperimentSettings, head_dim: int) -> Recipe:
    """All quantizers of a run; inside attention a head is a group of its own."""
    bits = settings.bits
    inside = replace(settings.kv_cache, group_size=settings.kv_cache.group_size or head_dim)
    return Recipe(
        weight_recipe(settings.weights, int(bits.weights)),
        activation_quantizer(settings.activations, int(bits.activations)),
        queries=activation_quantizer(inside, int(bits.queries)),
        keys=activation_quantizer(inside, int(bits.keys)),
        values=activation_quantizer(inside, int(bits.values)),
    )


def weight_recipe(settings: WeightSettings, bits: int) -> WeightRecipe:
    """The weight rounding of a run."""
    quantizer = WeightQuantizer(bits, scheme=settings.scheme, group_size=settings.group_size, clip=settings.clip)
    return WeightRecipe(settings.name, quantizer, propagate=settings.propagate, **settings.arguments)


def activation_quantizer(settings: ActivationSettings, bits: int) -> ActivationQuantizer | None:
    """The quantizer of activations, or of what is inside attention; None at 16 bits."""
    if bits == 16:
        return None
    return ActivationQuantizer(
        bits,
        scheme=settings.scheme,
        clip=settings.clip,
        group_size=settings.group_size,
        candidates=settings.candidates,
    )


def pick_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError([f"model.device={device}, torch {torch.__version__} finds no CUDA; use cpu or auto"])
    return torch.device(device)


def torch_dtype(name: str) -> torch.dtype | None:
    """None for "auto": the checkpoint's own."""
    if name == "auto":
        return None
    dtype: torch.dtype = getattr(torch, name)
    return dtype
