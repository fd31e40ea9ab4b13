"""Measure one run: load, calibrate, quantize, evaluate. This is where settings become objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sq.checkpoint import CheckpointWriter
from sq.config.parse import as_config
from sq.config.settings import (
    ActivationSettings,
    CalibrationSettings,
    ExperimentSettings,
    MethodSettings,
    ModelSettings,
    PerplexitySettings,
    WeightSettings,
)
from sq.data.windows import Windows, calibration_windows, evaluation_windows
from sq.errors import CheckpointError, ConfigError
from sq.evaluate.stream import StreamEvaluation
from sq.learn.log import TrainingLog
from sq.method import Method
from sq.models.source import model_folder
from sq.models.stream import DecoderStream
from sq.pipeline import Pipeline
from sq.quant import ActivationQuantizer, WeightQuantizer
from sq.recipe import Recipe, WeightRecipe
from sq.register import QUANT_METHOD
from sq.report import Report
from sq.runs.runid import run_id


@dataclass
class Execution:
    """What one run measured.

    Attributes:
        metrics: flat numbers of result.json.
        extras: further facts of result.json: versions, fingerprints of texts, statistics by site.
        arrays: values by window, for paired comparisons.
        model: the quantized model, where it was kept in memory.
        tokenizer: of the model.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


def execute(
    settings: ExperimentSettings, run_dir: Path | None, *, keep_model: bool = False, packed: bool = False
) -> Execution:
    """Quantize and evaluate as the settings say.

    Args:
        settings: complete and checked.
        run_dir: of the run; finished zero-shot tasks and what a training learned are kept in it. None keeps nothing.
        keep_model: return the quantized model (placement=memory), even if no task needs it.
        packed: quantize to integer weights and products of integers, as `save_to` does, instead of fake ones.

    Raises:
        SQError: with the reason, see sq.errors.
    """
    keep = keep_model or settings.task.zeroshot is not None or settings.model.placement == "memory"
    if keep_model and settings.model.placement == "stream":
        raise ConfigError(["a model can be returned only when it is kept: set model.placement=memory"])
    torch.manual_seed(settings.seed)
    method = build_method(settings.method)
    tokenizer, stream = load_model(settings.model, settings.paths.cache)
    texts = _evaluation_texts(settings, tokenizer)
    calibration = _calibration(settings.calibration, method, tokenizer, settings.paths.cache)
    kept = []
    with _progress() as progress:
        log = TrainingLog(run_dir, settings.method.name, _shown_in(progress), force=settings.force)
        ids = torch.empty(0, 2, dtype=torch.int64) if calibration is None else calibration.ids
        writer = checkpoint_writer(settings, stream)
        pipeline = Pipeline(
            stream,
            method,
            recipe(settings, stream.geometry.head_dim),
            ids,
            log=log,
            packed=packed or writer is not None,
            saved=lambda index: saved_layer(writer, stream, index),
        )
        pipeline.prepare()
        batch = settings.task.perplexity.batch_size if settings.task.perplexity else 8
        evaluation = StreamEvaluation(stream, texts, pipeline.ends, measured=method.quantizes, batch=batch)
        task = progress.add_task(f"{settings.method.name} {settings.bits.label}", total=stream.count)
        for index, layer in enumerate(pipeline.layers()):
            if writer is not None and not writer.has(index):
                writer.write_layer(index, layer)
            evaluation.advance(index, layer)
            if keep:
                kept.append(layer)
            progress.advance(task)
    result = Execution(tokenizer=tokenizer)
    for name, scores in evaluation.finish().items():
        result.metrics |= scores.metrics(name)
        result.arrays |= {f"{key}/{name}": values for key, values in scores.arrays().items()}
    result.metrics |= _cost(pipeline.report, method)
    result.extras = {
        "texts": {text.text: text.fingerprint for text in texts},
        "calibration": None if calibration is None else calibration.fingerprint,
        "sites": pipeline.report.sites,
    }
    if writer is not None:
        writer.finish(pipeline.ends, tokenizer)
    if keep:
        result.model = stream.assemble(kept, pipeline.ends)
    if result.model is not None and (packed or writer is not None):
        result.model.config.quantization_config = {"quant_method": QUANT_METHOD, "recipe": what_made(settings)}
    if settings.task.zeroshot is not None:
        _zeroshot(settings, result, run_dir)
    return result


def checkpoint_writer(settings: ExperimentSettings, stream: DecoderStream) -> CheckpointWriter | None:
    """The writer of the packed checkpoint, where one is asked for."""
    if settings.save_to is None:
        return None
    return CheckpointWriter(settings.save_to, stream.config, what_made(settings))


