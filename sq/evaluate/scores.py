"""Scores of a model on token windows: negative log-likelihood, KL from the full-precision model, top-1 agreement."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sq.errors import EvaluationError

Floats = NDArray[np.float64]
UNIFORM = 1e-3  # a share of the nats of guessing: what rounding leaves of a model that is no better
CHUNK = 2**20  # logits a CPU scores at once: 4 MB in float32, and as much for each thing made of them
CHUNK_ON_DEVICE = 2**26  # and another device: few launches


@dataclass(frozen=True)
class Scores:
    """Means over the S - 1 predicted tokens of each of W windows, shape (W,) each; nats per token.

    nll is the negative log-likelihood of the measured model, reference_nll that of the full-precision one, kl is
    KL(full precision || measured), top1 the share of tokens where both have the same argmax.
    """

    nll: Floats
    reference_nll: Floats
    kl: Floats
    top1: Floats

    @property
    def perplexity(self) -> float:
        """exp of the mean over windows of the mean NLL (the peers' protocol, GPTQ onwards)."""
        return float(np.exp(self.nll.mean()))

    def arrays(self) -> dict[str, Floats]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def metrics(self, text: str) -> dict[str, float]:
        """ppl/<text>, kl/<text> and top1/<text>."""
        means = {"ppl": self.perplexity, "kl": float(self.kl.mean()), "top1": float(self.top1.mean())}
        return {f"{name}/{text}": mean for name, mean in means.items()}


def score_windows(logits: Tensor, reference: Tensor | None, ids: Tensor) -> Scores:
    """Score logits (B, S, vocab) of windows ids (B, S) against reference logits of the same shape.

    Position t predicts token t + 1; the last position predicts nothing and is left out of every mean. log-softmax is
    taken in float32 at least. reference=None: the logits are their own reference.
    """
    windows = (
        score_tokens(made[:-1], None if reference is None else reference[row, :-1], ids[row, 1:])
        for row, made in enumerate(logits)
    )
    return scores_of_windows(list(windows))


def score_tokens(logits: Tensor, reference: Tensor | None, targets: Tensor) -> Tensor:
    """nll, reference_nll, kl and top1 of N predictions, (4, N) float64: logits (N, vocab), the tokens that came (N,).

    Few predictions at a time, so that on a CPU what is made of their logits stays in its cache: twice as fast.
    """
    step = max(1, (CHUNK if logits.device.type == "cpu" else CHUNK_ON_DEVICE) // logits.shape[-1])
    others = (logits if reference is None else reference).split(step)
    parts = [
        _of_chunk(one, None if reference is None else other.to(logits.device), aim.to(logits.device))
        for one, other, aim in zip(logits.split(step), others, targets.split(step), strict=True)
    ]
    return torch.cat(parts, 1)


def scores_of_windows(tokens: list[Tensor]) -> Scores:
    """Means over the tokens of each window, from (4, S - 1) of each (`score_tokens`)."""
    return Scores(*torch.stack([window.mean(1) for window in tokens], 1).cpu().numpy())


def join_scores(parts: list[Scores]) -> Scores:
    """Scores of consecutive batches as one."""
    return Scores(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Scores)))


def refuse_non_finite(text: str, scores: Scores) -> None:
    """Raise EvaluationError for NaN or inf among the scores of a text; all layers of both models were finite."""
    for name, values in scores.arrays().items():
        if not np.isfinite(values).all():
            window = int(np.flatnonzero(~np.isfinite(values))[0])
            raise EvaluationError(
                f"{name} of text {text}, window {window}, is NaN or inf although all layers are finite: the final norm "
                "or the head overflows; run in a wider dtype (model.dtype=float32)"
            )


def refuse_guessing(text: str, scores: Scores, vocabulary: int) -> None:
    """Raise EvaluationError for a full-precision model that is no better than guessing among `vocabulary` tokens."""
    nats = float(scores.reference_nll.mean())
    if nats >= (1 - UNIFORM) * math.log(vocabulary):
        raise EvaluationError(
            f"the full-precision model has perplexity {math.exp(min(nats, 700)):.6g} on text {text}, no better than "
            f"guessing among its {vocabulary:,} tokens: weights, tokenizer and text do not belong together, or the "
            "weights are damaged. task.perplexity.untrained=true measures all the same"
        )


def _of_chunk(logits: Tensor, reference: Tensor | None, targets: Tensor) -> Tensor:
    measured = _log_softmax(logits)
    nll = -measured.gather(-1, targets[:, None]).squeeze(-1).double()
    if reference is None:
        zeros = torch.zeros_like(nll)
        return torch.stack([nll, nll, zeros, zeros + 1])
    base = _log_softmax(reference)
    reference_nll = -base.gather(-1, targets[:, None]).squeeze(-1).double()
    # nn.functional.kl_div with log_target=True is sum p (log p - log q), here kept per token.
    kl = torch.nn.functional.kl_div(measured, base, reduction="none", log_target=True).sum(-1).double()
    top1 = (measured.argmax(-1) == base.argmax(-1)).double()
    return torch.stack([nll, reference_nll, kl, top1])


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
