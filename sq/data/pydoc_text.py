"""English prose that every interpreter carries: the topics of `help()`, split into train and held-out ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping

HELD_OUT_SHARE = 3  # about one topic in three is held out
PARAGRAPH = 40  # characters: shorter ones (headings, single lines of code) may stand in both parts


def pydoc_topics(split: str, topics: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """List (topic, text) of one split, "train" or "held_out", in order of name.

    Topics quote one another: `specialnames` has all of `customization`. A topic most of which stands in longer ones is
    left out, and a paragraph of the calibration part is cut from the held-out one, so that the parts share none.

    Args:
        topics: name -> text; None takes `pydoc_data.topics` of this interpreter, which differs between versions.

    ValueError is raised for another split, FileNotFoundError for an interpreter without these topics.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split={split!r} is unknown; allowed: 'train', 'held_out'")
    kept = _without_quotations(_installed() if topics is None else topics)
    train = {name: text for name, text in sorted(kept.items()) if not is_held_out(name)}
    if split == "train":
        return list(train.items())
    known = {paragraph for text in train.values() for paragraph in _paragraphs(text)}
    return [(name, _without(text, known)) for name, text in sorted(kept.items()) if is_held_out(name)]


def is_held_out(topic: str) -> bool:
    """Whether a topic belongs to the held-out split: sha256(name) mod 3 == 2, the same for every version of Python."""
    return int(hashlib.sha256(topic.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 2


def pydoc_digest(split: str) -> str:
    """sha256 (hex) of one split's names and texts; ValueError and FileNotFoundError as from `pydoc_topics`."""
    total = hashlib.sha256()
    for part in (part for pair in pydoc_topics(split) for part in pair):
        total.update(f"{len(part)}\0{part}".encode())
    return total.hexdigest()


def _installed() -> Mapping[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError("this interpreter ships without pydoc_data.topics; use a full CPython build") from error
    return topics


def _without_quotations(topics: Mapping[str, str]) -> dict[str, str]:
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = list(_paragraphs(topics[name]))
        quoted = sum(len(paragraph) for paragraph in paragraphs if paragraph in seen)
        if 2 * quoted <= sum(map(len, paragraphs)):
            kept[name] = topics[name]
            seen.update(paragraphs)
    return kept


def _paragraphs(text: str) -> Iterator[str]:
    """Those long enough to count, with single spaces: a quotation may be indented and wrapped in another way."""
    for block in _blocks(text):
        paragraph = " ".join(block.split())
        if len(paragraph) >= PARAGRAPH:
            yield paragraph


def _without(text: str, known: set[str]) -> str:
    return "\n\n".join(block for block in _blocks(text) if known.isdisjoint(_paragraphs(block)))


def _blocks(text: str) -> list[str]:
    return re.split(r"\n[ \t]*\n", text)
