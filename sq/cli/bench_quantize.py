"""`sq-bench quantize`: seconds of quantization by method, side by side in one process, over a floor of one forward."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sq.cli.status import Mistake
from sq.config.compose import compose
from sq.config.settings import ExperimentSettings
from sq.io import write_json
from sq.kernels.bench import cli
from sq.kernels.bench.progress import tracked
from sq.models.extrapolate import Card, ExpectedSeconds, expected_seconds
from sq.models.memory import PeakMemory
from sq.models.stream import DecoderStream
from sq.quantize.calibration import WINDOWS
from sq.runs.build import build_pipeline, calibration_of, load_model
from sq.runs.environment import cpu_name, environment, git_commit

PARTS = ("capture", "transform", "weights")
FLOOR = "floor"
WINDOW = 2048  # tokens a window of models at a hub


@dataclass(frozen=True)
class Case:
    """A model and what is measured on it.

    Attributes:
        overrides: of every row.
        layers: the model is cut to its first so many.
        rows: name -> overrides of a row.
    """

    overrides: tuple[str, ...]
    layers: int
    rows: dict[str, tuple[str, ...]]


Rows = dict[str, tuple[str, ...]]
_CLOSED: Rows = {name: (f"method={name}", "weights=rtn") for name in ("singlequant", "cat", "duquant", "quarot")}
_GPTQ: Rows = {
    "singlequant gptq": ("method=singlequant", "weights=gptq"),
    "quarot gptq": ("method=quarot", "weights=gptq"),
}
# Learned methods take a share of their published steps; the time of a step is the same at each.
_LEARNED: Rows = {
    "flatquant": ("method=flatquant", "weights=rtn", "effort=0.07"),
    "spinquant": ("method=spinquant", "weights=rtn", "effort=0.02"),
}
CASES = {
    "smollm2": Case(("model=smollm2",), 8, _CLOSED | _GPTQ | _LEARNED),
    "7b layer": Case(("model=random_llama2_7b", "model.dtype=bfloat16", "calibration.tokens=2048"), 1, _CLOSED | _GPTQ),
    "70b layer": Case(("model=random_llama2_70b", "model.dtype=bfloat16", "calibration.tokens=1024"), 1, _CLOSED),
}
NOTE = (
    "capture, transform, weights: seconds of `quantize/..._seconds`, for {layers}; floor: one calibration forward and "
    "one read of the same layers. Rows run in turn, {rounds} times; seconds are medians, ratios medians of each turn's "
    "own; peak: the most memory in use, of the process where there is no GPU. A learned method takes the share of its "
    "published steps that its row names; `published` scales its transform to all of them. {threads}."
)


def parser() -> argparse.ArgumentParser:
    """Of the command line behind `sq-bench quantize`."""
    made = argparse.ArgumentParser("sq-bench quantize", description=__doc__)
    made.add_argument(
        "--case", choices=list(CASES), action="append", help="one of the cases, repeatable (default: all)"
    )
    made.add_argument("--only", metavar="TEXT", help="rows whose name holds this text")
    made.add_argument("--rounds", type=int, default=3, help="turns, of which medians are taken (default: 3)")
    made.add_argument("--layers", type=int, help="cut the model to its first N layers (default: 8 of SmolLM2, 1 else)")
    made.add_argument("--threads", type=int, help="of torch (default: torch's own choice)")
    made.add_argument("--out", type=Path, help="where the JSON goes (default: kernels/bench/results/)")
    made.add_argument("overrides", nargs="*", help="of every row, as for run.py: calibration.tokens=4096")
    return made


def main(arguments: Sequence[str]) -> int:
    """Measure, print tables, write JSON; Mistake for a command line that fits no row."""
    given = parser().parse_args(arguments)
    for name in ("rounds", "layers", "threads"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise Mistake(f"--{name} is {value}; use 1 or more")
    out = cli.result_file(given.out, f"quantize {cpu_name()}")
    before = torch.get_num_threads()
    torch.set_num_threads(given.threads or before)
    threads = torch.get_num_threads()
    words = f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    document: dict[str, Any] = {"schema": 1, "part": "quantize", "cpu": cpu_name(), "threads": threads, "cases": {}}
    document["environment"] = {**environment(), "git_commit": git_commit(), "command": sys.argv}
    try:
        for name in given.case or CASES:
            case = CASES[name]
            rows = {row: extra for row, extra in case.rows.items() if given.only is None or given.only in row}
            if not rows:
                if given.case:
                    raise Mistake(f"--only {given.only!r} fits no row of {name!r}; rows: {', '.join(case.rows)}")
                continue
            layers = given.layers or case.layers
            results = measure(case, rows, layers, given.rounds, tuple(given.overrides))
            note = NOTE.format(layers=f"{layers} layer{'s' if layers > 1 else ''}", rounds=given.rounds, threads=words)
            document["cases"][name] = {"note": note, "rows": results}
            print(f"{name}\n{table(results)}\n{note}\n")
    finally:
        torch.set_num_threads(before)
    expected = extrapolated()
    document["expected"] = {name: dataclasses.asdict(found) for name, found in expected.items()}
    print(expected_table(expected))
    write_json(out, document)
    print(f"written to {out}")
    return 0


def measure(
    case: Case, rows: dict[str, tuple[str, ...]], layers: int, rounds: int, overrides: tuple[str, ...] = ()
) -> dict[str, dict[str, Any]]:
    """Row -> medians over the rounds; the floor is the row FLOOR."""
    common = [*case.overrides, "task=none", "tracker=none", "reference_methods=[]", *overrides]
    composed = {name: compose([*common, *extra]) for name, extra in rows.items()}
    first = next(iter(composed.values()))
    tokenizer, stream = load_model(first.model, first.paths.cache)
    stream.dimensions = dataclasses.replace(stream.dimensions, layers=min(layers, stream.count))
    ids = calibration_of(first.calibration, tokenizer, stream, first.paths.cache).ids
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in (FLOOR, *rows)}

    def turns() -> Iterator[None]:
        for _ in range(rounds):
            taken[FLOOR].append(floor(stream, ids))
            yield
            for name, settings in composed.items():
                taken[name].append(quantized(settings, stream, ids))
                yield

    for _ in tracked(turns(), rounds * (1 + len(rows)), "sq-bench quantize"):
        pass
    ours = taken.get("singlequant")
    return {name: _summary(found, taken[FLOOR], ours, composed.get(name)) for name, found in taken.items()}


@torch.no_grad()
def floor(stream: DecoderStream, ids: Tensor, batch: int = 8) -> dict[str, float]:
    """Seconds of reading every layer once ("read") and of one forward of the windows ("forward"); "total"."""
    outer = stream.embeddings_and_head()
    hidden = [outer.embed(part) for part in ids.split(batch)]
    spent = {"read": 0.0, "forward": 0.0}
    for index in range(stream.count):
        start = time.perf_counter()
        layer = stream.layer(index)
        read = time.perf_counter()
        hidden = [stream.forward(index, layer, part) for part in hidden]
        spent["read"] += read - start
        spent["forward"] += time.perf_counter() - read
    return {**spent, "total": sum(spent.values())}


def quantized(settings: ExperimentSettings, stream: DecoderStream, ids: Tensor) -> dict[str, float]:
    """Seconds of one quantization in its three parts, and "total"; "peak", the most bytes that were in use."""
    torch.manual_seed(settings.seed)
    memory = PeakMemory(stream.device)
    pipeline = build_pipeline(settings, stream, ids)
    pipeline.prepare()
    for _ in pipeline.layers():
        pass
    spent = {part: pipeline.record.seconds[part] for part in PARTS}
    return {**spent, "total": sum(spent.values()), "peak": float(memory.peak())}


def _summary(
    found: Sequence[dict[str, float]],
    floors: Sequence[dict[str, float]],
    ours: Sequence[dict[str, float]] | None,
    settings: ExperimentSettings | None,
) -> dict[str, Any]:
    """Medians, the share of published steps, and ratios of totals with the transform scaled to all published steps."""
    effort = 1.0 if settings is None or not _is_learned(settings) else settings.effort
    whole = [turn["total"] + turn.get("transform", 0.0) * (1 / effort - 1) for turn in found]
    summary: dict[str, Any] = {
        "seconds": {part: statistics.median(turn[part] for turn in found) for part in found[0]},
        "all": [turn["total"] for turn in found],
        "effort": effort,
        "published": statistics.median(whole),
        "over_floor": statistics.median(a / b["total"] for a, b in zip(whole, floors, strict=True)),
    }
    if ours is not None:
        summary["over_ours"] = statistics.median(a / b["total"] for a, b in zip(whole, ours, strict=True))
    return summary


def _is_learned(settings: ExperimentSettings) -> bool:
    return bool({"epochs", "steps"} & set(settings.method.arguments))


def table(results: dict[str, dict[str, Any]]) -> str:
    """A line a row."""
    heads = zip((*PARTS, "total", "published"), (9, 11, 9, 9, 11), strict=True)
    lines = [" " * 20 + "".join(f"{head:>{width}}" for head, width in heads) + "  over floor  over ours  peak GB"]
    for name, row in results.items():
        seconds = row["seconds"]
        shown = "".join(f"{seconds[part]:>{width}.2f}" if part in seconds else " " * width for part, width in
                        zip((*PARTS, "total"), (9, 11, 9, 9), strict=True))  # fmt: skip
        scaled = f"{row['published']:>11.1f}" if row["effort"] != 1 else " " * 11
        label = name if row["effort"] == 1 else f"{name} x{row['effort']:g}"
        ours = f"{row['over_ours']:>10.2f}x" if "over_ours" in row else " " * 11
        peak = f"{seconds['peak'] / 1e9:>9.2f}" if "peak" in seconds else ""
        lines.append(f"{label:20}{shown}{scaled}  {row['over_floor']:>9.2f}x{ours}{peak}".rstrip())
    return "\n".join(lines)


def extrapolated(tokens: int = 262_144) -> dict[str, ExpectedSeconds]:
    """Shape -> what one H200 should take for `tokens` calibration tokens, from counts alone."""
    found = {}
    for name in ("random_llama2_7b", "random_llama2_70b"):
        settings = compose([f"model={name}", "task=none", "tracker=none", "reference_methods=[]"])
        stream = load_model(settings.model, settings.paths.cache)[1]
        some = WINDOWS * WINDOW / tokens  # that statistics are taken from
        for rounder, forwards in (("rtn", some), ("gptq", 1 + some)):
            found[f"{name} {rounder}"] = expected_seconds(stream, tokens, Card(), forwards=forwards)
    return found


def expected_table(found: dict[str, ExpectedSeconds]) -> str:
    """A line a shape."""
    lines = ["one H200, 262,144 tokens, computed from counts and not run:"]
    for name, seconds in found.items():
        parts = ", ".join(f"{part} {value:.1f} s" for part, value in dataclasses.asdict(seconds).items())
        lines.append(f"  {name:24}{parts}; {seconds.total:.0f} s with reads behind the rest")
    return "\n".join(lines)
