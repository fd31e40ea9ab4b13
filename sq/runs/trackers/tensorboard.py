"""TensorBoard: event files in a local folder, `tensorboard --logdir <tracker.dir>/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from sq.config.settings import TrackerSettings
from sq.runs.results import Result, flat
from sq.runs.trackers.tracker import End, Opening


class TensorBoardTracker:
    """A folder of events, `<tracker.dir>/tensorboard/[<group>/]<run id>/<time>`; each attempt at a run has its own."""

    def __init__(self, settings: TrackerSettings, opening: Opening) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.config = flat(dict(opening.config))
        group = settings.group or opening.group
        now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        folder = (settings.dir or Path.cwd()) / "tensorboard" / (group or "") / opening.name / now
        self.writer: Any = SummaryWriter(str(folder))
        facts = {**self.config, "git_commit": opening.git_commit, "tags": ", ".join(settings.tags)}
        rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
        self.writer.add_text("config", f"| key | value |\n| --- | --- |\n{rows}")

    def numbers(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def result(self, result: Result) -> None:
        metrics = {name: value for name, value in result.metrics.items() if value is not None}
        plain = {key: value for key, value in self.config.items() if isinstance(value, (bool, int, float, str))}
        self.writer.add_hparams(plain, metrics, run_name=".")  # the tab that compares runs
        self.writer.add_text("status", result.status if result.error is None else f"{result.status}: {result.error}")

    def files(self, name: str, kind: str, folder: Path, paths: Sequence[Path]) -> None:
        """Pictures and tables are shown; TensorBoard keeps no files, so that of the others their places are."""
        self.writer.add_text(f"{kind}/{name}", "\n".join(f"- {path}" for path in paths))
        for path in paths:
            if path.suffix == ".png":
                from PIL import Image

                pixels = np.asarray(Image.open(path).convert("RGB"))
                self.writer.add_image(f"{kind}/{path.stem}", pixels, dataformats="HWC")
            elif path.suffix == ".md":
                self.writer.add_text(f"{kind}/{path.stem}", path.read_text(encoding="utf-8"))

    def close(self, end: End) -> None:
        if end == "interrupted":
            self.writer.add_text("status", end)
        self.writer.close()
