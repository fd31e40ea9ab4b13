"""Bytes of an accelerator that quantizing one decoder layer of a large shape takes, counted on the pretend device.

    python tests/device_memory.py model=random_llama2_70b method=singlequant weights=gptq calibration.tokens=1024

Overrides are those of run.py. The layer has random weights and is computed on the CPU, so that a 70B model's takes
minutes and as many bytes of the host. What is counted is what tensors hold: all of embeddings, layer, calibration
batches, statistics and codes, without what a kernel takes for itself while it runs.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence

from pretend_device import PretendDevice

from sq.config.compose import compose
from sq.models.random_source import RandomSource
from sq.models.stream import DecoderStream
from sq.runs.build import build_pipeline, calibration_of, torch_dtype


@dataclasses.dataclass(frozen=True)
class Taken:
    """What one layer took.

    Attributes:
        peak: most bytes that tensors of the device held at one time.
        layer: bytes of the layer's weights as they are read.
        seconds: of the whole, on the CPU.
    """

    peak: int
    layer: int
    seconds: float


def one_layer(overrides: Sequence[str]) -> Taken:
    """Quantize the first layer of a random model with the settings of the overrides."""
    settings = compose([*overrides, "task=none", "tracker=none", "reference_methods=[]"])
    assert settings.model.architecture is not None, "use model=random_<shape>"
    with PretendDevice() as device:
        source = RandomSource(settings.model.architecture)
        stream = DecoderStream(source, dtype=torch_dtype(settings.model.dtype), device="pretend")
        stream.dimensions = dataclasses.replace(stream.dimensions, layers=1)
        ids = calibration_of(settings.calibration, None, stream, settings.paths.cache).ids
        layer = sum(p.numel() * p.element_size() for p in stream.layer(0).parameters())
        start, PretendDevice.peak = time.perf_counter(), device.held
        pipeline = build_pipeline(settings, stream, ids, packed=True)
        pipeline.prepare()
        for _ in pipeline.layers():
            pass
        return Taken(device.peak, layer, time.perf_counter() - start)


if __name__ == "__main__":
    taken = one_layer(sys.argv[1:])
    print(f"{taken.peak / 1e9:.2f} GB at most; the layer has {taken.layer / 1e9:.2f} GB; {taken.seconds:.0f} s")
