"""`sq-bench`: its options, its CPU part with a clock of the test's own, and what it may import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sq.cli import bench, bench_cpu
from sq.kernels.bench import cli


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two small linears; results go to a folder of the test."""
    monkeypatch.setattr(bench_cpu, "SHAPES", {"8x64": (8, 64), "16x96": (16, 96)})
    monkeypatch.setattr(bench_cpu, "TOKENS", (1, 3))
    monkeypatch.setattr(cli, "RESULTS", tmp_path / "results")
    return tmp_path


class Clock:
    """Time that passes by what calls spend, and by nothing else."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spending(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call


def test_samples_are_interleaved_and_as_long_as_asked() -> None:
    clock, order = Clock(), []

    def call(name: str, seconds: float) -> Callable[[], None]:
        spend = clock.spending(seconds)
        return lambda: (order.append(name), spend())[1]

    times = bench_cpu.interleaved({"a": call("a", 0.004), "b": call("b", 0.02)}, 3, least=0.01, clock=clock)
    assert times == {"a": pytest.approx([0.004] * 3), "b": pytest.approx([0.02] * 3)}
    assert "".join(order) == "aa" + "bb" + 3 * ("a" * 2 + "b"), "a needs 2.5 calls for 10 ms, told as 2"


def test_the_three_kinds_are_one_linear() -> None:
    """Packed and fake hold the same codes; the rotation leaves the linear what it was, up to 4-bit rounding."""
    kinds = bench_cpu.linears(48, 64)
    x = torch.randn(5, 64).bfloat16()
    with torch.no_grad():
        y = {name: linear(x).float() for name, linear in kinds.items()}
    assert float((y["packed"] - y["fake"]).norm() / y["fake"].norm()) < 0.01
    assert 0.02 < float((y["packed"] - y["bf16"]).norm() / y["bf16"].norm()) < 0.35


def test_weight_bytes_by_hand() -> None:
    sizes = {name: bench_cpu.weight_bytes(linear) for name, linear in bench_cpu.linears(48, 64).items()}
    assert sizes == {"bf16": 2 * 48 * 64, "fake": 2 * 48 * 64, "packed": 48 * 64 // 2 + 4 * 48}


def test_the_cpu_part_prints_ratios_and_writes_json(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """bf16 takes 3 ms, fake 6 ms and packed 2 ms a call: 1.5 and 3 times as fast."""
    clock = Clock()
    spent = {"bf16": 0.003, "fake": 0.006, "packed": 0.002}

    class Spending(nn.Module):
        def __init__(self, inner: nn.Module, seconds: float) -> None:
            super().__init__()
            self.inner, self.spend = inner, clock.spending(seconds)

        def forward(self, x: torch.Tensor) -> Any:
            self.spend()
            return self.inner(x)

    original = bench_cpu.linears
    made = lambda *size: {name: Spending(linear, spent[name]) for name, linear in original(*size).items()}  # noqa: E731
    monkeypatch.setattr(bench_cpu, "linears", made)
    monkeypatch.setattr(bench_cpu, "weight_bytes", lambda linear: 8)
    threads = torch.get_num_threads()
    assert bench_cpu.run(quick=True, threads=1, clock=clock) == 0
    assert torch.get_num_threads() == threads, "the number of threads was left changed"
    printed = capsys.readouterr().out
    assert "1 thread" in printed
    assert "1.50x" in printed
    assert "3.00x" in printed
    assert "over seconds of the packed one" in printed
    (file,) = (small / "results").iterdir()
    document = json.loads(file.read_text())
    assert (document["part"], document["environment"]["threads"]) == ("cpu", 1)
    assert [row["row"] for row in document["results"]] == [
        f"{shape}, {tokens}" for shape in ("8x64", "16x96") for tokens in ("1 token", "3 tokens")
    ]
    for row in document["results"]:
        assert row["ratio"] == {"bf16": pytest.approx(1.5), "fake": pytest.approx(3.0)}
        assert row["seconds"]["packed"] == pytest.approx(0.002)


def test_the_real_clock_measures(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = small / "cpu.json"
    assert bench.main(["--cpu", "--quick", "--only", "8x64, 3*", "--threads", "1", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["results"]
    assert row["row"] == "8x64, 3 tokens"
    assert all(seconds > 0 for seconds in row["seconds"].values())
    assert "8x64, 3 tokens" in capsys.readouterr().out


def test_a_row_that_fails_is_told_and_the_others_go_on(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = bench_cpu._measured

    def measured(shape: str, *rest: Any) -> Any:
        if shape == "8x64":
            raise RuntimeError("no such product")
        return original(shape, *rest)

    monkeypatch.setattr(bench_cpu, "_measured", measured)
    assert bench.main(["--cpu", "--quick"]) == 1
    assert "FAILED RuntimeError: no such product" in capsys.readouterr().out
    (file,) = (small / "results").iterdir()
    assert [row["status"] for row in json.loads(file.read_text())["results"]] == ["failed", "failed", "ok", "ok"]


def test_options_of_the_wrong_part_and_no_rows_are_mistakes(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["--threads", "2"], "--cpu"),
        (["--cpu", "--tune"], "GPU"),
        (["--cpu", "--threads", "0"], "1 or"),
    ):
        assert bench.main(arguments) == 2
        assert told in capsys.readouterr().err
    assert bench.main(["--cpu", "--only", "nothing"]) == 2
    (small / "file").write_text("")
    assert bench.main(["--cpu", "--out", str(small / "file" / "x.json")]) == 2
    assert "--out" in capsys.readouterr().err
    assert bench.main(["--cpu", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "8x64, 1 token"


BLOCKED = """
import sys
for name in ("hydra", "omegaconf", "wandb", "datasets", "lm_eval", "rich", "pandas", "accelerate", "matplotlib"):
    sys.modules[name] = None  # not installed, as far as an import can tell
import torch
torch.cuda.is_available = lambda: False
sys.argv = ["sq-bench"]
from sq.kernels.bench.cli import main
import sq.kernels.bench.cases
import sq.kernels.bench.progress as progress
assert list(progress.tracked([1, 2], 2, "counting")) == [1, 2]
known = ("sq.kernels", "sq.checkpoint")
loaded = [name for name in sys.modules if name.startswith("sq.") and not name.startswith(known)]
assert not loaded, f"the kernels' benchmark imports {loaded}"
assert main([]) == 2
assert main(["--list", "--quick"]) == 0
import sq.cli.bench, sq.cli.bench_cpu
sys.exit(sq.cli.bench.main(["--cpu", "--list"]))
"""


@pytest.mark.slow
def test_nothing_but_torch_and_triton_is_imported_and_no_gpu_is_told() -> None:
    """The kernels' part needs nothing of the framework either; without a GPU it ends with 2 and runs nothing."""
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no GPU: torch.cuda.is_available() is false, so nothing was run; `sq-bench --cpu`" in done.stderr
    assert "counting: 2 of 2" in done.stderr
    assert "rotate_quantize 4096 T=4096" in done.stdout
    assert "4096x4096, 256 tokens" in done.stdout
