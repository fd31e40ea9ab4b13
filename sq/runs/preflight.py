"""What the config check cannot see, because it knows no run ids: folders that runs would take from one another."""

from __future__ import annotations

from collections.abc import Sequence

from sq.checkpoint.save_to import save_conflicts
from sq.config.settings import ExperimentSettings
from sq.errors import ConfigError
from sq.runs.runid import identity, run_id


def check_jobs(jobs: Sequence[ExperimentSettings]) -> None:
    """Look at the places that the jobs of a command line save to, before the first one starts.

    Raises:
        ConfigError: a save_to that holds the checkpoint of another run, or that two jobs want.
    """
    saving = [(job.save_to, run_id(job), identity(job)) for job in jobs if job.save_to is not None]
    if problems := list(save_conflicts(saving)):
        raise ConfigError(problems)
