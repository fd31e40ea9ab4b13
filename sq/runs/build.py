"""Build the objects that settings describe: the model, the method and all quantizers of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sq.config.settings import (
    CalibrationSettings,
    ExperimentSettings,
    MethodSettings,
    ModelSettings,
    TokenSettings,
    WeightSettings,
)
from sq.data.windows import Windows, calibration_windows, random_token_windows
from sq.errors import CheckpointError, ConfigError
from sq.formats.activation import ActivationQuantizer, Clip
from sq.formats.labels import format_of
from sq.formats.weight import WeightQuantizer
from sq.models.device import pick_device
from sq.models.gguf_tokenizer import gguf_tokenizer
from sq.models.place import gguf_file
from sq.models.random_source import RandomSource
from sq.models.source import model_folder
from sq.models.stream import DecoderStream
from sq.quantize.arguments import method_of
from sq.quantize.method import Method
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.quantize.rounders.registry import rounder_class
from sq.quantize.rounders.rounder import WeightRounder


def load_model(model: ModelSettings, cache: Path) -> tuple[PreTrainedTokenizerBase | None, DecoderStream]:
    """Tokenizer and layer stream of a model: the embedded one, a local folder or GGUF file, a hub id, or random
    weights, which have no tokenizer."""
    dtype, device = torch_dtype(model.dtype), pick_device(model.device)
    if model.architecture is not None:
        return None, DecoderStream(RandomSource(model.architecture, device=device), dtype=dtype, device=device)
    if model.path != "embedded" and (file := gguf_file(model.path)) is not None:
        return gguf_tokenizer(file, cache), DecoderStream(file, dtype=dtype, device=device)
    if model.path == "embedded":
        from sq.embedded.model_folder import embedded_checkpoint

        folder = embedded_checkpoint(cache, outliers=model.outliers, strength=model.outlier_strength)
    else:
        folder = model_folder(model.path, model.revision)
    stream = DecoderStream(folder, dtype=dtype, device=device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no tokenizer that transformers can load: {error}") from error
    return tokenizer, stream


def calibration_of(
    settings: CalibrationSettings, tokenizer: PreTrainedTokenizerBase | None, stream: DecoderStream, cache: Path
) -> Windows:
    """The calibration windows of a run; of random tokens for random weights, which have no tokenizer."""
    if tokenizer is None:
        size = stream.config.vocab_size
        return random_token_windows(size, tokens=settings.tokens, window=settings.window, seed=settings.seed)
    return calibration_windows(
        settings.text,
        tokenizer,
        tokens=settings.tokens,
        window=settings.window,
        seed=settings.seed,
        path=settings.path,
        dataset_path=settings.dataset_path,
        cache_dir=cache,
    )


def build_method(settings: MethodSettings) -> Method:
    """A method from its class path and typed arguments; a ConfigError names all mistakes of the arguments."""
    problems: list[str] = []
    built = method_of(settings.target, settings.name, settings.arguments, problems)
    if built is None:
        raise ConfigError(problems)
    return built


def build_pipeline(
    settings: ExperimentSettings, stream: DecoderStream, ids: Tensor, method: Method | None = None, **options: Any
) -> Pipeline:
    """The pipeline of a run: its method (made already, or made here), its recipe and the sample that it takes.

    Args:
        ids: calibration windows (count, window).
        options: the other arguments of `Pipeline`.
    """
    made = build_method(settings.method) if method is None else method
    own = recipe(settings, stream.dimensions.head_dim)
    return Pipeline(stream, made, own, ids, sample=settings.calibration.sample, **options)


def recipe(settings: ExperimentSettings, head_dim: int) -> Recipe:
    """All quantizers of a run; inside attention a head is a group of its own."""
    bits, inside = settings.bits, settings.kv_cache
    return Recipe(
        weight_rounder(settings.weights, bits.weights),
        activation_quantizer(settings.activations, bits.activations),
        queries=activation_quantizer(inside, bits.queries, head_dim),
        keys=activation_quantizer(inside, bits.keys, head_dim),
        values=activation_quantizer(inside, bits.values, head_dim),
        propagate=settings.weights.propagate,
        site_clips=settings.activations.clip == "site",
        site_groups={"o": head_dim} if settings.activations.o_group == "head" else {},
    )


def weight_rounder(settings: WeightSettings, part: str) -> WeightRounder | None:
    """The rounder of a run's weights to one part of its bits; None at 16 bits."""
    format = format_of(part, settings.scheme, settings.group_size)
    if format is None:
        return None
    return rounder_class(settings.name)(WeightQuantizer(format, settings.clip), **settings.arguments)


def activation_quantizer(settings: TokenSettings, part: str, head_dim: int | None = None) -> ActivationQuantizer | None:
    """The quantizer of one part of a run's bits, for activations or inside attention; None at 16 bits.

    Inside attention the `head_dim` features of a head share an integer scale, unless the settings name a smaller group.
    Where each site gets a clip of its own (`Recipe.site_clips`), the quantizer has the whole range.
    """
    group = settings.group_size or (head_dim if part.isdigit() else None)
    format = format_of(part, settings.scheme, group)
    clip: Clip = 1.0 if settings.clip == "site" else settings.clip
    return None if format is None else ActivationQuantizer(format, clip, settings.candidates)


def torch_dtype(name: str) -> torch.dtype | None:
    """The dtype of a setting; None for "auto", which is the checkpoint's own."""
    return None if name == "auto" else getattr(torch, name)
