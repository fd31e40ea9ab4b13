"""Quantize a model with one method, measure it beside the methods it is compared with, and print the rows.

python run.py                                      # SingleQuant on the embedded model, W4A4
python run.py -m method=rtn,singlequant bits=w4a4,w4a8
python run.py --help                               # every group and its choices
"""

from __future__ import annotations

import os
import shlex
import sys

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from sq.config.compose import check, of_one_method
from sq.errors import ConfigError
from sq.runs.environment import COMMAND
from sq.runs.sweep import INTERRUPTED, SweepRecord, finish_sweep, job


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def hydra_main(cfg: DictConfig) -> None:
    """One job, as Hydra composed it."""
    job(cfg)


def main() -> int:
    """Check the whole command line, then let Hydra run its job or jobs; return the exit status."""
    args = get_args_parser().parse_args()
    asks_only = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    own_config = args.config_name or args.config_path or args.config_dir
    os.environ[COMMAND] = shlex.join(["python", *sys.argv])
    sys.argv[1:] = map(of_one_method, sys.argv[1:])
    interrupted = False
    try:
        if not asks_only and not own_config:
            check(args.overrides, multirun=bool(args.multirun))
        hydra_main()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupted = True
    except SystemExit:  # of a single run, or Hydra's when a launcher lost a worker: what the others finished is printed
        if SweepRecord.folder is None:
            raise
        finish_sweep(SweepRecord.folder, interrupted=False)
        return 1
    if SweepRecord.folder is not None:
        return finish_sweep(SweepRecord.folder, interrupted=interrupted)
    return INTERRUPTED if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
