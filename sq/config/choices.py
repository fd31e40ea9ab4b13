"""The choices of conf/: files of its groups, and the variants of methods that experiment/table_ablation.yaml lists.

Each variant is registered with Hydra under its name when this is imported, and composes as a file would:
method=ablation/art is conf/method/singlequant.yaml with the arguments that the list has for `art`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).resolve().parents[1] / "conf"
_HERE = "@_here_"  # in a defaults list: merged into the file that names it
VARIANTS = "variants"  # the key of the list; no setting of the experiment itself


def _variants() -> dict[str, dict[str, Any]]:
    """Contents of files by choice ("ablation/art"); `method` of an entry is the file that it varies."""
    listed: Any = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / "table_ablation.yaml"))
    found = {}
    for name, changes in listed[VARIANTS].items():
        base = changes.pop("method", "singlequant")
        found[f"ablation/{name}"] = {"defaults": [f"/method/{base}@_here_", "_self_"], "name": name, **changes}
        ConfigStore.instance().store(group="method/ablation", name=name, node=found[f"ablation/{name}"])
    return found


_VARIANTS = _variants()


def options(group: str) -> list[str]:
    """The choices of a config group: the files of conf/<group>/, sorted. Those in folders below it are not listed."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def exists(group: str, choice: str) -> bool:
    """Whether a group has a choice, those in folders below it (method=ablation/art) included."""
    return (group == "method" and choice in _VARIANTS) or (CONF / group / f"{choice}.yaml").is_file()


@cache
def content(group: str, choice: str) -> DictConfig:
    """A choice on top of those that its defaults list names (- default, - /method/x@_here_); shared: to be copied."""
    own = _own(group, choice)
    named = [_place(group, str(entry)) for entry in own.get("defaults", []) if entry != "_self_"]
    own = OmegaConf.masked_copy(own, [str(key) for key in own if key != "defaults"])
    merged = OmegaConf.merge(*(content(*place) for place in named), own)
    assert isinstance(merged, DictConfig)
    return merged


@cache
def is_chain(group: str, choice: str) -> bool:
    """Whether a choice is nothing but its file on top of others, so that `content` is all of it: no file below changes
    the choices of other groups or stands at a place of its own (# @package)."""
    if not exists(group, choice):
        return False
    path = CONF / group / f"{choice}.yaml"
    listed = list(_own(group, choice).get("defaults", []))
    plain = all(isinstance(entry, str) and (entry[0] != "/" or entry.endswith(_HERE)) for entry in listed)
    moved = path.is_file() and "@package" in path.read_text(encoding="utf-8").split("\n", 1)[0]
    last = "_self_" not in listed or listed[-1] == "_self_"
    return plain and last and not moved and all(is_chain(*_place(group, one)) for one in listed if one != "_self_")


def _own(group: str, choice: str) -> DictConfig:
    variant = _VARIANTS.get(choice) if group == "method" else None
    own = OmegaConf.load(CONF / group / f"{choice}.yaml") if variant is None else OmegaConf.create(variant)
    assert isinstance(own, DictConfig)
    return own


def _place(group: str, entry: str) -> tuple[str, str]:
    """Group and choice of an entry of a defaults list: of the same group, or /group/choice@_here_."""
    if not entry.startswith("/"):
        return group, entry
    other, _, choice = entry.removesuffix(_HERE).rpartition("/")
    return other.strip("/"), choice


@cache
def method_names() -> dict[str, str]:
    """The name in tables of each method's file or variant, by the last part of its choice."""
    files = {choice: str(content("method", choice).get("name", choice)) for choice in options("method")}
    return files | {choice.rpartition("/")[2]: entry["name"] for choice, entry in _VARIANTS.items()}


def method_of_argument(override: str) -> str | None:
    """The method that an override gives an argument to and to no other: quarot of method.quarot.cross_head=none."""
    match = re.fullmatch(r"method\.([^.=]+)\.[^=]+=.*", override, re.DOTALL)
    return match[1] if match and match[1] in method_names() else None


def of_one_method(override: str) -> str:
    """An argument for one method of a sweep (method.quarot.cross_head=none) as Hydra takes it, with ++ in front.

    It becomes a section of the method's section, whichever method that is; `sq.config.parse` takes it from there.
    """
    return f"++{override}" if method_of_argument(override) else override


def trained(count: int, *, _root_: DictConfig) -> int:
    """`${trained:100}`: published steps or epochs times the run's `effort`, at least 1 unless `effort` is 0."""
    effort = float(_root_.get("effort", 1.0))
    return max(1, round(count * effort)) if effort > 0 else 0


OmegaConf.register_new_resolver("trained", trained, replace=True)
