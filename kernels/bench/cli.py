"""The command line of the GPU part: `sq-bench`, or `python -m sq.kernels.bench`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..files import write_json
from ..tuned.store import shared_folder, slug
from .case import Place, Row
from .machine import Machine, find_machine
from .measure import Result, measure, summary, table
from .progress import tracked
from .shapes import FULL, QUICK
from .suite import suite
from .timing import Timer, called_once, emptied

RESULTS = Path(__file__).resolve().parent / "results"
# With --quick: seconds that a case, the timing of a tuning and the whole run may take. It has 52 cases and 24 tunings,
# each of which compiles as many launches at once as there are CPUs, in some 5 s, before it times them: about 4 minutes.
_QUICK_CASE_SECONDS, _QUICK_TUNING_SECONDS, _QUICK_SECONDS = 1.5, 1.5, 285.0
_REST = (
    "Whole models (7B prefill 2048, decode at batch 1, 16, 64) are measured by: python run.py task=speed "
    "(floors over bfloat16: prefill 1.5x, decode 2.0x, 2.2x, 2.4x; 480 tokens a second at batch 1 on an H200)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Exit status: 0 all rows were measured, 1 some failed, 2 no GPU or a mistake, 130 stopped early."""
    return run(parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The options of the GPU part."""
    made = argparse.ArgumentParser(
        prog="sq-bench", description="Measure the int4 kernels on this GPU beside yardsticks, floors and targets."
    )
    made.add_argument("--quick", action="store_true", help="a subset in under 5 minutes, launches tuned in part")
    made.add_argument("--only", metavar="PATTERN", help="rows whose name holds this text (or matches, with * and ?)")
    made.add_argument("--list", action="store_true", help="print the rows and measure nothing")
    made.add_argument("--tune", action="store_true", help="tune every shape and store the launches; measure nothing")
    made.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON (default: results/<gpu>-<date>.json beside the suite)"
    )
    return made


def run(options: argparse.Namespace) -> int:
    """What `main` does with parsed options."""
    rows = suite(QUICK if options.quick else FULL, options.only)
    if not rows:
        return mistake(f"no row matches --only {options.only!r}; --list prints them")
    if options.list:
        print("\n".join(row.name for row in rows))
        return 0
    machine = find_machine()
    if machine is None:
        return mistake(
            "no GPU: torch.cuda.is_available() is false, so nothing was run; `sq-bench --cpu` measures this CPU"
        )
    from ..tuned.autotune import store

    try:
        store()
        if options.tune:
            return _tune(rows, machine)
        out = result_file(options.out, machine.name)
    except (OSError, ValueError) as error:  # launches that cannot be used, or a file that cannot be written
        return mistake(str(error))
    return _measure(rows, machine, options.quick, out)


def result_file(out: Path | None, name: str) -> Path:
    """`out`, or a file named after what is measured and the time; its folder is made.

    Raises OSError where it could not be written: before hours of measuring and not after them.
    """
    out = out or RESULTS / f"{slug(name)}-{datetime.now():%Y-%m-%d-%H%M}.json"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK):
            raise PermissionError("its folder is read-only")
    except OSError as error:
        raise OSError(f"{out} cannot be written ({error}); name another file with --out") from error
    return out


def collected(results: Iterable[Result], into: list[Result], seconds: float | None = None) -> int:
    """Take results until they end (0), the seconds are over (1) or Ctrl-C comes (130); what came by then is kept."""
    start = time.perf_counter()
    try:
        for result in results:
            into.append(result)
            if seconds is not None and time.perf_counter() - start > seconds:
                return 1
    except KeyboardInterrupt:
        return 130
    return 0


def report(document: dict[str, Any], rows: int, status: int, out: Path, text: Callable[[list[Result]], str]) -> int:
    """Print `text` of the results, of `rows` that were to be measured, write the JSON, return the exit status."""
    results = document["results"]
    print(text(results))
    if missing := rows - len(results):
        print(f"stopped early: {missing} rows were not measured")
    write_json(out, _plain(document | {"created": datetime.now(timezone.utc).isoformat(timespec="seconds")}))
    print(f"written to {out}")
    return max(status, int(missing > 0), *(int(result["status"] == "failed") for result in results))


def _measure(rows: list[Row], machine: Machine, quick: bool, out: Path) -> int:
    from ..tuned.autotune import store, tuning_limit

    print(f"{machine.name}: {len(rows)} rows")
    known = len(store())
    timer = machine.timer(_QUICK_CASE_SECONDS if quick else None)
    with tuning_limit(_QUICK_TUNING_SECONDS) if quick else nullcontext(set[str]()) as cut:
        results, status = _results(rows, machine.place, timer, "sq-bench", _QUICK_SECONDS if quick else None)
    tuning = {"stored_before": known, "stored_now": len(store()), "cut_short": sorted(cut)}
    document = {"schema": 1, "part": "gpu", "gpu": machine.name, "quick": quick, "tuning": tuning}
    document |= {"environment": machine.environment, "results": results}
    status = report(document, len(rows), status, out, lambda made: f"{table(made)}\n\n{summary(made)}")
    if "H200" not in machine.name:
        print(f"floors and stretch targets are those of an H200, not of {machine.name}")
    if cut:
        print(f"not fully tuned, so not at their best: {', '.join(sorted(cut))}; `sq-bench --tune` tunes them once")
    print(_REST)
    return status


def _tune(rows: list[Row], machine: Machine) -> int:
    """Call every case of ours once: that tunes it and stores the launch as soon as it is found."""
    from ..tuned.autotune import store

    store().target = shared_folder()
    cases = {case.name: case for row in rows for case in (row.case, row.yardstick) if case is not None and case.tuned}
    alone = [Row(case.name, case, "rate") for case in cases.values()]
    known = len(store())
    results, status = _results(alone, machine.place, called_once, "sq-bench --tune")
    failed = [result for result in results if result["status"] == "failed"]
    for result in failed:
        print(f"{result['row']}: {result['reason']}")
    path = store().target / store().file_name
    print(f"{len(results) - len(failed)} of {len(alone)} cases tuned, {len(store()) - known} launches new, in {path}")
    return max(status, int(bool(failed)))


def _results(
    rows: list[Row], place: Place, timer: Timer, what: str, seconds: float | None = None
) -> tuple[list[Result], int]:
    """Results of the rows, and the status of `collected`; each case's memory is given back before the next case."""
    results: list[Result] = []
    made = measure(rows, place, timer, between=lambda: emptied(torch.cuda))
    return results, collected(tracked(made, len(rows), what), results, seconds)


def mistake(text: str) -> int:
    """Print a mistake in the options and return its exit status."""
    print(f"sq-bench: {text}", file=sys.stderr)
    return 2


def _plain(value: Any) -> Any:
    """NaN and infinity as null: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value
