"""A change that must not change results, checked: KL and perplexity of 28 runs against those of an earlier commit.

    OMP_NUM_THREADS=1 python tests/same_results.py            # about 6 minutes on two cores
    OMP_NUM_THREADS=1 python tests/same_results.py --write    # take today's numbers as the ones to keep

The numbers in same_results.json are those of commit 3a537c3 on an AMD EPYC with AVX-512, one thread, torch 2.13.0+cpu.
They belong to one kind of machine and to one Python version, whose standard library is the evaluation text: elsewhere
write them on the commit before a change, and compare behind it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TOLERANCE = 1e-6
KEPT = Path(__file__).with_suffix(".json")
SHORT = ["task.perplexity.count=8", "tracker=none"]
COMMANDS = {
    "default": ["tracker=none"],
    "table_perplexity": ["-m", "experiment=table_perplexity", "effort=0.05", *SHORT],
    "site_clips": ["-m", "weights=rtn,gptq", "activations.clip=site", "reference_methods=[fp16]", *SHORT],
    "kv4": ["bits=w4a4kv4", *SHORT],
    "packed": ["save_to={folder}/saved", *SHORT],
    "packed_kv4": [
        "save_to={folder}/saved_kv4", "bits=w4a4kv4", "weights=gptq", "activations=midrise", "weights.group_size=64",
        "method.rank=4", *SHORT,
    ],
}  # fmt: skip


def main() -> int:
    """Run all commands, compare, print every difference; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="keep today's numbers instead of comparing")
    parser.add_argument("--only", choices=COMMANDS, nargs="+", default=list(COMMANDS))
    asked = parser.parse_args()
    known = json.loads(KEPT.read_text())
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measured(name, Path(folder)) for name in asked.only}
    if asked.write:
        KEPT.write_text(json.dumps({**known, **found}, indent=1) + "\n")
        return 0
    worst = 0.0
    for name, rows in found.items():
        if missing := set(known[name]) - set(rows):
            print(f"{name}: no result for {', '.join(sorted(missing))}")
            worst = float("inf")
        for row, metrics in rows.items():
            for metric, value in metrics.items():
                expected = known[name].get(row, {}).get(metric, float("nan"))
                difference = abs(value - expected)
                worst = max(worst, difference) if difference == difference else float("inf")
                mark = "" if difference <= TOLERANCE else "  DIFFERS"
                print(f"{name:17s} {row:30s} {metric:4s} {value:.9f}  before {expected:.9f}{mark}")
    print(f"largest difference: {worst:.2e} (allowed: {TOLERANCE:.0e})")
    return int(not worst <= TOLERANCE)


def measured(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """KL and perplexity of one command's runs, by method and weight rounder."""
    results = folder / name
    words = [word.format(folder=folder) for word in COMMANDS[name]]
    run = Path(__file__).parents[1] / "run.py"
    command = [sys.executable, str(run), *words, f"paths.results={results}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = {}
    for file in sorted(results.glob("*/result.json")):
        result = json.loads(file.read_text())
        metrics = result["metrics"]
        rows[f"{result['method']} {result['weights']}"] = {
            "ppl": metrics["ppl/embedded"],
            "kl": metrics["kl/embedded"],
        }
    return rows


if __name__ == "__main__":
    sys.exit(main())