def what_made(settings: ExperimentSettings) -> dict[str, Any]:
    """The settings that a packed checkpoint carries: everything but where it was made and measured."""
    config = as_config(settings)
    parts = ("model", "method", "bits", "weights", "activations", "cache", "calibration", "seed")
    return {part: config[part] for part in parts}


def saved_layer(writer: CheckpointWriter | None, stream: DecoderStream, index: int) -> torch.nn.Module | None:
    """A layer that an interrupted run with the same settings wrote."""
    if writer is None or not writer.has(index):
        return None
    return writer.read_layer(index, stream.meta_layer(index)).to(stream.device)


def load_model(model: ModelSettings, cache: Path) -> tuple[PreTrainedTokenizerBase, DecoderStream]:
    """Tokenizer and layer stream of a model: the embedded one, a local folder, or a hub id."""
    if model.path == "embedded":
        from sq.embedded.checkpoint import embedded_checkpoint

        folder = embedded_checkpoint(cache, outliers=model.outliers, strength=model.outlier_strength)
    else:
        folder = model_folder(model.path, model.revision)
    stream = DecoderStream(folder, dtype=torch_dtype(model.dtype), device=pick_device(model.device))
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
        raise ConfigError([f"{settings.target} is not a subclass of sq.method.Method"])
    return built


def recipe(settings: ExperimentSettings, head_dim: int) -> Recipe:
    """All quantizers of a run; inside attention a head is a group of its own."""
    bits = settings.bits
    inside = replace(settings.cache, group_size=settings.cache.group_size or head_dim)
    return Recipe(
        weight_recipe(settings.weights, bits.weights),
        activation_quantizer(settings.activations, bits.activations),
        queries=activation_quantizer(inside, bits.queries),
        keys=activation_quantizer(inside, bits.keys),
        values=activation_quantizer(inside, bits.values),
    )


def weight_recipe(settings: WeightSettings, bits: int) -> WeightRecipe:
    """The weight rounding of a run."""
    quantizer = WeightQuantizer(bits, scheme=settings.scheme, group_size=settings.group_size, clip=settings.clip)
    return WeightRecipe(
        settings.name,
        quantizer,
        block=settings.block,
        damping=settings.damping,
        act_order=settings.act_order,
        sequential=settings.sequential,
        propagate=settings.propagate,
    )


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


def _evaluation_texts(settings: ExperimentSettings, tokenizer: PreTrainedTokenizerBase) -> list[Windows]:
    wanted: PerplexitySettings | None = settings.task.perplexity
    if wanted is None:
        return []
    return [
        evaluation_windows(
            text,
            tokenizer,
            window=wanted.window,
            count=wanted.count,
            path=wanted.path,
            dataset_path=wanted.dataset_path,
            cache_dir=settings.paths.cache,
        )
        for text in wanted.texts
    ]


def _calibration(
    settings: CalibrationSettings, method: Method, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> Windows | None:
    if not method.quantizes:
        return None
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


def _cost(report: Report, method: Method) -> dict[str, float]:
    sizes = {"model/bytes": report.packed_bytes, "model/bytes_fp16": report.full_bytes}
    if not method.quantizes:
        return dict(sizes)
    seconds = {f"quantize/{part}_seconds": value for part, value in report.seconds.items()}
    return {
        **sizes,
        **seconds,
        "quantize/seconds": sum(seconds.values()),
        "quantize/peak_memory_bytes": report.peak_memory,
        "quantize/start_memory_bytes": report.start_memory,
        "transform/multiply_adds": report.multiply_adds,
    }


def _zeroshot(settings: ExperimentSettings, result: Execution, run_dir: Path | None) -> None:
    from sq.embedded.tasks import embedded_tasks
    from sq.evaluate.zeroshot import zeroshot

    wanted = settings.task.zeroshot
    assert wanted is not None
    assert result.model is not None
    assert result.tokenizer is not None
    found = zeroshot(
        result.model,
        result.tokenizer,
        wanted.tasks,
        batch_size=wanted.batch_size,
        limit=wanted.limit,
        include_path=embedded_tasks(settings.paths.cache),
        # Finished tasks of an interrupted run are kept in its directory; `force` asks for everything anew.
        cache_dir=None if settings.force or run_dir is None else run_dir / "zeroshot",
        cache_key=run_id(settings),
    )
    result.metrics |= found.metrics
    result.extras["zeroshot"] = found.versions


def _shown_in(progress: Progress) -> Callable[[str, int, int], None]:
    """A bar for each training that tells how far it is; it leaves when the training ends."""
    tasks: dict[str, TaskID] = {}

    def show(text: str, done: int, total: int) -> None:
        if text not in tasks:
            tasks[text] = progress.add_task(text, total=total)
        progress.update(tasks[text], completed=done)
        if done >= total:
            progress.remove_task(tasks.pop(text))

    return show


def _progress() -> Progress:
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("done,"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    return Progress(*columns, transient=True)
