"""Run by test_memory.py in a process of its own: quantize and evaluate a checkpoint under a hard memory limit.

    python limited_memory.py FOLDER ALLOWED_BYTES

Prints one line of JSON: peak growth of the resident set and the scores.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

from sq.data.windows import Windows
from sq.evaluate.stream import StreamEvaluation
from sq.formats.activation import ActivationQuantizer
from sq.formats.format import integer
from sq.formats.weight import WeightQuantizer
from sq.methods.singlequant import SingleQuant
from sq.models.memory import PeakMemory
from sq.models.stream import DecoderStream
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.quantize.rounders.rtn import Rtn


def data_bytes() -> int:
    """Private writable memory of this process, what RLIMIT_DATA counts."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmData"))
    return int(line.split()[1]) * 1024


def main(folder: Path, allowed: int) -> None:
    torch.set_num_threads(1)
    torch.linalg.qr(torch.randn(64, 64) @ torch.randn(64, 64))  # libraries allocate their workspaces on first use
    torch.nn.functional.scaled_dot_product_attention(*torch.randn(3, 1, 2, 8, 4).unbind())
    ActivationQuantizer(integer(4))(torch.randn(64, 512))  # compiled here where no cache has it yet
    limit = data_bytes() + allowed
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    memory = PeakMemory(torch.device("cpu"))
    ids = torch.randint(0, 64, (4, 32), generator=torch.Generator().manual_seed(0))
    stream = DecoderStream(folder)
    weights = Rtn(WeightQuantizer(integer(4), clip=1.0))
    recipe = Recipe(weights, ActivationQuantizer(integer(4)), propagate="full_precision")
    pipeline = Pipeline(stream, SingleQuant(order=("orthogonal",), rank=0, mixing="none"), recipe, ids)
    pipeline.prepare()
    evaluation = StreamEvaluation(stream, [Windows(ids, "t", "")], pipeline.embeddings_and_head)
    for index, layer in enumerate(pipeline.layers()):
        evaluation.advance(index, layer)
    scores = evaluation.finish()["t"]
    print(json.dumps({"grown": memory.peak() - memory.start, **scores.metrics("t")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
