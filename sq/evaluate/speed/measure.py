"""Tokens per second of prefill and decode, kinds taking turns in one process so that drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sq.evaluate.speed.models import fake_of, free_memory, full_bytes, full_precision, linear_bytes, weight_bytes
from sq.evaluate.speed.runners import EagerRunner, GraphRunner, Runner
from sq.memory import PeakMemory, return_freed
from sq.models.kv_cache import int4_obstacle
from sq.models.random_source import RandomSource
from sq.models.stream import DecoderStream

PHASES = ("prefill", "decode")
ROOM = (
    0.7  # share of the free memory that models measured side by side may take; the rest is for caches and activations
)


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
        packed: its packed model; the fake kind has the same integers. None where neither is asked for.
        kinds: "bf16", "fake", "packed" call by call; "bf16_graph", "packed_graph" as CUDA graphs.
        batches: sequences a forward.
        prompt, new_tokens: tokens a sequence, prefilled and decoded.
        repeats, warmup: passes that are timed, and passes before them (at least 1), in which kernels are tuned.
        seed: of the token ids.
        show: told text, passes done and passes in all.
        clock: seconds; tests give their own.
    """
    left_out = {kind: reason for kind in kinds if (reason := _obstacle(kind, stream.device, packed))}
    running = [kind for kind in kinds if kind not in left_out]
    models = _Models(stream, packed)
    together = models.fit(running)
    groups = [running] if together else _by_model(running)
    speed = Speed(facts={"left_out": left_out, "seconds": {}, "dtypes": {}, "kv_cache": {}})
    done, total = 0, len(running) * len(batches) * (warmup + repeats)

    def pass_done(count: int = 1) -> None:
        nonlocal done
        done += count
        show(f"speed, {stream.device}", done, total)

    for group in groups:
        for kind in group:
            model = models.get(kind, keep=group)
            speed.metrics[f"speed/weight_bytes/{kind}"] = weight_bytes(model)
            speed.metrics[f"speed/linear_bytes/{kind}"] = linear_bytes(model, stream.family)
            speed.facts["dtypes"][kind] = str(models.dtype(kind)).removeprefix("torch.")
            speed.facts["kv_cache"][kind] = "int4" if _holds_int4(model, kind) else speed.facts["dtypes"][kind]
        for batch in batches:
            ids = _ids(stream, batch, prompt + new_tokens, seed)
            bench = _Bench(ids, prompt, stream.device, clock)
            runners: dict[str, Runner] = {}
            for kind in group:
                found = _prepared(bench, models.get(kind), kind, warmup)
                if isinstance(found, str):
                    left_out[f"{kind}/b{batch}"] = found
                    pass_done(warmup + repeats)
                    continue
                runners[kind], held = found
                for phase, size in zip(PHASES, held, strict=True):
                    key = f"speed/peak_bytes/{phase}/{kind}/b{batch}"
                    speed.metrics[key] = speed.metrics[f"speed/weight_bytes/{kind}"] + size
                pass_done(warmup)
            seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in runners}
            for _ in range(repeats):
                for kind, runner in runners.items():
                    seconds[kind].append(bench.timed(runner))
                    pass_done()
            for kind, passes in seconds.items():
                for phase, tokens, times in zip(PHASES, (prompt, new_tokens), zip(*passes, strict=True), strict=True):
                    speed.metrics[f"speed/{phase}/{kind}/b{batch}"] = batch * tokens / median(times)
                    speed.facts["seconds"][f"{phase}/{kind}/b{batch}"] = list(times)
    speed.facts |= {
        "device": torch.cuda.get_device_name(stream.device) if stream.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "random_weights": isinstance(stream.source, RandomSource),
        "interleaved": together,
        "kinds": list(running),
        "batches": list(batches),
        "prompt": prompt,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "warmup": warmup,
    }
    return speed


