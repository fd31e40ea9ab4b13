"""Every case of the benchmark at toy sizes, in torch and in Triton's interpreter, with a clock of the test's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_in_interpreter import interpreted_suite

from sq.kernels.bench import cli, progress
from sq.kernels.bench import machine as module
from sq.kernels.bench.case import Case, Place
from sq.kernels.bench.machine import Machine, environment
from sq.kernels.bench.measure import measure, summary, table
from sq.kernels.bench.shapes import FULL, LLAMA2_7B, LLAMA2_70B, LLAMA3_8B, QUICK, Model, Shapes
from sq.kernels.bench.suite import suite
from sq.kernels.bench.targets import TARGETS, Target, verdict
from sq.kernels.bench.timing import GraphTimer, Timing
from sq.kernels.block_product.tiles import tile_obstacle as block_tile_obstacle
from sq.kernels.hadamard.tiles import tile_shape
from sq.kernels.int4_matmul import tiles
from sq.kernels.rotate_quantize.tiles import tile_obstacle

TOY = Shapes(
    factors={64: (8, 8), 96: (8, 12), 128: (8, 16)},
    rotated=(64,),
    tokens=(3,),
    least_tokens=3,
    side_tokens=4,
    latencies=(64,),
    norms=(64,),
    block=16,
    blocks=(64,),
    hadamards={2048: 1, 6144: 12},
    block_products=((3, 16, 0), (4, 24, 2)),
    fourth_moments=((2, 5, 150),),
    models=(Model("Toy", 64, 96, heads=4, kv_heads=2, head_dim=32, layers=2, vocabulary=100),),
    sites=("o", "down"),
    prefill=(18,),
    decode=(1, 3),
    attention=((1, 9),),
    memory_batches=(2,),
    memory_positions=8,
    square=32,
    copied=4096,
)
TORCH = Place("cpu", "torch")


def seconds(of: Callable[[Case], float]) -> Callable[[Case, Place], Timing]:
    """A clock by the case's name, which calls the case all the same."""

    def timer(case: Case, place: Place) -> Timing:
        case.make(place, 0)()
        value = of(case)
        return Timing(value, value, value, 1, 1)

    return timer


@pytest.mark.slow
def test_every_case_runs_in_the_interpreter(interpreter: Executor) -> None:
    results = interpreter.submit(interpreted_suite, TOY).result()
    assert [result["reason"] for result in results if result["status"] != "ok"] == []
    assert len(results) == len(suite(TOY))


