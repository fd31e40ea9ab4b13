"""An executor that measures nothing; environment variables make it fail, die, sleep or count."""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sq.config.settings import ExperimentSettings
from sq.runs.results import Tell, unheard


@dataclass
class Execution:
    metrics: dict[str, float]
    extras: dict[str, Any]
    arrays: dict[str, Any]


def execute(settings: ExperimentSettings, run_dir: Path, tell: Tell = unheard) -> Execution:
    logging.getLogger("sq.fake").info("measuring %s", settings.method.name)
    if calls := os.environ.get("FAKE_CALLS"):
        with open(calls, "a") as stream:
            stream.write(f"{run_dir.name}\n")
    quantizes = settings.method.quantizes
    if quantizes and os.environ.get("FAKE_FAIL_BITS") == settings.bits.weights:
        raise RuntimeError("the layer melted")
    if quantizes and os.environ.get("FAKE_KILL_BITS") == settings.bits.weights and first():
        os.kill(os.getpid(), signal.SIGKILL)
    for step in range(3 * quantizes):
        tell("training", {"layer": 1, "step": step, "loss": 1 / (1 + step), "bound_r1": "norm"})
        tell("layer", {"layer": step, "error": 0.1 * step, "peak_over_rms/qkv": 3.0})
    if quantizes and os.environ.get("FAKE_SLEEP_BITS") == settings.bits.weights and first():
        time.sleep(float(os.environ.get("FAKE_SLEEP_SECONDS", "60")))
    if settings.task.activations is not None:
        np.savez(run_dir / "activations.npz", before=np.zeros((2, 3)))
    metrics = {
        "ppl/embedded": 15.0 + 1.5 * quantizes,
        "kl/embedded": 0.0432 * quantizes,
        "top1/embedded": 1.0 - 0.1 * quantizes,
        "quantize/peak_memory_bytes": 3.4e8,
        "model/bytes": 1.7e7,
    }
    if quantizes:
        metrics |= {
            "quantize/seconds": 3.2,
            "quantize/capture_seconds": 2.0,
            "quantize/transform_seconds": 0.5,
            "quantize/weights_seconds": 0.7,
        }
    return Execution(metrics, {"sites": 32, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}, {"nll": np.arange(4.0)})


def first() -> bool:
    """Whether this has not happened yet, where FAKE_ONCE names a file that remembers it; else always."""
    try:
        return "FAKE_ONCE" not in os.environ or bool(os.open(os.environ["FAKE_ONCE"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
