"""Sections of a composed config that are the file of their choice alone, so that Hydra need not compose them again.

Hydra merges files in the order of config.yaml's defaults list. A section is the content of its group's choice, and then
whatever config.yaml itself and files that speak of the whole config (conf/published/, conf/export/, conf/experiment/)
say of it. Where none of them says anything of a group, another choice of that group changes its section and nothing
else, and the section is the choice's own file. `tests/config/test_sections.py` compares with Hydra.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from sq.config.choices import CONF, exists, is_chain

WHOLE = ("published", "export", "experiment")  # groups whose files speak of the whole config


def own_sections(overrides: Sequence[Override]) -> dict[str, str]:
    """Group -> choice for those overrides that, like method=rtn, change nothing but the section of their group.

    Args:
        overrides: all of a command line that Hydra must see when it composes.
    """
    if any(str(one.key_or_group).startswith("hydra.searchpath") for one in overrides):
        return {}  # files of somebody else's folders may say anything
    spoken = set(map(str, _root())) - {"defaults"}
    own: dict[str, str] = {}
    for one in overrides:
        group, choice = str(one.key_or_group), one.value()
        if group in WHOLE:
            names = [str(name) for name in (choice if isinstance(choice, list) else [choice]) if name is not None]
            if not all(exists(group, name) for name in names):
                return {}  # Hydra's mistake to tell
            spoken = spoken.union(*(_said(group, name) for name in names))
        elif one.type is OverrideType.CHANGE and one.package is None and is_chain(group, str(choice)):
            own[group] = str(choice)
        else:
            spoken.add(group)
    return {group: choice for group, choice in own.items() if group in _groups() - spoken}


@cache
def _root() -> DictConfig:
    root = OmegaConf.load(CONF / "config.yaml")
    assert isinstance(root, DictConfig)
    return root


@cache
def _groups() -> frozenset[str]:
    """The groups in front of everything that can add to their sections: those before `_self_`."""
    listed = list(_root().defaults)
    return frozenset(str(key) for entry in listed[: listed.index("_self_")] for key in entry)


@cache
def _said(group: str, choice: str) -> frozenset[str]:
    """Top-level keys of a file that speaks of the whole config, and of all such files that it names."""
    own = OmegaConf.load(CONF / group / f"{choice}.yaml")
    assert isinstance(own, DictConfig)
    named: list[tuple[str, str]] = []
    for entry in own.pop("defaults", []):
        if isinstance(entry, str):
            named += [(group, entry)] if entry != "_self_" else []
        else:
            ((key, name),) = entry.items()
            named += [(one, str(name)) for one in WHOLE if str(key).endswith(f"/{one}") and name is not None]
    return frozenset(map(str, own)).union(*(_said(*place) for place in named))
