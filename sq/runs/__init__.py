"""Run directories, result.json, sweeps, locks and trackers."""
