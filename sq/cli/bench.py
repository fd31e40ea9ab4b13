"""`sq-bench`: the kernels on a GPU beside yardsticks and floors; with --cpu, packed linears on this CPU; `sq-bench
quantize`: how long methods take to quantize."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sq.cli.status import Mistake, ended
from sq.kernels.bench import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line and run one of the three parts; return the exit status (sq/kernels/bench/cli.py)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "quantize":
        from sq.cli import bench_quantize

        return ended("sq-bench quantize", lambda: bench_quantize.main(arguments[1:]))
    parser = cli.parser()
    parser.epilog = (
        "sq-bench quantize [--case NAME] [--only TEXT] [--rounds N] [--layers N] [--threads N] [--out FILE] "
        "[OVERRIDE ...] measures how long methods take to quantize; `sq-bench quantize --help` says more"
    )
    parser.add_argument("--cpu", action="store_true", help="packed, fake-quantized and bfloat16 linears on this CPU")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch, with --cpu (default: torch's own choice)")
    given = parser.parse_args(arguments)
    return ended("sq-bench", lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    if not given.cpu:
        if given.threads is not None:
            raise Mistake("--threads is of the CPU part; add --cpu")
        return cli.run(given)
    if given.tune:
        raise Mistake("--tune is of the GPU part; leave --cpu out")
    if given.threads is not None and given.threads < 1:
        raise Mistake(f"--threads is {given.threads}; use 1 or more")
    from sq.cli import bench_cpu

    return bench_cpu.run(given.only, quick=given.quick, threads=given.threads, listed=given.list, out=given.out)


if __name__ == "__main__":
    sys.exit(main())
