"""What configs may compute: `${trained:100}` is 100 steps of training at the run's `effort`."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf


def trained(count: int, *, _root_: DictConfig) -> int:
    """The published number of steps or epochs times the run's `effort`, at least 1 unless `effort` is 0."""
    effort = float(_root_.get("effort", 1.0))
    return max(1, round(count * effort)) if effort > 0 else 0


OmegaConf.register_new_resolver("trained", trained, replace=True)
