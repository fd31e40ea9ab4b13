"""`python -m sq.evaluate.speed random_llama2_7b`: the speed of random weights where Hydra is not installed.

The same measurement as `python run.py model=random_llama2_7b task=speed`, without a run directory; --json keeps it.
Weights are rounded without a clip search, which changes no speed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import yaml  # type: ignore[import-untyped]
from transformers import PreTrainedModel

import sq
from sq.cli.status import Mistake, ended, picked_device
from sq.data.windows import random_token_windows
from sq.evaluate.speed import Speed, measure_speed
from sq.evaluate.task import SpeedKind
from sq.formats.activation import ActivationQuantizer
from sq.formats.format import integer
from sq.formats.weight import WeightQuantizer
from sq.io import write_json
from sq.methods.singlequant import SingleQuant
from sq.methods.yardsticks import RoundToNearest
from sq.models.device import ALLOWED
from sq.models.random_source import RandomSource
from sq.models.stream import DecoderStream
from sq.nn.assemble import assemble
from sq.progress import shown
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.quantize.rounders.rtn import Rtn

CONF = Path(sq.__file__).parent / "conf"
METHODS = {"singlequant": SingleQuant, "rtn": RoundToNearest}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line, measure, print; return the exit status."""
    shapes = sorted(path.stem for path in (CONF / "model").glob("random_*.yaml"))
    parser = argparse.ArgumentParser(prog="python -m sq.evaluate.speed", description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=shapes)
    parser.add_argument("--method", choices=METHODS, default="singlequant")
    parser.add_argument("--kv4", action="store_true", help="keys and values of 4 bits")
    parser.add_argument(
        "--kinds", nargs="+", choices=get_args(SpeedKind), default=["bf16", "bf16_graph", "packed", "packed_graph"]
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has, for a first look")
    parser.add_argument("--device", default="auto", help=ALLOWED)
    parser.add_argument("--json", type=Path, help="where the metrics and facts go")
    options = parser.parse_args(arguments)
    return ended("sq.evaluate.speed", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    numbers = {"--batches": min(options.batches), "--prompt": options.prompt, "--new-tokens": options.new_tokens}
    numbers |= {"--repeats": options.repeats, "--layers": 1 if options.layers is None else options.layers}
    for name, number in numbers.items():
        if number < 1:
            raise Mistake(f"{name} {number}; allowed: at least 1")
    found = _measured(options)
    _print(found, options)
    if options.json is not None:
        write_json(options.json, {"metrics": found.metrics, "speed": found.facts})


def architecture(model: str, layers: int | None = None) -> dict[str, Any]:
    """The sizes in conf/model/<model>.yaml, over what all random models share."""
    sizes: dict[str, Any] = {}
    for file in (CONF / "random_checkpoint.yaml", CONF / "model" / f"{model}.yaml"):
        sizes |= yaml.safe_load(file.read_text(encoding="utf-8"))["architecture"]
    return sizes if layers is None else {**sizes, "num_hidden_layers": layers}


def _measured(options: argparse.Namespace) -> Speed:
    device = picked_device(options.device)
    source = RandomSource(architecture(options.model, options.layers), device=device)
    stream = DecoderStream(source, device=device)
    needs_packed = any(not kind.startswith("bf16") for kind in options.kinds)
    with shown() as show:
        packed = _packed(stream, options.method, options.kv4) if needs_packed else None
        return measure_speed(
            stream,
            packed,
            kinds=options.kinds,
            batches=options.batches,
            prompt=options.prompt,
            new_tokens=options.new_tokens,
            repeats=options.repeats,
            show=show,
        )


def _packed(stream: DecoderStream, method: str, kv4: bool) -> PreTrainedModel:
    cache = ActivationQuantizer(integer(4, "asymmetric", stream.dimensions.head_dim)) if kv4 else None
    weights = Rtn(WeightQuantizer(integer(4), clip=1.0))
    recipe = Recipe(weights, ActivationQuantizer(integer(4)), keys=cache, values=cache)
    ids = random_token_windows(stream.config.vocab_size, tokens=512, window=256).ids
    pipeline = Pipeline(stream, METHODS[method](), recipe, ids, packed=True)
    pipeline.prepare()
    return assemble(stream, list(pipeline.layers()), pipeline.embeddings_and_head)


def _print(found: Speed, options: argparse.Namespace) -> None:
    facts = found.facts
    print(f"{options.model} (random weights), {options.method}, {facts['device']}, torch {torch.__version__}")
    for kind, reason in facts["left_out"].items():
        print(f"left out: {kind}: {reason}")
    for key, value in found.metrics.items():
        number = f"{value / 1e9:.3f} GB" if "_bytes/" in key else f"{value:,.1f} tokens/s"
        print(f"{key:48s} {number}")


if __name__ == "__main__":
    sys.exit(main())
