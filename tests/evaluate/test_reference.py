"""The full-precision model runs once for all runs of a process that score it on the same texts."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from models.checkpoints import SIZES, save_random
from torch import Tensor

from sq.data.windows import Windows
from sq.evaluate import reference
from sq.evaluate.scores import Scores
from sq.evaluate.stream import StreamEvaluation
from sq.models.stream import DecoderStream


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_kept", OrderedDict())


def ids_of(seed: int = 0, count: int = 5) -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (count, 16), generator=torch.Generator().manual_seed(seed))


def evaluated(folder: Path, ids: Tensor, scale: float = 1.01) -> tuple[Scores, int]:
    """Scores of the model with larger weights beside the model itself, and how often a layer was read for it."""
    stream, other = (DecoderStream(folder, dtype=torch.float32) for _ in range(2))
    reads = 0
    read = stream.layer

    def counted(index: int) -> torch.nn.Module:
        nonlocal reads
        reads += 1
        return read(index)

    stream.layer = counted  # type: ignore[method-assign]
    evaluation = StreamEvaluation(stream, [Windows(ids, "t", "")], stream.embeddings_and_head(), batch=2)
    for index in range(stream.count):
        layer = other.layer(index)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(scale)
        evaluation.advance(index, layer)
    return evaluation.finish()["t"], reads


def test_the_second_evaluation_does_not_run_the_reference_and_scores_the_same(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    first, reads = evaluated(tmp_path, ids_of())
    assert reads == SIZES["num_hidden_layers"]
    second, reads = evaluated(tmp_path, ids_of())
    assert reads == 0
    for name, values in first.arrays().items():
        np.testing.assert_array_equal(second.arrays()[name], values)
    third, reads = evaluated(tmp_path, ids_of(), scale=0.9)
    assert reads == 0
    assert third.kl.mean() > first.kl.mean(), "what is measured is measured each time"


def test_other_tokens_and_other_weights_are_run(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    evaluated(tmp_path, ids_of())
    assert evaluated(tmp_path, ids_of(seed=1))[1] > 0
    assert evaluated(tmp_path, ids_of(count=4))[1] > 0
    save_random(tmp_path, "llama", seed=5)
    found, reads = evaluated(tmp_path, ids_of())
    assert reads > 0
    reference._kept.clear()
    np.testing.assert_array_equal(found.kl, evaluated(tmp_path, ids_of())[0].kl)


def test_the_oldest_make_room_and_nothing_too_large_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_random(tmp_path, "llama")
    size = 5 * 16 * SIZES["hidden_size"] * 4
    monkeypatch.setattr(reference, "LIMIT", 2 * size)
    for seed in (0, 1, 0, 2):
        evaluated(tmp_path, ids_of(seed))
    assert [evaluated(tmp_path, ids_of(seed))[1] > 0 for seed in (0, 2, 1)] == [False, False, True]
    monkeypatch.setattr(reference, "LIMIT", size - 1)
    reference._kept.clear()
    evaluated(tmp_path, ids_of())
    assert not reference._kept