class _Models:
    """The models of the kinds, made when asked for; what is not kept is dropped, or waits in the host's memory."""

    def __init__(self, stream: DecoderStream, packed: PreTrainedModel | None) -> None:
        self.stream, self.packed = stream, packed
        self._made: dict[str, PreTrainedModel] = {}

    def dtype(self, kind: str) -> torch.dtype:
        return torch.bfloat16 if kind.startswith("bf16") else self.stream.dtype

    def fit(self, kinds: Sequence[str]) -> bool:
        """Whether all of them can be in memory at once; the packed one is there already."""
        sizes = {"bf16": torch.bfloat16, "fake": self.stream.dtype}
        wanted = {_model_of(kind) for kind in kinds}
        extra = sum(full_bytes(self.stream, dtype) for name, dtype in sizes.items() if name in wanted)
        return extra <= ROOM * free_memory(self.stream.device)

    def get(self, kind: str, keep: Sequence[str] | None = None) -> PreTrainedModel:
        """The model of a kind; `keep` names the kinds that are wanted next."""
        name = _model_of(kind)
        if keep is not None:
            wanted = {_model_of(other) for other in keep}
            self._made = {made: model for made, model in self._made.items() if made in wanted}
            if self.packed is not None and self.stream.device.type != "cpu":
                cast("nn.Module", self.packed).to(self.stream.device if "packed" in wanted else "cpu")
            _release(self.stream.device)
        if name == "packed":
            assert self.packed is not None
            return self.packed
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> PreTrainedModel:
        if name == "bf16":
            return full_precision(self.stream)
        assert self.packed is not None
        return fake_of(self.stream, self.packed)


@dataclass
class _Bench:
    """One batch size: token ids (B, P + N) and how a pass over them is timed."""

    ids: Tensor
    prompt: int
    device: torch.device
    clock: Callable[[], float]

    def runner(self, model: PreTrainedModel, kind: str) -> Runner:
        length, int4 = self.ids.shape[1], _holds_int4(model, kind)
        if _is_graph(kind):
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
    _release(bench.device)
    memory = PeakMemory(bench.device)
    before = memory.start
    try:
        runner = bench.runner(model, kind)
        captured = memory.peak() - before
        for _ in range(warmup - 1):
            bench.held(runner, before)
        _release(bench.device)
        if _is_graph(kind):
            held = bench.held(runner, before)
            most = max(captured, *held)
            return runner, (most, most)
        return runner, bench.held(runner, PeakMemory(bench.device).start)
    except torch.OutOfMemoryError as error:
        return f"out of memory: {str(error).splitlines()[0]}"
    except RuntimeError as error:
        if not _is_graph(kind):
            raise
        return f"no CUDA graph could be made: {str(error).splitlines()[0]}"


def _obstacle(kind: str, device: torch.device, packed: PreTrainedModel | None) -> str | None:
    """Why a kind cannot be measured here, or None."""
    if _is_graph(kind) and device.type != "cuda":
        return f"CUDA graphs need a CUDA device, this is {device.type}"
    if _model_of(kind) != "bf16" and packed is None:
        return "nothing was quantized to integer weights"
    return None


def _holds_int4(model: PreTrainedModel, kind: str) -> bool:
    """Whether a kind's cache holds codes: packed, where keys and values are rounded to grids that it has."""
    return _model_of(kind) == "packed" and int4_obstacle(model) is None


def _is_graph(kind: str) -> bool:
    return kind.endswith("_graph")


def _model_of(kind: str) -> str:
    return kind.removesuffix("_graph")


def _by_model(kinds: Sequence[str]) -> list[list[str]]:
    names = dict.fromkeys(_model_of(kind) for kind in kinds)
    return [[kind for kind in kinds if _model_of(kind) == name] for name in names]


def _ids(stream: DecoderStream, batch: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, stream.config.vocab_size, (batch, length), generator=generator).to(stream.device)


def _release(device: torch.device) -> None:
    """Return freed memory, so that it does not count as the next pass's."""
    return_freed()
    if device.type == "cuda":
        torch.cuda.empty_cache()
