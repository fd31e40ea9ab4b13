"""Measure one run: load the model, calibrate, quantize, evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sq.checkpoint.card import write_card
from sq.checkpoint.export.card import write_export_card
from sq.checkpoint.export.folder import ExportWriter
from sq.checkpoint.packed_folder import CheckpointWriter
from sq.checkpoint.register import QUANT_METHOD
from sq.config.parse import as_config
from sq.config.settings import ExperimentSettings
from sq.data.sources import BUILT_IN
from sq.data.windows import Windows, evaluation_windows
from sq.errors import ConfigError
from sq.evaluate.scores import refuse_guessing
from sq.evaluate.stream import StreamEvaluation
from sq.evaluate.task import SpeedSettings, ZeroShotSettings
from sq.formats.labels import SIXTEEN
from sq.models.licence import licence_of
from sq.models.stream import DecoderStream
from sq.nn.assemble import assemble
from sq.nn.spread import spread
from sq.progress import Show, shown
from sq.quantize.method import Method
from sq.quantize.pass_record import PassRecord, layer_numbers
from sq.quantize.stage_record import StageRecord
from sq.quantize.training_log import TrainingLog
from sq.runs.build import build_method, build_pipeline, calibration_of, load_model
from sq.runs.card_scores import card_scores, how_measured
from sq.runs.locks import lock
from sq.runs.results import ACTIVATIONS, Tell, unheard
from sq.runs.runid import identity, run_id

READING = "reading the model and its texts"


@dataclass
class Execution:
    """What one run measured.

    Attributes:
        metrics, extras, arrays: see `sq.runs.results.Measured`.
        model, tokenizer: the quantized model, where it is kept in memory, and its tokenizer.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


def execute(
    settings: ExperimentSettings,
    run_dir: Path | None,
    tell: Tell = unheard,
    *,
    keep_model: bool = False,
    packed: bool = False,
) -> Execution:
    """Quantize and evaluate as the settings say.

    Args:
        settings: complete and checked.
        run_dir: keeps finished zero-shot tasks and the results of a training; None keeps nothing.
        tell: is given what is known while the work goes on.
        keep_model: return the quantized model (placement=memory), even if no task needs it.
        packed: integer weights and products of integers, as with `save_to`, instead of fake quantization.

    Raises:
        SQError: with the reason, see sq.errors.
    """
    with _owned(settings.save_to), shown() as show:
        return _execute(settings, run_dir, tell, show, keep_model=keep_model, packed=packed)


def _owned(save_to: Path | None) -> AbstractContextManager[None]:
    """One process at a time writes a packed folder, of whatever run."""
    if save_to is None:
        return nullcontext()
    save_to.parent.mkdir(parents=True, exist_ok=True)
    return lock(save_to.with_name(f".{save_to.name}.lock"))


def _execute(
    settings: ExperimentSettings, run_dir: Path | None, tell: Tell, show: Show, *, keep_model: bool, packed: bool
) -> Execution:
    task = settings.task
    keep = keep_model or settings.model.placement == "memory" or task.zeroshot is not None or task.speed is not None
    spreads = task.zeroshot is not None and task.zeroshot.device_map is not None
    if packed and settings.export is not None:
        raise ConfigError([f"export={settings.export} writes the fake model; leave out packed=True"])
    packed = packed or (task.speed is not None and settings.bits.weights != SIXTEEN)
    if keep_model and settings.model.placement == "stream":
        raise ConfigError(["a model can be returned only when it is kept: set model.placement=memory"])
    torch.manual_seed(settings.seed)
    method = build_method(settings.method)
    show(READING, 0, 3)
    tokenizer, stream = load_model(settings.model, settings.paths.cache)
    show(READING, 1, 3)
    texts = _evaluation_texts(settings, tokenizer)
    show(READING, 2, 3)
    calibration = None
    if method.quantizes:
        calibration = calibration_of(settings.calibration, tokenizer, stream, settings.paths.cache)
    show(READING, 3, 3)
    kept, record, writer, export = [], None, None, None
    if (shown := task.activations) is not None:
        record = StageRecord(method, shown.layer, shown.site, shown.tokens, layers=stream.count)
    if settings.save_to is not None and settings.export is not None:
        if reason := method.export_obstacle(stream.dimensions):
            raise ConfigError([f"export={settings.export}: method={method.name}: {reason}"])
        made_by = what_made(settings), identity(settings)
        export = ExportWriter(settings.save_to, stream.config, stream.dtype, *made_by)
    elif settings.save_to is not None:
        writer = CheckpointWriter(settings.save_to, stream.config, what_made(settings), identity(settings))
    told = partial(tell, "training")
    log = TrainingLog(run_dir, settings.method.name, show, told=told, force=settings.force)
    ids = torch.empty(0, 2, dtype=torch.int64) if calibration is None else calibration.ids
    pipeline = build_pipeline(
        settings,
        stream,
        ids,
        method,
        log=log,
        packed=packed or writer is not None,
        saved=lambda index: _saved_layer(writer, stream, index),
        watch=None if record is None else record.see,
        coded=None if export is None else export.write_layer,
    )
    pipeline.prepare()
    batch = task.perplexity.batch_size if task.perplexity else 8
    evaluation = StreamEvaluation(stream, texts, pipeline.embeddings_and_head, measured=method.quantizes, batch=batch)
    row = f"{settings.method.name} {settings.bits.label}"
    show(row, 0, stream.count)
    for index, layer in enumerate(pipeline.layers()):
        if writer is not None and not writer.has(index):
            writer.write_layer(index, layer, pipeline.layer_report)
        tell("layer", {"layer": index, **layer_numbers(pipeline.layer_report)})
        evaluation.advance(index, layer)
        if keep:
            kept.append(layer.to("cpu") if spreads else layer)
        show(row, index + 1, stream.count)
    result = Execution(tokenizer=tokenizer)
    for name, scores in evaluation.finish(show).items():
        if task.perplexity is not None and not task.perplexity.untrained:
            refuse_guessing(name, scores, stream.config.vocab_size)
        result.metrics |= scores.metrics(name)
        result.arrays |= {f"{key}/{name}": values for key, values in scores.arrays().items()}
    result.metrics |= _cost(pipeline.record, method)
    result.extras = {
        "texts": {text.text: text.fingerprint for text in texts},
        "calibration": None if calibration is None else calibration.fingerprint,
        "resolved": dict(method.resolved(stream.dimensions)),
        "sites": pipeline.record.sites,
        "layers": pipeline.record.layers,
        "recording_seconds": pipeline.record.recording_seconds,
    }
    if record is not None and run_dir is not None:
        record.write(run_dir / ACTIVATIONS)
    if writer is not None:
        writer.finish(pipeline.embeddings_and_head, tokenizer)
    if export is not None:
        export.finish(pipeline.embeddings_and_head, tokenizer)
    if keep:
        result.model = assemble(stream, kept, pipeline.embeddings_and_head)
        if spreads:
            result.model = spread(result.model, stream.family)
    if result.model is not None and (packed or writer is not None):
        result.model.config.quantization_config = {"quant_method": QUANT_METHOD, "recipe": what_made(settings)}
    if task.zeroshot is not None:
        _zeroshot(settings, task.zeroshot, result, run_dir, show)
    if task.speed is not None:
        _speed(task.speed, stream, result, show, packed=packed)
    if settings.save_to is not None:
        write = write_card if export is None else write_export_card
        write(settings.save_to, card_scores(result.metrics, result.arrays), how_measured(texts))
    return result


