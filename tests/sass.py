"""What a compiled kernel takes of an SM, by the tools that come with Triton; no GPU is needed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Resources(NamedTuple):
    """Of one thread: 32-bit registers and bytes of memory for what they do not hold; barriers in the machine code."""

    registers: int
    spilled: int
    barriers: int

    def programs(self, warps: int) -> int:
        """Programs that the registers of an SM hold: they come in eights a thread."""
        return 65536 // (32 * warps * (-(-self.registers // 8) * 8))


def resources(compiled: Any, folder: Path) -> Resources:
    """Of a kernel that triton.compile made for an NVIDIA GPU; the test is skipped where cuobjdump is missing."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton comes without cuobjdump, which counts registers and barriers")
    (path := folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])

    def said(option: str) -> str:
        return subprocess.run([str(tool), option, str(path)], capture_output=True, text=True, check=True).stdout

    counted = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said("-res-usage"))
    assert counted is not None
    registers, stack, local = map(int, counted.groups())
    return Resources(registers, stack + local, said("-sass").count("BAR.SYNC"))
