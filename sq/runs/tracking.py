"""Let a tracker follow a run. It is open while the run works, and no error of it can stop or damage the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from sq.config.settings import TrackerSettings
from sq.runs.results import Result
from sq.runs.trackers.tracker import End, Opening, Tracker

log = logging.getLogger(__name__)
TRACKERS = {
    "offline": "sq.runs.trackers.weights_and_biases:WandbTracker",
    "online": "sq.runs.trackers.weights_and_biases:WandbTracker",
    "tensorboard": "sq.runs.trackers.tensorboard:TensorBoardTracker",
    "mlflow": "sq.runs.trackers.mlflow:MlflowTracker",
}


def under_agent() -> bool:
    """Whether the agent of a W&B sweep started this process; the agent waits for one run, whose id it has chosen."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


class Tracked:
    """A run that a tracker follows. Its first error, in whatever call, is one warning; the tracker is then left alone.

    Attributes:
        taken: whether the tracker took everything so far; False where there is none.
    """

    def __init__(self, settings: TrackerSettings, opening: Opening) -> None:
        self.settings, self.opening = settings, opening
        self.end: End = "finished"
        self.taken = settings.name != "none"
        self._tracker: Tracker | None = None
        self._count = 0

        def opened() -> None:
            self._tracker = resolve_name(TRACKERS[settings.name])(settings, opening)

        self._try(opened)

    def tell(self, kind: str, values: Mapping[str, Any]) -> None:
        """A `sq.runs.results.Tell`: numbers that are known while the run works."""
        numbers = {name: value for name, value in values.items() if type(value) in (int, float)}
        layer = numbers.pop("layer", None)
        self._count += 1
        if kind == "layer":
            step, place = layer, kind
        else:
            step, place = numbers.pop("step", self._count), kind if layer is None else f"{kind}/layer_{layer:02d}"
        named = {f"{place}/{name}": value for name, value in numbers.items()}
        if named:
            self._try(lambda: self._open.numbers(kind, int(step), named))

    def finish(self, result: Result, folder: Path) -> None:
        """The result, and the files that the settings name: those of its run directory, and of its packed folder."""
        self.end = result.status
        self._try(lambda: self._open.result(result))
        places: dict[str, Any] = {"run": folder, "packed": result.config.get("save_to")}
        for kind in self.settings.artifacts:
            if places[kind] is not None:
                self.files(f"{kind}-{result.run_id}", kind, Path(places[kind]))

    def files(self, name: str, kind: str, folder: Path) -> None:
        """All files below a folder as one artifact; those whose names begin with a dot are left out."""
        found = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
        self._try(lambda: self._open.files(name, kind, folder, found))

    def close(self, end: End) -> None:
        """The run is over."""
        self._try(lambda: self._open.close(end))

    @property
    def _open(self) -> Tracker:
        assert self._tracker is not None  # `_try` calls nothing after an error
        return self._tracker

    def _try(self, act: Callable[[], None]) -> None:
        if not self.taken:
            return
        try:
            act()
        except Exception as error:  # their own classes, OSError of their folders, errors of protobuf and of the network
            self.taken = False
            log.warning(
                "tracker=%s did not take %s%s: %s: %s. The run itself is safe in its run directory; tracker=none "
                "leaves the tracker out.",
                self.settings.name,
                self.opening.name,
                f" in {self.settings.dir}" if self.settings.dir else "",
                type(error).__name__,
                " ".join(str(error).split()) or "no reason given",
            )


@contextmanager
def tracking(settings: TrackerSettings, opening: Opening) -> Iterator[Tracked]:
    """A run that is followed inside the block, and closed with it: as interrupted where the block is."""
    run = Tracked(settings, opening)
    try:
        yield run
    except BaseException:
        run.close("interrupted")
        raise
    run.close(run.end)


def opening_of(
    run_id: str, config: Mapping[str, Any], arithmetic: str, group: str | None, commit: str | None
) -> Opening:
    """What a tracker learns of a run at its start."""
    told = {**config, "run_id": run_id, "arithmetic": arithmetic}
    if under_agent():
        told["settings"] = dict(config)  # W&B locks the keys of its sweep: there `method` is a name
    return Opening(run_id, told, group, commit)


def track(settings: TrackerSettings, result: Result, folder: Path, *, group: str | None = None) -> bool:
    """Log a run that is over; return whether the tracker took it."""
    opening = opening_of(result.run_id, result.config, result.arithmetic, group, result.git_commit)
    with tracking(settings, opening) as run:
        run.finish(result, folder)
    return run.taken
