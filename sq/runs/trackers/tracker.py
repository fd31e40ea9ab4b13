"""What a tracker is: a run that is open while the work goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from sq.runs.results import Result

End: TypeAlias = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Opening:
    """What is known of a run when it begins.

    Attributes:
        name: the run id, or the name of a folder of figures.
        config: the resolved config; {} where there is none.
        group: the sweep's name.
        git_commit: of the package.
    """

    name: str
    config: Mapping[str, Any]
    group: str | None = None
    git_commit: str | None = None


class Tracker(Protocol):
    """An open run of a tracker. It is opened by calling the class with (TrackerSettings, Opening).

    Any method may raise: `sq.runs.tracking` turns the first error into a warning and leaves the tracker alone after it.
    """

    def numbers(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step of a kind of work, named "<kind>/<name>"; each kind counts its own steps."""

    def result(self, result: Result) -> None:
        """The finished or failed result."""

    def files(self, name: str, kind: str, folder: Path, paths: Sequence[Path]) -> None:
        """Keep files below `folder` as one artifact; pictures are shown where the tracker shows some."""

    def close(self, end: End) -> None:
        """The run is over."""
