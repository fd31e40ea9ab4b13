"""What an operation must know of a number format to say whether it takes it."""

from __future__ import annotations

from typing import Protocol

from .schemes import Scheme


class Format(Protocol):
    """A number format, of any class with these attributes; messages show its name."""

    @property
    def name(self) -> str: ...

    @property
    def bits(self) -> int:
        """Of a code."""

    @property
    def group(self) -> int | None:
        """Neighbouring entries of a row that share a scale; None where the whole row does."""

    @property
    def tensor(self) -> bool:
        """Whether a whole tensor shares one scale."""

    @property
    def second(self) -> bool:
        """Whether there is a further scale on top of the others."""

    @property
    def scheme(self) -> Scheme | None:
        """The integer grid of kernels/grid.py that codes lie on; None for any other levels, such as MXFP4's."""


def grid_obstacle(format: Format) -> str | None:
    """Why codes of a format are no integers with a scale for each row or group, or None."""
    if format.scheme is None:
        return f"the levels of {format.name} are not an integer grid"
    if format.tensor or format.second:
        return f"{format.name} has one scale for a whole tensor, not one for each row or group alone"
    return None