# hand-written: bytes of each case at TOY sizes
BYTES = {
    "copy 4096 B": 2 * 4096,
    "bf16 matmul 32x32 M=32": 2 * 3 * 32 * 32,
    "_int_mm 32x32 M=32": 1024 + 1024 + 4 * 1024,
    "fp8 matmul 32x32 M=32": 1024 + 1024 + 2 * 1024,
    "rotate_quantize 64 T=3": 3 * (128 + 32 + 4),
    "rotate_quantize 64 T=1": 128 + 32 + 4,
    "eager rotate_quantize 64 T=4": 4 * (128 + 32 + 4),
    "RMSNorm + rotate_quantize 64 T=4": 4 * (128 + 32 + 4),
    "residual + RMSNorm + rotate_quantize 64 T=4": 4 * (3 * 128 + 32 + 4),
    "SwiGLU + rotate_quantize 96 T=4": 4 * (192 + 192 + 48 + 4),
    "rotate_quantize 64 to int8_planes T=4": 4 * (128 + 64 + 4),
    "block-16 Hadamard + quantize 64 T=4": 4 * (128 + 32 + 4),
    "hadamard 2048 T=8": 4 * 8 * 2048,
    "hadamard 6144 T=4": 4 * 4 * 6144,
    "block_product 3x16 r=0 T=4": 4 * 4 * 48 + 2 * (3 * 16 * 16 + 9),
    "block_product 4x24 r=2 T=4": 4 * 4 * 96 + 2 * (4 * 24 * 24 + 16 + 2 * 96 * 2),
    "eager block_product 4x24 r=2 T=4": 4 * 4 * 96 + 2 * (4 * 24 * 24 + 16 + 2 * 96 * 2),
    "turn_pairs 2x5 T=150": 2 * 5 * 150 * 4 * 2 + 2 * 5 * 5 * 8 * 2,
    "int4_matmul 64x128 M=1": 64 * 64 + 4 * 64 + 64 + 4 + 2 * 64,
    "int4_matmul 64x96 M=3": 64 * 48 + 4 * 64 + 3 * 48 + 12 + 2 * 3 * 64,
    "int4_matmul 64x128 M=18": 64 * 64 + 4 * 64 + 18 * 128 + 4 * 18 + 2 * 18 * 64,
    "int4_matmul 64x128 M=18 by workspace": 64 * 64 + 4 * 64 + 18 * 128 + 4 * 18 + 2 * 18 * 64,
    "_int_mm 64x128 M=18": 64 * 128 + 18 * 128 + 4 * 18 * 64,
    "_int_mm scaled 64x128 M=18": 64 * 128 + 18 * 128 + 10 * 18 * 64 + 4 * 18 + 4 * 64,
    "linear 64x128 M=18": 18 * (2 * 128 + 128 + 4 + 128 + 4) + 64 * 64 + 4 * 64 + 2 * 18 * 64,
    "kv4_attention 4/2x32 B=1 S=9": 9 * 2 * 2 * (16 + 4 + 1) + 2 * 2 * 4 * 32,
    "kv4_rope_append 4/2x32 B=3": 3 * (2 * 2 * 4 * 32 + 2 * 2 * 2 * 32 + 2 * 2 * (16 + 4 + 1) + 2 * 2 * 32),
    "sdpa 4/2x32 B=1 S=9": 9 * 2 * 2 * 2 * 32 + 2 * 2 * 4 * 32,
}
FLOPS = {
    "bf16 matmul 32x32 M=32": 2 * 32**3,
    "int4_matmul 64x128 M=18": 2 * 18 * 64 * 128,
    "linear 64x128 M=18": 2 * 18 * 64 * 128 + 2 * 18 * 128 * (8 + 16),
    "rotate_quantize 64 T=3": 2 * 3 * 64 * 16,
    "block_product 4x24 r=2 T=4": 2 * 4 * 96 * (24 + 4 + 4),
    "block-16 Hadamard + quantize 64 T=4": 2 * 4 * 64 * 16,
}


def test_bytes_and_operations_are_those_written_by_hand() -> None:
    cases = {case.name: case for row in suite(TOY) for case in (row.case, row.yardstick) if case is not None}
    assert {name: cases[name].bytes for name in BYTES} == BYTES
    assert {name: cases[name].flops for name in FLOPS} == FLOPS
    assert all(case.bytes > 0 for case in cases.values())


def test_ratios_of_every_kind_by_hand() -> None:
    """Everything takes 1 ms, the copy 2 ms, what is ours 0.5 ms and with a norm in front 0.52 ms."""

    def clock(case: Case) -> float:
        if "RMSNorm" in case.name:
            return 0.52e-3
        return 2e-3 if case.name.startswith("copy") else 0.5e-3 if case.tuned else 1e-3

    got = {result["row"]: result for result in measure(suite(TOY), TORCH, seconds(clock))}
    assert {result["status"] for result in got.values()} == {"ok"}
    copy_rate = 8192 / 2e-3
    expected = {
        "copy": (copy_rate / 1e12, "TB/s", None),
        "bf16 matmul 32^3": (2 * 32**3 / 1e-3 / 1e12, "TFLOP/s", None),
        "rotate_quantize 64 T=3": (492 / 0.5e-3 / 1e12, "TB/s", 492 / 0.5e-3 / copy_rate),
        "rotate_quantize 64 T=1, latency": (500, "us", 500),
        "rotate_quantize 64 T=4 over eager": (500, "us", 2),
        "RMSNorm + rotate_quantize 64 T=4, extra time": (520, "us", 0.04),
        "Toy o 64x128 M=18 over _int_mm": (500, "us", 2),
        "Toy o 64x128 M=1, bandwidth": (4548 / 0.5e-3 / 1e12, "TB/s", 4548 / 0.5e-3 / copy_rate),
        "Toy attention B=1 S=9 over sdpa": (500, "us", 2),
    }
    for name, (measured, unit, ratio) in expected.items():
        row = got[name]
        assert (row["measured"], row["unit"]) == (pytest.approx(measured), unit), name
        assert row["ratio"] == (None if ratio is None else pytest.approx(ratio)), name
    eager, norm = got["rotate_quantize 64 T=4 over eager"], got["RMSNorm + rotate_quantize 64 T=4, extra time"]
    assert (eager["floor"], eager["moon"], eager["verdict"]) == (4.0, 6.0, "below")
    assert (norm["floor"], norm["better"], norm["verdict"]) == (0.10, "lower", "met floor")
    assert got["Toy o 64x128 M=18 over _int_mm"]["verdict"] == "met moon"
    assert got["hadamard 2048 T=8"]["verdict"] == ""


