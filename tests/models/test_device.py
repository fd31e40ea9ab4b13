"""Names of devices become torch devices where torch has them, and errors that say what it has where not."""

from __future__ import annotations

import pytest
import torch

from sq.config.compose import compose
from sq.errors import ConfigError
from sq.models.device import pick_device


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, xpu: int = 0, mps: bool = False) -> None:
    for module, count in ((torch.cuda, cuda), (torch.xpu, xpu)):
        monkeypatch.setattr(module, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(module, "device_count", lambda count=count: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1", "xpu", "xpu:2", "mps"])
def test_names_that_torch_has(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    machine(monkeypatch, cuda=2, xpu=3, mps=True)
    assert pick_device(name) == torch.device(name)
    assert compose([f"model.device='{name}'"]).model.device == name


def test_auto_is_cuda_or_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=1)
    assert pick_device("auto") == torch.device("cuda")
    machine(monkeypatch, xpu=1, mps=True)
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda", "model.device=cuda, torch .* finds no CUDA; use cpu, xpu or auto"),
        ("cuda:1", "model.device=cuda:1, torch .* finds no CUDA; use cpu, xpu or auto"),
        ("mps", "model.device=mps, torch .* finds no MPS; use cpu, xpu or auto"),
        ("xpu:2", "model.device=xpu:2, torch .* finds xpu:0 to xpu:1"),
        ("tpu", "model.device=tpu; allowed: auto, cpu, cuda, xpu, mps, or one card such as cuda:0 or xpu:0"),
        ("cpu:1", "model.device=cpu:1; allowed: auto, cpu"),
        ("", "model.device=; allowed: auto, cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    machine(monkeypatch, xpu=2)
    with pytest.raises(ConfigError, match=said):
        pick_device(name)
