"""Scores against explicit float64 sums over the vocabulary, and against transformers' own loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models.checkpoints import random_model

from sq.evaluate.scores import join_scores, score_windows


def test_scores_equal_explicit_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, reference = (torch.randn(3, 5, 11, generator=generator) * 3 for _ in range(2))
    ids = torch.randint(0, 11, (3, 5), generator=generator)
    found = score_windows(logits, reference, ids)
    for window in range(3):
        nll, kl, same = [], [], []
        for t in range(4):
            q = np.exp(logits[window, t].double().numpy())
            p = np.exp(reference[window, t].double().numpy())
            q, p = q / q.sum(), p / p.sum()
            nll.append(-math.log(q[int(ids[window, t + 1])]))
            kl.append(float((p * (np.log(p) - np.log(q))).sum()))
            same.append(float(p.argmax() == q.argmax()))
        assert found.nll[window] == pytest.approx(np.mean(nll), rel=1e-6)
        assert found.kl[window] == pytest.approx(np.mean(kl), rel=1e-5)
        assert found.top1[window] == np.mean(same)


@torch.no_grad()
def test_perplexity_equals_transformers_loss() -> None:
    """exp of the mean over windows of transformers' own next-token loss."""
    model = random_model("qwen2")
    ids = torch.randint(0, 97, (4, 13))
    losses = [float(model(row[None], labels=row[None]).loss) for row in ids]
    scores = score_windows(model(ids).logits, None, ids)
    assert scores.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_a_model_is_its_own_reference() -> None:
    logits, ids = torch.randn(2, 7, 5), torch.randint(0, 5, (2, 7))
    alone, beside = score_windows(logits, None, ids), score_windows(logits, logits.clone(), ids)
    assert beside.kl.max() == pytest.approx(0, abs=1e-7)
    np.testing.assert_array_equal(alone.nll, beside.nll)
    np.testing.assert_array_equal(alone.top1, beside.top1)


def test_bfloat16_logits_are_scored_in_float32() -> None:
    logits, ids = torch.randn(2, 7, 5).bfloat16(), torch.randint(0, 5, (2, 7))
    np.testing.assert_array_equal(score_windows(logits, None, ids).nll, score_windows(logits.float(), None, ids).nll)


def test_batches_join_in_order() -> None:
    logits, ids = torch.randn(4, 6, 5), torch.randint(0, 5, (4, 6))
    whole = score_windows(logits, None, ids)
    parts = join_scores([score_windows(logits[i : i + 3], None, ids[i : i + 3]) for i in (0, 3)])
    np.testing.assert_allclose(parts.nll, whole.nll)
