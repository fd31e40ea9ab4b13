"""Tokens per second of prefill and decode, kinds taking turns in one process so that drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sq.evaluate.speed.kinds import grouped, holds_int4, is_graph, model_of, models_for, obstacle, release
from sq.evaluate.speed.models import linear_bytes, weight_bytes
from sq.evaluate.speed.runners import EagerRunner, GraphRunner, Runner
from sq.models.memory import PeakMemory
from sq.models.random_source import RandomSource
from sq.models.stream import DecoderStream

PHASES = ("prefill", "decode")


@dataclass
class Speed:
    """What was measured.

    Attributes:
        metrics: `speed/<prefill|decode>/<kind>/b<batch>` in tokens per second, all sequences of the batch together;
            `speed/weight_bytes/<kind>` of the whole model; `speed/linear_bytes/<kind>` of the decoder layers' linears;
            `speed/peak_bytes/<phase>/<kind>/b<batch>`: weights and the most that the phase held besides.
        facts: device, dtypes of models and caches, sizes, what was left out and why, and the seconds of every pass.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def measure_speed(
    stream: DecoderStream,
    packed: PreTrainedModel | None,
    *,
    kinds: Sequence[str] = ("bf16", "bf16_graph", "fake", "packed", "packed_graph"),
    batches: Sequence[int] = (1, 4, 16),
    prompt: int = 2048,
    new_tokens: int = 256,
    repeats: int = 5,
    warmup: int = 2,
    seed: int = 0,
    show: Callable[[str, int, int], None] = lambda text, done, total: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Time a whole model: a prompt, then tokens one by one behind it with a cache of keys and values.

    Every kind runs the same random token ids. Rate = batch * tokens / median seconds; the device is waited for on both
    sides of a phase. The last warm-up pass takes peak memory: what the phase held beyond what was there before the
    pass, plus the kind's weights. On a CPU that is the process's resident set, blind to memory that was not returned.
    A graph holds the memory of both its phases, so they have one number.

    Args:
        stream: the original model, read for the bfloat16 kinds.
        packed: its packed model; the fake kind has the same integers. None if neither is measured.
        kinds: "bf16", "fake", "packed" call by call; "bf16_graph", "packed_graph" as CUDA graphs.
        batches, prompt, new_tokens: sequences a forward, and tokens of each, prefilled and decoded.
        repeats, warmup: passes that are timed, and passes before them (at least 1), in which kernels are tuned.
        show: called with a text, the passes done and the passes in all.
        clock: seconds; tests give their own.
    """
    left_out = {kind: reason for kind in kinds if (reason := obstacle(kind, stream.device, packed))}
    running = [kind for kind in kinds if kind not in left_out]
    groups = grouped(running, stream)
    speed = Speed()
    speed.facts = {
        "device": torch.cuda.get_device_name(stream.device) if stream.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "random_weights": isinstance(stream.source, RandomSource),
        "interleaved": len(groups) == 1,
        "kinds": running,
        "left_out": left_out,
        "batches": list(batches),
        "prompt": prompt,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "warmup": warmup,
        "dtypes": {},
        "kv_cache": {},
        "seconds": {},
    }
    done, total = 0, len(running) * len(batches) * (warmup + repeats)

    def passed(count: int) -> None:
        nonlocal done
        done += count
        show(f"speed, {stream.device}", done, total)

    for group in groups:
        models = models_for(group, stream, packed)
        _describe(speed, stream, models)
        for batch in batches:
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(0, stream.config.vocab_size, (batch, prompt + new_tokens), generator=generator)
            bench = _Bench(ids.to(stream.device), prompt, stream.device, clock)
            _measure(speed, bench, models, repeats, warmup, passed)
        del models  # the next group may need its room
    return speed


def _describe(speed: Speed, stream: DecoderStream, models: Mapping[str, PreTrainedModel]) -> None:
    for kind, model in models.items():
        speed.metrics[f"speed/weight_bytes/{kind}"] = weight_bytes(model)
        speed.metrics[f"speed/linear_bytes/{kind}"] = linear_bytes(model, stream.family)
        dtype = torch.bfloat16 if model_of(kind) == "bf16" else stream.dtype
        speed.facts["dtypes"][kind] = str(dtype).removeprefix("torch.")
        speed.facts["kv_cache"][kind] = "int4" if holds_int4(model, kind) else speed.facts["dtypes"][kind]


def _measure(
    speed: Speed,
    bench: _Bench,
    models: Mapping[str, PreTrainedModel],
    repeats: int,
    warmup: int,
    passed: Callable[[int], None],
) -> None:
    """Add one batch size of a group."""
    batch, runners = len(bench.ids), {}
    for kind, model in models.items():
        found = _prepared(bench, model, kind, warmup)
        if isinstance(found, str):
            speed.facts["left_out"][f"{kind}/b{batch}"] = found
            passed(warmup + repeats)
            continue
        runners[kind], held = found
        for phase, size in zip(PHASES, held, strict=True):
            weights = speed.metrics[f"speed/weight_bytes/{kind}"]
            speed.metrics[f"speed/peak_bytes/{phase}/{kind}/b{batch}"] = weights + size
        passed(warmup)
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in runners}
    for _ in range(repeats):
        for kind, runner in runners.items():
            seconds[kind].append(bench.timed(runner))
            passed(1)
    for kind, passes in seconds.items():
        for phase, tokens, times in zip(PHASES, bench.tokens, zip(*passes, strict=True), strict=True):
            speed.metrics[f"speed/{phase}/{kind}/b{batch}"] = batch * tokens / median(times)
            speed.facts["seconds"][f"{phase}/{kind}/b{batch}"] = list(times)


@dataclass
class _Bench:
    """One batch size: token ids (B, P + N) and how a pass over them is timed."""

    ids: Tensor
    prompt: int
    device: torch.device
    clock: Callable[[], float]

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens a sequence, prefilled and decoded."""
        return self.prompt, self.ids.shape[1] - self.prompt

    def runner(self, model: PreTrainedModel, kind: str) -> Runner:
        length, int4 = self.ids.shape[1], holds_int4(model, kind)
        if is_graph(kind):
            return GraphRunner(model, self.ids[:, : self.prompt], length, int4=int4)
        return EagerRunner(model, length, int4=int4)

    def timed(self, runner: Runner) -> tuple[float, float]:
        """Seconds of prefill and of decode."""
        runner.rewind(0)
        start = self._now()
        runner.prefill(self.ids[:, : self.prompt])
        middle = self._now()
        runner.rewind(self.prompt)
        begin = self._now()
        runner.decode(self.ids[:, self.prompt :])
        return middle - start, self._now() - begin

    def held(self, runner: Runner, before: int) -> tuple[int, int]:
        """Bytes that prefill and decode held beyond `before`."""
        runner.rewind(0)
        memory = PeakMemory(self.device)
        runner.prefill(self.ids[:, : self.prompt])
        first = memory.peak() - before
        runner.rewind(self.prompt)
        memory = PeakMemory(self.device)
        runner.decode(self.ids[:, self.prompt :])
        return max(0, first), max(0, memory.peak() - before)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()


def _prepared(bench: _Bench, model: PreTrainedModel, kind: str, warmup: int) -> tuple[Runner, tuple[int, int]] | str:
    """A runner behind its warm-up passes and the bytes its phases held; or why it cannot run."""
    release(bench.device)
    memory = PeakMemory(bench.device)
    before = memory.start
    try:
        runner = bench.runner(model, kind)
        captured = memory.peak() - before
        for _ in range(warmup - 1):
            bench.held(runner, before)
        release(bench.device)
        if is_graph(kind):
            held = bench.held(runner, before)
            most = max(captured, *held)
            return runner, (most, most)
        return runner, bench.held(runner, PeakMemory(bench.device).start)
    except torch.OutOfMemoryError as error:
        return f"out of memory: {str(error).splitlines()[0]}"
    except RuntimeError as error:
        if not is_graph(kind):
            raise
        return f"no CUDA graph could be made: {str(error).splitlines()[0]}"
