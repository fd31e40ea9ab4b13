"""The prose of `help()`: two parts that share nothing, the same ones every time."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pydoc_data.topics import topics

import pytest
from transformers import PreTrainedTokenizerFast

from sq.data.pydoc_text import pydoc_digest, pydoc_topics
from sq.data.texts import read_text
from sq.data.windows import calibration_windows, evaluation_windows

LONG = "A paragraph that is long enough to count when it is quoted elsewhere."
OTHER = "Another paragraph, which is quite different and stands in one topic alone."


def sentences(texts: list[tuple[str, str]]) -> set[str]:
    blocks = (" ".join(block.split()) for _, text in texts for block in re.split(r"\n\s*\n", text))
    return {block for block in blocks if len(block) >= 40}


def held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 3 == 2


def test_parts_are_whole_topics_that_share_no_paragraph() -> None:
    train, evaluation = pydoc_topics("train"), pydoc_topics("held_out")
    names = [name for name, _ in train], [name for name, _ in evaluation]
    assert names == (sorted(names[0]), sorted(names[1]))
    assert not any(map(held_out, names[0]))
    assert all(map(held_out, names[1]))
    assert not sentences(train) & sentences(evaluation)
    assert all(topics[name] == text for name, text in train)
    assert sum(topics[name] == text for name, text in evaluation) > 0.8 * len(evaluation)


def test_both_parts_are_large_enough_for_their_windows() -> None:
    """At five characters a token, which is more than tokenizers of this kind of text reach."""
    sizes = [sum(len(text) for _, text in pydoc_topics(split)) for split in ("train", "held_out")]
    assert sizes[0] > 5 * 32_768
    assert sizes[1] > 5 * 512 * 32
    assert sizes[1] > 0.2 * sum(sizes)


def test_a_topic_that_stands_in_another_is_left_out_and_shared_paragraphs_are_cut() -> None:
    train, held = (next(n for n in map(str, range(99)) if held_out(n) == wanted) for wanted in (False, True))
    more = "\n\n".join(f"Sentence number {i} of a topic that is longer than all of the others." for i in range(4))
    wrapped = "   " + LONG.replace(" is ", "\n   is ")
    given = {train: f"Title\n\n{LONG}\n\n{more}", held: f"{wrapped}\n\n{OTHER}", f"{train}-quoted": LONG}
    assert pydoc_topics("train", given) == [(train, given[train])]
    assert pydoc_topics("held_out", given) == [(held, OTHER)]


def test_the_digest_is_that_of_the_content_in_every_process() -> None:
    assert pydoc_digest("train") != pydoc_digest("held_out")
    code = "from sq.data.pydoc_text import pydoc_digest; print(pydoc_digest('held_out'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == pydoc_digest("held_out")
    with pytest.raises(ValueError, match="'test' is unknown"):
        pydoc_topics("test")


def test_windows_of_pydoc(plain: PreTrainedTokenizerFast) -> None:
    found = evaluation_windows("pydoc", plain, window=512, count=3)
    assert found.text == "pydoc"
    assert str(plain.decode(found.ids[0])).split("</s>")[0] in "</s>".join(read_text("pydoc", "evaluation").documents)
    first, second = (calibration_windows("pydoc", plain, tokens=2048, window=512, seed=s) for s in (0, 0))
    assert first.fingerprint == second.fingerprint != found.fingerprint
