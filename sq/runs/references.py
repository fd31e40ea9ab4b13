"""The runs that a run is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from sq.config.choices import content
from sq.config.parse import as_config
from sq.config.settings import ExperimentSettings, MethodSettings, WeightSettings
from sq.errors import ConfigError
from sq.formats.labels import FULL_PRECISION
from sq.quantize.typed import read


def reference(settings: ExperimentSettings, name: str) -> ExperimentSettings:
    """The run that `settings` is compared with: method `name` as its file states it, weights rounded to nearest.

    Model, bits, activation quantizer, calibration text and task stay as they are, so only the transform and the weight
    quantizer differ. Activations are kept of the run itself alone: a reference need not have their stages.
    """
    problems: list[str] = []
    method = read(MethodSettings, _load("method", name, settings), "method", problems)
    weights = read(WeightSettings, _load("weights", "rtn", settings), "weights", problems)
    if problems:
        raise ConfigError(problems)
    bits = settings.bits if method.quantizes else FULL_PRECISION
    task = replace(settings.task, activations=None)
    return replace(settings, method=method, bits=bits, weights=weights, task=task, save_to=None, export=None)


def _load(group: str, name: str, settings: ExperimentSettings) -> Any:
    """A choice's file with its references to other groups (${seed}, ${calibration.window}) taken from `settings`."""
    own = content(group, name)
    if "${" not in OmegaConf.to_yaml(own):
        return OmegaConf.to_container(own)
    around = OmegaConf.create({**as_config(settings), group: own})
    return OmegaConf.to_container(around[group], resolve=True)
