"""The end of a process, without its modules being taken apart one by one."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import NoReturn


def leave(status: int, program: str) -> NoReturn:
    """End the process with this status, when all files are written and every atexit handler has run.

    Freeing the half a million objects of torch and transformers takes 1.3 s, a tenth of `python run.py`. A program
    that another one runs, such as a profiler or a debugger, ends as any other.

    Args:
        program: path of the script, which `python` was started with and nothing else.

    Raises:
        SystemExit: where Python was started with something else.
    """
    if not sys.orig_argv[1:] or Path(sys.orig_argv[1]).absolute() != Path(program).absolute():
        sys.exit(status)
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError:  # Python's own end says so
        sys.exit(status)
    os._exit(status)
