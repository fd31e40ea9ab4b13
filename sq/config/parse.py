"""From a composed config to typed settings: `parse` finds every mistake before anything is loaded.

`as_config` is its inverse and writes the run directory's config.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter

from sq.config.choices import CONF as CONF
from sq.config.choices import VARIANTS, method_names
from sq.config.choices import options as options
from sq.config.model_name import model_name
from sq.config.rules import broken_rules
from sq.config.settings import ExperimentSettings
from sq.errors import ConfigError
from sq.formats.labels import FULL_PRECISION
from sq.models.place import EMBEDDED
from sq.quantize.typed import read_keys

# Left out of a config, and so of run ids, where they are null: adding a section leaves every other run's id as it was.
OPTIONAL = (("model", "architecture"), ("task", "activations"), ("task", "speed"), ("activations", "o_group"))


def parse(cfg: DictConfig) -> ExperimentSettings:
    """Check a composed config and turn it into settings.

    The method's class is imported, torch with it: its own types and ranges decide about its arguments.

    Raises:
        ConfigError: with every mistake of the config, one sentence each.
    """
    problems: list[str] = []
    try:
        values: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([str(error).splitlines()[0]]) from error
    values.pop(VARIANTS, None)
    if isinstance(values.get("method"), dict):
        values["method"] = _own_arguments(values["method"])
    if isinstance(model := values.get("model"), dict):
        if model.get("name", "") is None:
            model["name"] = model_name(str(model.get("path")))
        if model.get("outliers") == "auto":
            model["outliers"] = "planted" if model.get("path") == EMBEDDED else "none"
    found = read_keys(ExperimentSettings, values, "", problems)
    if "method" in found and not found["method"].quantizes:
        found["bits"] = FULL_PRECISION
    problems += broken_rules(found)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    settings = ExperimentSettings(**found)
    # Full precision is one of the kinds that task=speed measures, beside the others and in the same minutes.
    return settings if settings.task.speed is None else replace(settings, reference_methods=())


def as_config(settings: ExperimentSettings) -> dict[str, Any]:
    """The settings as plain YAML-ready values, shaped like the composed config: parse(as_config(s)) == s."""
    config: dict[str, Any] = TypeAdapter(ExperimentSettings).dump_python(settings, mode="json")
    for part, key in OPTIONAL:
        if config[part][key] is None:
            del config[part][key]
    for part in ("method", "weights"):
        config[part] |= config[part].pop("arguments")
    method = config["method"]
    config["method"] = {"name": method["name"], "_target_": method.pop("target"), **method}
    return config


def _own_arguments(section: Mapping[str, Any]) -> dict[str, Any]:
    """`method.quarot.cross_head` is the argument `cross_head` where the method is quarot, and nothing elsewhere."""
    names, own = method_names(), dict(section)
    for key in [key for key, value in section.items() if key in names and isinstance(value, dict)]:
        arguments = own.pop(key)
        own |= arguments if section.get("name") in (key, names[key]) else {}
    return own
