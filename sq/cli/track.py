"""`sq-track`: give a tracker a folder of figures, tables or anything else, as one artifact of a run of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sq.cli.status import Mistake, ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse a command line and send the folder; return the exit status."""
    parser = argparse.ArgumentParser(prog="sq-track", description="Give a tracker a folder of figures or tables.")
    parser.add_argument("folder", type=Path, help="sent with everything below it, such as the folder of sq-report")
    parser.add_argument("overrides", nargs="*", help="as in run.py: tracker=mlflow tracker.group=nights")
    parser.add_argument("--name", help="of the artifact; without it that of the folder")
    parser.add_argument("--kind", default="figures", help="of the artifact (default: %(default)s)")
    options = parser.parse_args(arguments)
    return ended("sq-track", lambda: _send(options))


def _send(options: argparse.Namespace) -> int:
    from sq.config.compose import compose
    from sq.runs.environment import git_commit
    from sq.runs.sweep import configure_logging
    from sq.runs.trackers.tracker import Opening
    from sq.runs.tracking import tracking

    if not options.folder.is_dir():
        raise Mistake(f"{options.folder} is not a folder; give the folder whose files are to be sent")
    settings = compose(options.overrides).tracker
    if settings.name == "none":
        raise Mistake("tracker=none takes nothing; choose offline, online, tensorboard or mlflow")
    configure_logging()  # a tracker that refuses is a warning
    name = options.name or options.folder.resolve().name
    with tracking(settings, Opening(name, {}, None, git_commit())) as followed:
        followed.files(name, options.kind, options.folder)
    return 0 if followed.taken else 1


if __name__ == "__main__":
    sys.exit(main())
