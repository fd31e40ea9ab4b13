"""Names of devices: what a setting may say, and the torch device that it means on this machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sq.errors import ConfigError

if TYPE_CHECKING:  # configs are checked by name, before anything loads torch
    import torch

DEVICE = r"auto|cpu|mps|(cuda|xpu)(:\d+)?"
ALLOWED = "auto, cpu, cuda, xpu, mps, or one card such as cuda:0 or xpu:0"


def pick_device(name: str, key: str = "model.device") -> torch.device:
    """The torch device of a setting; "auto" is CUDA where there is one, else the CPU.

    Args:
        key: the setting's name, for errors.

    Raises:
        ConfigError: no such name, a kind of device that torch finds none of, or a card beyond the last.
    """
    import torch

    if re.fullmatch(DEVICE, name) is None:
        raise ConfigError([f"{key}={name}; allowed: {ALLOWED}"])
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    count = _count(device.type)
    if count == 0:
        found = [kind for kind in ("cpu", "cuda", "xpu", "mps") if _count(kind)]
        raise ConfigError(
            [f"{key}={name}, torch {torch.__version__} finds no {device.type.upper()}; use {', '.join(found)} or auto"]
        )
    if device.index is not None and device.index >= count:
        raise ConfigError(
            [f"{key}={name}, torch {torch.__version__} finds {device.type}:0 to {device.type}:{count - 1}"]
        )
    return device


def _count(kind: str) -> int:
    """Devices of a kind that torch finds."""
    import torch

    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "xpu":
        return torch.xpu.device_count() if torch.xpu.is_available() else 0
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return 1