def test_memory_by_hand() -> None:
    """2 layers of 256x64, 64x128, 192x64, 64x96; two of 100x64 and 5 norms; 2 x 8 positions of 2 heads of 32."""
    (row,) = suite(TOY, "weights + KV")
    entries = 256 * 64 + 64 * 128 + 192 * 64 + 64 * 96
    rest = 2 * (2 * 100 * 64 + 5 * 64)
    assert row.yardstick is not None
    assert row.yardstick.bytes == rest + 2 * (2 * entries + 2 * 2 * 16 * 2 * 32)
    assert row.case.bytes == rest + 2 * (entries // 2 + 4 * (256 + 64 + 192 + 64) + 2 * 16 * 2 * (16 + 4 + 1))


def test_the_yardstick_multiplies_the_very_operands() -> None:
    """int4_matmul of packed codes and int8 products scaled apart: the same to bfloat16's last bit."""
    rows = {row.name: row for row in suite(TOY)}
    row = rows["Toy o 64x128 M=18 over _int_mm + scaling"]
    assert row.yardstick is not None
    ours, theirs = row.case.make(TORCH, 7)(), row.yardstick.make(TORCH, 7)()
    torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=0)
    assert int((ours != 0).sum()) > 1000
    assert not torch.equal(row.case.make(TORCH, 8)(), ours), "another set of operands has the same numbers"


def test_eager_rotation_gives_the_codes_of_the_kernel() -> None:
    """Up to bfloat16's rounding between its steps: no code is farther than one."""
    (row,) = suite(TOY, "rotate_quantize * over eager")
    assert row.yardstick is not None
    (ours, scale), (eager, eager_scale) = (case.make(TORCH, 3)()[:2] for case in (row.case, row.yardstick))
    assert eager_scale.dtype == torch.bfloat16, "float32 would move twice the bytes and flatter the kernel"
    low, eager_low = (((codes.int() & 15) ^ 8) - 8 for codes in (ours, eager))
    assert int((low - eager_low).abs().max()) <= 1
    torch.testing.assert_close(scale, eager_scale.float(), rtol=2**-6, atol=0)


def test_eager_block_product_is_the_kernel() -> None:
    """Up to bfloat16's rounding between its steps."""
    rows = suite(TOY, "block_product * over eager")
    assert len(rows) == len(TOY.block_products)
    for row in rows:
        assert row.yardstick is not None
        ours, eager = (case.make(TORCH, 3)().float() for case in (row.case, row.yardstick))
        torch.testing.assert_close(eager, ours, rtol=0, atol=2**-5 * float(ours.abs().max()))


def test_a_case_that_fails_becomes_a_row_with_its_reason_and_the_suite_goes_on() -> None:
    def timer(case: Case, place: Place) -> Timing:
        if case.name.startswith("_int_mm "):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")
        if case.name.startswith("hadamard 6144"):
            raise RuntimeError("PassManager::run failed")
        return Timing(1.0, 1.0, 1.0, 1, 1)

    emptied = []
    got = {r["row"]: r for r in measure(suite(TOY), TORCH, timer, between=lambda: emptied.append(1))}
    assert len(got) == len(suite(TOY))
    failed = {name: result["reason"] for name, result in got.items() if result["status"] == "failed"}
    assert failed["hadamard 6144 T=4"] == "RuntimeError: PassManager::run failed"
    assert failed["Toy o 64x128 M=18 over _int_mm"].startswith("_int_mm 64x128 M=18: OutOfMemoryError: CUDA out of")
    assert got["Toy o 64x128 M=18 over bf16"]["status"] == "ok"
    assert "FAILED RuntimeError: PassManager" in table(list(got.values()))
    cases = {c.name for row in suite(TOY) if row.kind != "memory" for c in (row.case, row.yardstick) if c is not None}
    assert len(emptied) == len(cases), "a case was timed twice, or its memory kept"


