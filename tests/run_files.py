"""Small real runs of the embedded model, which the tests of figures, notebooks and reports read.

    python tests/run_files.py          # makes tests/analysis/fixture/ anew, a few minutes on two cores

Needed again when a setting is added, removed or renamed. Kept of each run: result.json without the places of the
machine, windows.npz, training.jsonl, and some of the tokens of activations.npz.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from sq.config.parse import as_config, parse
from sq.digest import SEAL, sealed
from sq.runs.results import SCHEMA, digests_of
from sq.runs.runid import arithmetic, run_id

ROOT = Path(__file__).resolve().parents[1]
FIXTURE = ROOT / "tests" / "analysis" / "fixture"
# What makes the runs small and few; given to sq-report, the same words find them again.
OVERRIDES = (
    "model.evaluation_windows=2",
    "model.calibration_tokens=512",
    "effort=0.2",
    "weights=rtn",
    "bits=w4a4",
    "seed=0",
)
COMMANDS = (
    "-m experiment=table_perplexity method=rtn,quarot,spinquant,singlequant",
    "-m experiment=table_ablation method=ablation/hadamard,ablation/dense_bound",
    "-m experiment=table_time method=rtn,singlequant",
    "-m experiment=figure_art_steps method.art_steps=1,16",
    "experiment=figure_convergence",
    "experiment=figure_outliers",
    "experiment=figure_givens",
)
TOKENS = 16  # of activations.npz; the points of the Givens rotation are all kept


def main() -> None:
    """Run the commands and replace the fixture."""
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            words = [*command.split(), *OVERRIDES, f"paths.results={folder}"]
            subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, check=True)
        shutil.rmtree(FIXTURE, ignore_errors=True)
        for path in sorted(Path(folder).glob("*/result.json")):
            keep(path.parent, FIXTURE / path.parent.name)


def real_runs(folder: Path) -> Path:
    """Copy the fixture under the run ids that its settings have today; ids carry the version and the model."""
    for path in sorted(FIXTURE.glob("*/result.json")):
        result = json.loads(path.read_text())
        # Digests of the model are kept in the cache, which must not lie where the tests are started.
        paths = {"results": str(folder), "cache": str(folder.parent / "cache")}
        settings = parse(OmegaConf.create({**result["config"], "paths": paths}))
        result |= {"run_id": run_id(settings), "arithmetic": arithmetic(settings), "config": as_config(settings)}
        shutil.copytree(path.parent, folder / result["run_id"])
        write_record(folder / result["run_id"], result)
    return folder


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write a hand-made or changed result.json as a run of today would: with its schema, digests of files, and seal."""
    record = {key: value for key, value in record.items() if key != SEAL}
    record |= {"schema": SCHEMA, "files": digests_of(folder)}
    (folder / "result.json").write_text(json.dumps(sealed(record)))


def keep(run: Path, place: Path) -> None:
    """Copy what the tests read, without what belongs to this machine."""
    place.mkdir(parents=True)
    result = json.loads((run / "result.json").read_text())
    result["config"]["paths"] = {"results": "runs", "cache": "cache"}
    result["command"] = " ".join(word for word in result["command"].split() if not word.startswith("paths."))
    result["environment"].pop("platform", None)
    (place / "result.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")
    for name in ("windows.npz", "training.jsonl"):
        if (run / name).is_file():
            shutil.copy(run / name, place / name)
    if (run / "activations.npz").is_file():
        with np.load(run / "activations.npz") as arrays:
            np.savez_compressed(place / "activations.npz", **{name: cut(name, arrays[name]) for name in arrays})


def cut(name: str, values: np.ndarray) -> np.ndarray:
    """Fewer tokens, and 11 bits of each number, which half the bytes hold."""
    if values.dtype != np.float32:
        return values
    values = values if name.startswith("givens") else values[:TOKENS]
    return values.astype(np.float16).astype(np.float32)


if __name__ == "__main__":
    main()