def what_made(settings: ExperimentSettings) -> dict[str, Any]:
    """The settings in a packed checkpoint: all but the machine and the tasks; of local files the names alone."""
    config = as_config(settings)
    parts = ("model", "method", "bits", "weights", "activations", "kv_cache", "calibration", "seed")
    made = {part: config[part] for part in parts}
    for part, keys in (("model", ("path",)), ("calibration", ("path", "dataset_path"))):
        for key in keys:
            if (place := made[part].get(key)) is not None and Path(place).is_absolute():
                made[part][key] = Path(place).name
    made["licence"] = licence_of(settings.model.path, settings.model.revision)
    return made


def _saved_layer(
    writer: CheckpointWriter | None, stream: DecoderStream, index: int
) -> tuple[torch.nn.Module, Mapping[str, Any] | None] | None:
    """A layer that an interrupted run with the same settings wrote, and its report."""
    if writer is None or not writer.has(index):
        return None
    layer, report = writer.read_layer(index, stream.meta_layer(index))
    return layer.to(stream.device), report


def _evaluation_texts(settings: ExperimentSettings, tokenizer: PreTrainedTokenizerBase | None) -> list[Windows]:
    wanted = settings.task.perplexity
    if wanted is None:
        return []
    assert tokenizer is not None  # the config check refuses random weights, which have none
    # A path is that of the texts that are not built in, where there are both.
    places = {text: text not in BUILT_IN or len(wanted.texts) == 1 for text in wanted.texts}
    return [
        evaluation_windows(
            text,
            tokenizer,
            window=wanted.window,
            count=wanted.count,
            path=wanted.path if places[text] else None,
            dataset_path=wanted.dataset_path if places[text] else None,
            cache_dir=settings.paths.cache,
        )
        for text in wanted.texts
    ]


def _cost(report: PassRecord, method: Method) -> dict[str, float]:
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
        "transform/multiply_adds": report.macs,
        "model/bits_per_weight": report.bits_per_weight,
    }


def _speed(wanted: SpeedSettings, stream: DecoderStream, result: Execution, show: Show, *, packed: bool) -> None:
    from sq.evaluate.speed import measure_speed

    found = measure_speed(stream, result.model if packed else None, **vars(wanted), show=show)
    result.metrics |= found.metrics
    result.extras["speed"] = found.facts


def _zeroshot(
    settings: ExperimentSettings, wanted: ZeroShotSettings, result: Execution, run_dir: Path | None, show: Show
) -> None:
    from sq.embedded.tasks import embedded_tasks
    from sq.evaluate.zeroshot import zeroshot

    assert result.model is not None
    assert result.tokenizer is not None
    found = zeroshot(
        result.model,
        result.tokenizer,
        wanted.tasks,
        batch_size=wanted.batch_size,
        limit=wanted.limit,
        include_path=embedded_tasks(settings.paths.cache),
        # An interrupted run leaves its finished tasks in its directory; under `force` all tasks run again.
        cache_dir=None if settings.force or run_dir is None else run_dir / "zeroshot",
        cache_key=run_id(settings),
        show=show,
    )
    result.metrics |= found.metrics
    result.extras["zeroshot"] = found.versions
