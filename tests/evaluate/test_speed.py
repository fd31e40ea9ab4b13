"""Speed of whole models: what is counted and how, by a clock of the test's own; no rate of a real one is asserted."""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from models.checkpoints import SIZES, save_random
from quantizers import activation_quantizer, rounder, weight_quantizer
from recipes import folded
from torch import Tensor
from transformers import PreTrainedModel

from sq.cli.speed import architecture, main
from sq.config.compose import compose
from sq.config.parse import options
from sq.evaluate.speed import fake_of, full_precision, kinds, linear_bytes, measure, measure_speed, weight_bytes
from sq.evaluate.speed.runners import EagerRunner, GraphRunner, Runner
from sq.methods.yardsticks import RoundToNearest
from sq.models.stream import DecoderStream
from sq.nn.assemble import assemble
from sq.nn.linear import QuantizedLinear
from sq.quantize.method import Method
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.runs.execute import execute

pytestmark = pytest.mark.slow

ONLINE = folded(order=("orthogonal", "urt"), rank=3)


def ids_of(count: int = 4, length: int = 12) -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (count, length), generator=torch.Generator().manual_seed(0))


def quantized(folder: Path, *, packed: bool, method: Method = ONLINE) -> tuple[DecoderStream, PreTrainedModel]:
    stream = DecoderStream(folder, dtype=torch.float32)
    cache = activation_quantizer(4, "asymmetric", group_size=stream.dimensions.head_dim)
    weights = rounder("rtn", weight_quantizer(4))
    recipe = Recipe(weights, activation_quantizer(4, "midrise", clip="search"), keys=cache, values=cache)
    pipeline = Pipeline(stream, method, recipe, ids_of(), batch=2, packed=packed)
    pipeline.prepare()
    return stream, assemble(stream, list(pipeline.layers()), pipeline.embeddings_and_head)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A stream and its packed model; tests that use it change neither."""
    folder = tmp_path_factory.mktemp("speed")
    save_random(folder, request.param, tied=request.param == "qwen3")
    return quantized(folder, packed=True)


def as_called(function: Callable[[], None], before: Callable[[], None]) -> Callable[[], None]:
    """In the place of a CUDA graph: the calls that a capture makes, then the function itself."""
    before()
    function()
    return function


def clock_of(passes: list[tuple[float, float]]) -> Callable[[], float]:
    """A clock for so many passes of (prefill, decode) seconds; what is not timed takes 1,000 seconds."""
    steps = itertools.chain.from_iterable((1000.0, prefill, 1000.0, decode) for prefill, decode in passes)
    now = itertools.accumulate(steps)
    return lambda: next(now)


def test_rates_are_batch_times_tokens_over_the_median_of_passes_taken_in_turns(model: tuple[Any, Any]) -> None:
    """Pass i of each batch takes (1 + i)^2 and 3 + i seconds: kind k of three has passes k, k + 3, k + 6."""
    stream, packed = model
    names, batches, repeats = ("bf16", "fake", "packed"), (1, 3), 3
    passes = [((1.0 + i) ** 2, 3.0 + i) for i in range(3 * repeats)]
    shown: list[tuple[int, int]] = []
    found = measure_speed(
        stream, packed, kinds=names, batches=batches, prompt=6, new_tokens=2, repeats=repeats, warmup=1,
        show=lambda text, done, total: shown.append((done, total)), clock=clock_of(passes * len(batches)),
    )  # fmt: skip
    for (place, kind), batch in itertools.product(enumerate(names), batches):
        own = passes[place::3]
        prefill, decode = (median(times) for times in zip(*own, strict=True))
        assert found.metrics[f"speed/prefill/{kind}/b{batch}"] == pytest.approx(batch * 6 / prefill)
        assert found.metrics[f"speed/decode/{kind}/b{batch}"] == pytest.approx(batch * 2 / decode)
        assert found.facts["seconds"][f"prefill/{kind}/b{batch}"] == pytest.approx([first for first, _ in own])
        for phase in ("prefill", "decode"):
            held = found.metrics[f"speed/peak_bytes/{phase}/{kind}/b{batch}"]
            assert held >= found.metrics[f"speed/weight_bytes/{kind}"]
    assert shown[-1] == (3 * 2 * 4, 3 * 2 * 4)
    assert found.facts["interleaved"] is True
    assert found.facts["random_weights"] is False
    assert found.facts["kv_cache"] == {"bf16": "bfloat16", "fake": "float32", "packed": "int4"}
    assert found.facts["dtypes"] == {"bf16": "bfloat16", "fake": "float32", "packed": "float32"}
    known = {"weight_bytes", "linear_bytes", "peak_bytes", "prefill", "decode"}
    assert {key.split("/")[1] for key in found.metrics} == known


def test_kinds_that_cannot_run_are_left_out_by_name(model: tuple[Any, Any]) -> None:
    stream, _ = model
    found = measure_speed(stream, None, batches=(2,), prompt=3, new_tokens=1, repeats=1, warmup=1)
    assert found.facts["kinds"] == ["bf16"]
    assert set(found.facts["left_out"]) == {"bf16_graph", "fake", "packed", "packed_graph"}
    assert "CUDA device, this is cpu" in found.facts["left_out"]["packed_graph"]
    assert "integer weights" in found.facts["left_out"]["packed"]


def test_a_graph_that_cannot_be_captured_is_told_and_the_rest_is_measured(
    model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(measure, "obstacle", lambda *_: None)
    monkeypatch.setattr(measure, "GraphRunner", refuse)
    stream, packed = model
    found = measure_speed(
        stream, packed, kinds=("packed", "packed_graph"), batches=(2,), prompt=3, new_tokens=1, repeats=1, warmup=1
    )
    told = "no CUDA graph could be made: operation not permitted when stream is capturing"
    assert found.facts["left_out"] == {"packed_graph/b2": told}
    assert "speed/decode/packed/b2" in found.metrics
    assert "speed/decode/packed_graph/b2" not in found.metrics


def test_what_does_not_fit_side_by_side_is_measured_one_after_the_other(
    model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, packed = model
    made: list[weakref.ref[PreTrainedModel]] = []

    def fake_alone(*arguments: Any) -> PreTrainedModel:
        gc.collect()
        assert made
        assert not any(reference() for reference in made), "the model of another kind is still in memory"
        return fake_of(*arguments)

    def noted(*arguments: Any) -> PreTrainedModel:
        found = full_precision(*arguments)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(kinds, "free_memory", lambda device: 0)
    monkeypatch.setattr(kinds, "full_precision", noted)
    monkeypatch.setattr(kinds, "fake_of", fake_alone)
    found = measure_speed(
        stream, packed, kinds=("bf16", "fake", "packed"), batches=(1,), prompt=3, new_tokens=2, repeats=2, warmup=1,
        clock=clock_of([(1.0, 1.0), (1.0, 1.0), (2.0, 2.0), (2.0, 2.0), (4.0, 4.0), (4.0, 4.0)]),
    )  # fmt: skip
    assert found.facts["interleaved"] is False
    rates = [found.metrics[f"speed/prefill/{kind}/b1"] for kind in ("bf16", "fake", "packed")]
    assert rates == pytest.approx([3.0, 1.5, 0.75])


@pytest.mark.parametrize("family", ["llama_bias", "qwen2", "qwen3"])
@torch.no_grad()
def test_the_fake_model_of_the_packed_one_is_the_pipelines_fake_model(family: str, tmp_path: Path) -> None:
    """Weights to the last bit. Logits: transforms are held in float32 there and here, so the same float32 sums."""
    save_random(tmp_path, family, tied=True)
    stream, packed = quantized(tmp_path, packed=True)
    _, expected = quantized(tmp_path, packed=False)
    found = fake_of(stream, packed)
    weights = [name for name, module in expected.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(weights) == 7 * SIZES["num_hidden_layers"]
    for name in weights:
        assert torch.equal(found.get_submodule(name).weight, expected.get_submodule(name).weight), name
    torch.testing.assert_close(found(ids_of()).logits, expected(ids_of()).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("error::FutureWarning")
def test_both_ways_of_running_give_the_logits_of_one_forward(model: tuple[Any, Any]) -> None:
    """Prefill and decode with a growing cache, and with the graphs' static one, captured here as plain calls: the
    last tokens of prompt and continuation as in a forward of all tokens without a cache. Twice: rewinding works."""
    stream, _ = model
    whole, ids = full_precision(stream).float(), ids_of(3, 9)
    expected = whole(ids, use_cache=False).logits

    for runner in (EagerRunner(whole, 9), GraphRunner(whole, ids[:, :6], 9, capture=as_called)):
        for _ in range(2):
            runner.rewind(0)
            torch.testing.assert_close(runner.prefill(ids[:, :6]), expected[:, 5:6], rtol=1e-4, atol=1e-4)
            runner.rewind(6)
            torch.testing.assert_close(runner.decode(ids[:, 6:]), expected[:, -1:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_int4_cache_gives_the_same_logits_either_way(model: tuple[Any, Any]) -> None:
    """Codes in the cache against rounding in attention: float32 sums in another order, medians of the logits."""
    _, packed = model
    ids = ids_of(3, 9)
    rounded = EagerRunner(packed, 9)
    for runner in (EagerRunner(packed, 9, int4=True), GraphRunner(packed, ids[:, :6], 9, int4=True, capture=as_called)):
        for _ in range(2):
            for positions, run in ((0, "prefill"), (6, "decode")):
                part = ids[:, :6] if run == "prefill" else ids[:, 6:]
                found, expected = (getattr(_rewound(one, positions), run)(part) for one in (runner, rounded))
                assert float((found - expected).abs().median()) < 1e-3 * float(expected.square().mean().sqrt())


def _rewound(runner: Runner, positions: int) -> Runner:
    runner.rewind(positions)
    return runner


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_those_of_the_tensors(tied: bool, tmp_path: Path) -> None:
    """bf16: 2 bytes a parameter, a tied matrix once. Packed, plain RTN: half a byte a weight and 4 for a row's scale,
    (n / 2 + 4) / 2 n of bf16; float32 ends, tied as well. At most 0.35 of bf16 from 40 features on."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    save_random(tmp_path, "llama", tied=tied, **sizes)
    stream, packed = quantized(tmp_path, packed=True, method=RoundToNearest())
    full = full_precision(stream)
    shapes = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
    linears = SIZES["num_hidden_layers"] * sum(rows * n for rows, n in shapes)
    assert linear_bytes(full, stream.family) == 2 * linears
    ends = SIZES["vocab_size"] * 64
    gains = (2 * SIZES["num_hidden_layers"] + 1) * 64
    assert weight_bytes(full) == 2 * (linears + gains + (1 if tied else 2) * ends)
    integers = SIZES["num_hidden_layers"] * sum(rows * (n // 2 + 4) for rows, n in shapes)
    assert linear_bytes(packed, stream.family) == integers
    assert integers <= 0.35 * 2 * linears
    assert weight_bytes(packed) == integers + 4 * (gains + (1 if tied else 2) * ends)


def test_a_run_measures_a_random_model_and_says_that_it_is_one(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 90, "head_dim": 16}
    settings = compose(
        [
            # At 64 features the default's blocks are as large as the weights.
            "model=random_tiny", "method=singlequant_folded", "task=speed", "tracker=none", f"paths.results={tmp_path}",
            "calibration.tokens=64", "calibration.window=32", "task.speed.batches=[1,2]", "task.speed.prompt=5",
            "task.speed.new_tokens=3",
            "task.speed.repeats=1", *(f"model.architecture.{key}={value}" for key, value in sizes.items()),
        ]
    )  # fmt: skip
    done = execute(settings, None)
    assert done.tokenizer is None
    assert done.extras["speed"]["random_weights"] is True
    assert done.extras["speed"]["dtypes"] == dict.fromkeys(("bf16", "fake", "packed"), "bfloat16")
    for kind, batch, phase in itertools.product(("bf16", "fake", "packed"), (1, 2), ("prefill", "decode")):
        assert done.metrics[f"speed/{phase}/{kind}/b{batch}"] > 0
    assert done.metrics["speed/linear_bytes/packed"] < 0.5 * done.metrics["speed/linear_bytes/bf16"]
    assert done.metrics["quantize/seconds"] > 0


@pytest.mark.parametrize("name", [name for name in options("model") if name.startswith("random_")])
def test_the_bare_command_reads_the_sizes_that_configs_have(name: str) -> None:
    assert architecture(name) == compose([f"model={name}", "task=none"]).model.architecture


def test_the_bare_command_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "random_tiny --kv4 --method rtn --layers 1 --kinds bf16 packed packed_graph --batches 2 --prompt 4"
    more = ["--new-tokens", "2", "--repeats", "1", "--json", str(tmp_path / "speed.json")]
    assert main([*told.split(), *more]) == 0
    out = capsys.readouterr().out
    assert "random_tiny (random weights), rtn, cpu" in out
    assert "left out: packed_graph: CUDA graphs need a CUDA device" in out
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["speed"]["random_weights"] is True
    assert found["speed"]["kv_cache"] == {"bf16": "bfloat16", "packed": "int4"}
    assert found["metrics"]["speed/decode/packed/b2"] > 0


def test_speed_is_measured_without_the_packages_of_runs() -> None:
    """On a bare machine with a GPU: torch and transformers alone."""
    code = (
        "import sys; blocked = ('hydra', 'omegaconf', 'wandb', 'datasets', 'lm_eval', 'pandas')\n"
        "for name in blocked: sys.modules[name] = None\n"
        "import sq.cli.speed; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "fine\n"