@pytest.mark.parametrize(
    ("ratio", "target", "expected"),
    [
        (1.7, Target(1.4, 1.7), "met moon"),
        (1.69, Target(1.4, 1.7), "met floor"),
        (1.39, Target(1.4, 1.7), "below"),
        (3.0, Target(5.0, 3.0, higher=False), "met moon"),
        (5.0, Target(5.0, 3.0, higher=False), "met floor"),
        (5.1, Target(5.0, 3.0, higher=False), "below"),
        (1.0, None, ""),
    ],
)
def test_verdicts(ratio: float, target: Target | None, expected: str) -> None:
    assert verdict(ratio, target) == expected


def test_the_full_suite_covers_every_target_and_every_shape() -> None:
    rows = suite(FULL)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {row.target for row in rows} - {None} == TARGETS.keys()
    assert all(
        target.moon > target.floor if target.higher else target.moon < target.floor for target in TARGETS.values()
    )
    for model, sizes in {
        LLAMA2_7B: [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)],
        LLAMA3_8B: [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)],
        LLAMA2_70B: [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)],
    }.items():
        assert list(model.linears().values()) == sizes
        for d_out, d_in in sizes:
            assert any(f"{d_out}x{d_in} M=32768 over bf16" in name for name in names)
    heavy = [row.name for row in rows if row.target == "decode bandwidth"]
    assert sum("70B" in name for name in heavy) == 4
    quick = {row.name for row in suite(QUICK)}
    assert quick < set(names)
    assert len(quick) < 60
    for row in rows:
        if row.kind == "memory" and "7B B=64" in row.name and row.yardstick is not None:
            assert 3.6 < row.yardstick.bytes / row.case.bytes < 3.77


