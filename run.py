"""Quantize a model with one method, measure it beside the methods it is compared with, and print the rows.

python run.py                                      # SingleQuant on the embedded model, W4A4
python run.py -m method=rtn,singlequant bits=w4a4,w4a8
python run.py --help                               # every group and its choices
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from sq.config.choices import of_one_method  # which also registers the variants of methods with Hydra


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def hydra_main(cfg: DictConfig) -> float | list[float] | None:
    """One job, as Hydra composed it; a search reads the metrics that it returns."""
    from sq.runs.sweep import job

    return job(cfg)


def main() -> int:
    """Print help or a config (--help, --cfg), which imports nothing heavy, or run; return the exit status."""
    args, command = get_args_parser().parse_args(), list(sys.argv)
    sys.argv[1:] = map(of_one_method, sys.argv[1:])
    if not (args.help or args.hydra_help or args.cfg or args.info or args.shell_completion):
        return run(args, command)
    hydra_main()
    return 0


def run(args: Namespace, command: list[str]) -> int:
    """Check the whole command line, then let Hydra run its job or jobs; return the exit status."""
    from sq.config.compose import compose_jobs
    from sq.errors import SQError
    from sq.runs.environment import COMMAND
    from sq.runs.interrupt import heed_sigterm
    from sq.runs.leave import leave
    from sq.runs.preflight import check_jobs
    from sq.runs.sweep import INTERRUPTED, SweepRecord, finish_sweep, finish_waiting

    os.environ[COMMAND] = shlex.join(["python", *command])
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors of Hydra's own files (a full disk) arrive here
    interrupted = False
    heed_sigterm()
    try:
        if not (args.config_name or args.config_path or args.config_dir):
            check_jobs(compose_jobs(args.overrides, multirun=bool(args.multirun)))
        hydra_main()
        if SweepRecord.folder is not None:
            finish_waiting(SweepRecord.folder)
    except SQError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        full = isinstance(error, OSError)
        if not full and SweepRecord.folder is None:
            raise
        hint = "see that the disk has room and its folders can be written to" if full else "the sweep ended early"
        print(f"run.py: {type(error).__name__}: {' '.join(str(error).split())}; {hint}", file=sys.stderr)
        if SweepRecord.folder is not None:  # what the others finished is printed
            finish_sweep(SweepRecord.folder, interrupted=False)
        return 1
    except KeyboardInterrupt:
        interrupted = True
    except SystemExit as end:  # of a single run, or Hydra's own
        if SweepRecord.folder is None:
            if isinstance(end.code, int):  # all is written; the workers of a sweep would have to be waited for
                leave(end.code, __file__)
            raise
        finish_sweep(SweepRecord.folder, interrupted=False)
        return 1
    if SweepRecord.folder is not None:
        return finish_sweep(SweepRecord.folder, interrupted=interrupted)
    return INTERRUPTED if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
