"""What a model is called where no name is given: by its path."""

from __future__ import annotations

import os
import re

from sq.models.place import EMBEDDED

_SNAPSHOT = re.compile(r"models--(?:[^/]+--)?([^/]+)/snapshots/[^/]+$")  # of the hub's cache: the last part is a commit
_GGUF = re.compile(r"(-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)
_UNFIT = re.compile(r"[^A-Za-z0-9_.+-]+")  # in the name of a run's folder


def model_name(path: str) -> str:
    """The last part of a hub id, folder or GGUF file: "name" of org/name, /models/name/ and name.gguf.

    The embedded model is "tiny", a snapshot in the hub's cache has the name of its repository, and characters that do
    not fit in a folder's name become "-".
    """
    if path == EMBEDDED:
        return "tiny"
    place = os.path.abspath(os.path.expanduser(path))
    snapshot = _SNAPSHOT.search(place)
    name = snapshot[1] if snapshot else _GGUF.sub("", os.path.basename(place))
    return _UNFIT.sub("-", name).strip("-").lstrip("_.+-") or "custom"