def test_the_kernels_take_every_size_of_the_full_suite() -> None:
    """Their own rules of what fits an SM: a case that no kernel takes would fail on the GPU only."""
    for n, (n1, n2) in FULL.factors.items():
        assert n1 * n2 == n
        assert tile_obstacle(n1, n2, True, True, itemsize=2) is None
    for n in FULL.blocks:
        assert tile_obstacle(n // FULL.block, FULL.block, False, True, itemsize=2) is None
    for n, order in FULL.hadamards.items():
        assert tile_shape(order, n // order, itemsize=2) is not None
    for n1, n2, rank in FULL.block_products:
        assert block_tile_obstacle(n1, n2, True, rank, itemsize=2) is None
    sizes = {size for model in FULL.models for size in model.linears().values()}
    assert {d_in for _, d_in in sizes} <= FULL.factors.keys()
    for d_out, d_in in sizes:
        for tokens in FULL.decode:
            shape = tiles.Shape(d_out, d_in // 2, d_in // 2, tiles.decode_tokens(tokens), True, False)
            assert len(tiles.decode_launches(shape, sms=132)) > 1
        for tokens in FULL.prefill:
            assert len(tiles.prefill_launches(tiles.Shape(d_out, d_in // 2, d_in // 2, tokens, False, False), 132)) > 1


def test_only_takes_a_text_or_a_pattern() -> None:
    assert {row.name for row in suite(FULL, "SDPA")} == {row.name for row in suite(FULL, "*over sdpa")}
    assert len(suite(FULL, "sdpa")) == 9


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """A GPU that is none: torch on the CPU, a clock by bytes, launches in a folder of the test."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    from sq.kernels.tuned import autotune

    monkeypatch.setenv("SINGLEQUANT_TUNED", str(tmp_path / "tuned"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA Fake 9000")
    autotune.store.cache_clear()
    clock = seconds(lambda case: case.bytes / 1e12 if case.tuned else case.bytes / 2e12)
    made = Machine("NVIDIA Fake 9000", TORCH, lambda limit: clock, environment())
    monkeypatch.setattr(cli, "find_machine", lambda: made)
    monkeypatch.setattr(cli, "FULL", TOY)
    monkeypatch.setattr(cli, "QUICK", TOY)
    monkeypatch.setattr(cli, "RESULTS", tmp_path / "results")
    yield made
    autotune.store.cache_clear()


def test_the_machine_is_what_cuda_and_nvidia_smi_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "is_available": True,
        "current_device": 0,
        "get_device_name": "NVIDIA H200",
        "get_device_properties": SimpleNamespace(L2_cache_size=60 * 2**20, multi_processor_count=132),
    }
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    smi = "NVIDIA T4, 1, 2 MHz\nNVIDIA H200, 580.95, 1980 MHz, 3201 MHz, 1980 MHz, 3201 MHz, 700.00 W, 31"
    monkeypatch.setattr(module, "_output", lambda *command: smi if command[0] == "nvidia-smi" else "")
    found = module.find_machine()
    assert found is not None
    assert (found.name, found.place) == ("NVIDIA H200", Place("cuda", "triton"))
    assert found.environment["sms"] == 132
    assert found.environment["nvidia_smi"]["clocks.mem"] == "3201 MHz"
    timer = found.timer(1.5)
    assert isinstance(timer, GraphTimer)
    assert (timer.l2_bytes, timer.seconds) == (60 * 2**20, 1.5)


def test_progress_tells_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 6.0, 12.0, 18.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    assert list(progress.tracked("abc", 3, "rows")) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == [
        "rows: 2 of 3, 12 s gone, about 6 s left",
        "rows: 3 of 3, 18 s gone, about 0 s left",
    ]
    monkeypatch.undo()
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.tracked("abc", 3, "rows")) == ["a", "b", "c"]


def test_the_command_prints_a_table_and_writes_json(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--quick"]) == 0
    printed = capsys.readouterr().out
    (file,) = (tmp_path / "results").iterdir()
    assert file.name.startswith("nvidia-fake-9000-2")
    assert [path.suffix for path in file.parent.iterdir()] == [".json"], "a temporary file was left"
    document = json.loads(file.read_text())
    assert (document["gpu"], document["part"], document["quick"]) == ("NVIDIA Fake 9000", "gpu", True)
    assert len(document["results"]) == len(suite(TOY))
    assert document["environment"]["torch"] == torch.__version__
    assert {"triton", "cuda", "nvidia_smi", "git_commit"} <= document["environment"].keys()
    row = next(r for r in document["results"] if r["row"] == "rotate_quantize 64 T=3")
    assert row["ratio"] == pytest.approx(0.5)  # ours moves 1 TB/s, the copy 2
    assert "50.0% of copy bandwidth" in printed
    assert summary(document["results"]) in printed
    assert "python run.py task=speed" in printed
    assert "those of an H200, not of NVIDIA Fake 9000" in printed


def test_a_failed_row_makes_status_1_and_an_interrupt_keeps_what_is_there(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"

    def failing(error: BaseException) -> Callable[[float | None], Any]:
        def timer(case: Case, place: Place) -> Timing:
            if case.name.startswith("hadamard"):
                raise error
            return Timing(1.0, 1.0, 1.0, 1, 1)

        return lambda limit: timer

    for error, status, kept in ((RuntimeError("no"), 1, len(suite(TOY))), (KeyboardInterrupt(), 130, None)):
        other = Machine(machine.name, machine.place, failing(error), {})
        monkeypatch.setattr(cli, "find_machine", lambda other=other: other)
        assert cli.main(["--out", str(out)]) == status
        results = json.loads(out.read_text())["results"]
        assert len(results) == kept or (kept is None and 0 < len(results) < len(suite(TOY)))
    assert "rows were not measured" in capsys.readouterr().out


def test_tune_calls_every_case_of_ours_once(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--tune"]) == 0
    ours = {row.case.name for row in suite(TOY) if row.case.tuned}
    assert f"{len(ours)} of {len(ours)} cases tuned, 0 launches new" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_mistakes_are_told_before_anything_runs(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--only", "nothing like it"]) == 2
    assert "--list" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["--out", str(tmp_path / "file" / "x.json")]) == 2
    assert "--out" in capsys.readouterr().err
    file = Path(os.environ["SINGLEQUANT_TUNED"]) / f"nvidia-fake-9000-triton-{version('triton')}.json"
    file.parent.mkdir()
    file.write_text("{")
    import_module("sq.kernels.tuned.autotune").store.cache_clear()
    for arguments in ([], ["--tune"]):
        assert cli.main(arguments) == 2
        assert "damaged" in capsys.readouterr().err
    assert cli.main(["--list", "--only", "sdpa"]) == 0
    assert capsys.readouterr().out == "Toy attention B=1 S=9 over sdpa\n"


def test_time_over_is_told(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_QUICK_SECONDS", 0.0)
    out = tmp_path / "out.json"
    assert cli.main(["--quick", "--out", str(out)]) == 1
    assert len(json.loads(out.read_text())["results"]) == 1
