"""The CPU part of `sq-bench`: one linear packed, fake-quantized and in bfloat16, interleaved in one process."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sq.formats.activation import ActivationQuantizer
from sq.formats.format import integer
from sq.formats.weight import WeightQuantizer
from sq.kernels.bench import cli
from sq.kernels.bench.progress import tracked
from sq.kernels.bench.suite import matches
from sq.nn.linear import PackedLinear, QuantizedLinear
from sq.nn.site_input import SiteInput
from sq.rotation.hadamard import random_orthogonal
from sq.rotation.kronecker import Kronecker, kronecker_factors
from sq.runs.environment import cpu_name, environment, git_commit

KINDS = ("bf16", "fake", "packed")
SHAPES = {  # d_out x d_in
    "256x768": (256, 768),  # down of the embedded model
    "2048x2048": (2048, 2048),
    "2048x8192": (2048, 8192),  # o and down of Llama-3.2-1B
    "4096x4096": (4096, 4096),
}
TOKENS = (1, 16, 256)
NOTE = (
    "Ratios are seconds of the bfloat16 nn.Linear, and of the fake-quantized linear, over seconds of the packed one: "
    "above 1 the packed linear is faster. All take bfloat16 in and give bfloat16 out. Packed and fake share one "
    "Kronecker rotation and one symmetric W4A4 quantizer, both inside their time; the bfloat16 linear has neither. The "
    "three run in turn, {samples} times; times and ratios are medians, ratios of each turn's own times. {threads}."
)

Clock = Callable[[], float]


def run(
    only: str | None = None,
    *,
    quick: bool = False,
    threads: int | None = None,
    listed: bool = False,
    out: Path | None = None,
    clock: Clock = time.perf_counter,
) -> int:
    """Measure, print, write JSON; exit status 0, 1 where a row failed, 2 for a mistake, 130 stopped by Ctrl-C."""
    rows = [(shape, tokens) for shape in SHAPES for tokens in TOKENS if matches(_name(shape, tokens), only)]
    if not rows:
        return cli.mistake(f"no row matches --only {only!r}; --list prints them")
    if listed:
        print("\n".join(_name(*row) for row in rows))
        return 0
    try:
        out = cli.result_file(out, cpu_name())
    except OSError as error:
        return cli.mistake(str(error))
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    samples, least = (5, 0.002) if quick else (15, 0.01)
    words = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    print(f"{cpu_name()}, {words}: {len(rows)} rows")
    results: list[dict[str, Any]] = []
    try:
        status = cli.collected(tracked(_results(rows, samples, least, clock), len(rows), "sq-bench --cpu"), results)
        note = NOTE.format(samples=samples, threads=words)
        document = {"schema": 1, "part": "cpu", "cpu": cpu_name(), "quick": quick, "note": note, "results": results}
        document["environment"] = {**environment(), "git_commit": git_commit(), "command": sys.argv}
        status = cli.report(document, len(rows), status, out, _table)
    finally:
        torch.set_num_threads(before)
    print(note)
    return status


def linears(d_out: int, d_in: int, seed: int = 0) -> dict[str, nn.Module]:
    """The three kinds of one random linear; packed and fake hold the same codes."""
    generator = torch.Generator().manual_seed(seed)
    plain = nn.Linear(d_in, d_out, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        plain.weight.normal_(generator=generator)
    n1, n2 = kronecker_factors(d_in)
    transform = Kronecker(random_orthogonal(n1, seed), random_orthogonal(n2, seed + 1))
    weight = WeightQuantizer(integer(4), clip=1.0).quantize(transform.inverse_transpose(plain.weight.detach().float()))

    def site() -> SiteInput:
        return SiteInput(transform, ActivationQuantizer(integer(4)), readers=1)

    return {
        "bf16": plain,
        "fake": QuantizedLinear(site(), weight.dequantize(torch.bfloat16), None),
        "packed": PackedLinear(site(), weight, None),
    }


def weight_bytes(linear: nn.Module) -> int:
    """Bytes of weights, scales and zeros, without the transform."""
    return sum(tensor.nbytes for tensor in (*linear.parameters(recurse=False), *linear.buffers(recurse=False)))


@torch.no_grad()
def interleaved(
    calls: dict[str, Callable[[], Any]], samples: int, least: float, clock: Clock
) -> dict[str, list[float]]:
    """Seconds of one call, `samples` times each, the kinds in turn so that what disturbs one disturbs all.

    A sample lasts `least` seconds, or one call; a first round finds how many calls that are.
    """
    counts = {}
    for name, call in calls.items():
        call()  # caches the cast of a factor, the sums of a weight
        counts[name] = max(1, round(least / max(_seconds(call, 1, clock), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(samples):
        for name, call in calls.items():
            times[name].append(_seconds(call, counts[name], clock))
    return times


def _seconds(call: Callable[[], Any], count: int, clock: Clock) -> float:
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) / count


def _results(rows: list[tuple[str, int]], samples: int, least: float, clock: Clock) -> Iterator[dict[str, Any]]:
    made: dict[str, dict[str, nn.Module]] = {}
    for shape, tokens in rows:
        if shape not in made:
            made = {shape: linears(*SHAPES[shape])}  # one shape's weights at a time
        try:
            yield _measured(shape, tokens, made[shape], samples, least, clock)
        except Exception as error:  # the other rows are wanted
            reason = f"{type(error).__name__}: {error}"
            yield {"row": _name(shape, tokens), "status": "failed", "reason": reason, "verdict": ""}


def _measured(
    shape: str, tokens: int, kinds: dict[str, nn.Module], samples: int, least: float, clock: Clock
) -> dict[str, Any]:
    x = torch.randn(tokens, SHAPES[shape][1], generator=torch.Generator().manual_seed(tokens)).bfloat16()
    times = interleaved({kind: partial(kinds[kind], x) for kind in KINDS}, samples, least, clock)
    return {
        "row": _name(shape, tokens),
        "status": "ok",
        "reason": None,
        "verdict": "",
        "seconds": {kind: statistics.median(values) for kind, values in times.items()},
        "fastest": {kind: min(values) for kind, values in times.items()},
        "samples": samples,
        "ratio": {kind: _paired(times[kind], times["packed"]) for kind in ("bf16", "fake")},
        "weight_bytes": {kind: weight_bytes(kinds[kind]) for kind in KINDS},
    }


def _paired(slower: list[float], packed: list[float]) -> float:
    """Median of the ratios within each turn: what disturbs a turn disturbs both sides."""
    return statistics.median(a / b for a, b in zip(slower, packed, strict=True))


def _table(results: list[dict[str, Any]]) -> str:
    kinds = "".join(f"{kind:>12}" for kind in KINDS)
    lines = [f"{'d_out x d_in, tokens':24}{kinds}  {'over bf16':>10}{'over fake':>11}  bytes"]
    for result in results:
        if result["status"] == "failed":
            lines.append(f"{result['row']:24}FAILED {result['reason']}")
            continue
        times = "".join(f"{1e3 * result['seconds'][kind]:>9.4g} ms" for kind in KINDS)
        ratio, size = result["ratio"], result["weight_bytes"]
        share = f"{size['packed'] / size['bf16']:.3f} of bf16"
        lines.append(f"{result['row']:24}{times}  {ratio['bf16']:>9.2f}x{ratio['fake']:>10.2f}x  {share}")
    return "\n".join(lines)


def _name(shape: str, tokens: int) -> str:
    return f"{shape}, {tokens} token{'s' if tokens > 1 else ''}"
