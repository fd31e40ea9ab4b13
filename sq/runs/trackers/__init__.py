"""Trackers: where a run is logged beside its own folder. Each is one file with one class, a `Tracker`."""
