"""Inject faults at random and count what held.

python -m tests.faults --count 500 --seed 0
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults.kinds import HELD, KINDS, LOST, STUCK, TRACEBACK, WRONG
from tests.faults.world import make_world

VERDICTS = (HELD, LOST, WRONG, STUCK, TRACEBACK)


def campaign(
    count: int, seed: int, folder: Path, *, only: str | None = None, first: int = 0
) -> dict[str, Counter[str]]:
    """Inject `count` faults drawn from `seed` in a folder; how they came out, by kind. Stories of those that did not
    hold are printed as they come."""
    torch.set_num_threads(1)  # a fork of a process with threads may hang
    world = make_world(folder)
    names, weights = list(KINDS), [weight for _, weight in KINDS.values()]
    found: dict[str, Counter[str]] = {name: Counter() for name in names}
    for number in range(first, first + count):
        dice = random.Random(f"{seed} {number}")
        (name,) = [only] if only else dice.choices(names, weights)
        inject, _ = KINDS[name]
        outcome = inject(world, dice, f"{number:04d}")
        found[name][outcome.verdict] += 1
        if outcome.verdict != HELD:
            print(f"{outcome.verdict}: fault {number} of seed {seed}, {name}: {outcome.story}", flush=True)
        shutil.rmtree(world.folder / "faults", ignore_errors=True)
        if sys.stderr.isatty() or (number + 1) % 50 == 0:
            print(f"{number + 1} of {first + count}", file=sys.stderr, end="\r" if sys.stderr.isatty() else "\n")
    return found


def main() -> int:
    """Run a campaign and print its table; exit status 1 where something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(KINDS), help="faults of one kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first one, to repeat it with --count 1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(options.count, options.seed, Path(folder), only=options.only, first=options.first)
    print(f"| class | tried | {' | '.join(VERDICTS)} |\n|---|{'---:|' * (len(VERDICTS) + 1)}")
    for name, counts in [*found.items(), ("all", sum(found.values(), Counter()))]:
        print(f"| {name} | {counts.total()} | {' | '.join(str(counts[verdict]) for verdict in VERDICTS)} |")
    bad = sum(counts.total() - counts[HELD] for counts in found.values())
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
