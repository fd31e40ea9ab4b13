"""Which backend is taken, and that nothing needs Triton or a GPU before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sq.kernels.backend import picks_triton, power_of_two_from

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # an import of it raises, and it is not found
import torch
from sq.kernels.hadamard import hadamard
from sq.kernels.kv4_attention import kv4_append, kv4_attention, kv4_cache
from sq.kernels.rotate_quantize import rotate_quantize
x = torch.ones(2, 16)
assert hadamard(x, torch.ones(1, 1))[0, 0] == 4
assert (rotate_quantize(x, torch.eye(4), torch.eye(4)).codes == 0x77).all()
cache = kv4_cache(2, 1, 1, 16)
kv4_append(cache, x[:, None, None], 3 * x[:, None, None], torch.tensor([0, 0]))
assert (kv4_attention(x[:, None], cache, torch.tensor([1, 1])) == 3).all()
try:
    hadamard(x, torch.ones(1, 1), backend="triton")
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_everything_but_triton_works_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Triton is not installed" in done.stdout


def test_automatic_choice_on_a_cpu_is_torch() -> None:
    assert not picks_triton("auto", torch.ones(1), None)
    assert not picks_triton("torch", torch.ones(1), None)


def test_a_forced_kernel_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match=r"tensor is on cpu.*TRITON_INTERPRET=1"):
        picks_triton("triton", torch.ones(1), None)
    with pytest.raises(ValueError, match=r"not in torch\.float64"):
        picks_triton("triton", torch.ones(1, dtype=torch.float64), None)
    with pytest.raises(ValueError, match="use one of auto, torch, triton"):
        picks_triton("cuda", torch.ones(1), None)  # type: ignore[arg-type]


def test_interpreter_runs_what_is_forced_and_leaves_the_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert picks_triton("triton", torch.ones(1), None)
    assert not picks_triton("auto", torch.ones(1), None)
    with pytest.raises(ValueError, match="too large"):
        picks_triton("triton", torch.ones(1), "it is too large")


def test_powers_of_two() -> None:
    assert [power_of_two_from(n) for n in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 4, 64, 128]
    assert power_of_two_from(3, least=16) == 16
