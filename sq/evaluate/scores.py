"""Scores of a model on token windows: negative log-likelihood, KL from the full-precision model, top-1 agreement."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


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
    targets = ids[:, 1:].to(logits.device)
    measured = _log_softmax(logits[:, :-1])
    nll = -measured.gather(-1, targets[..., None]).squeeze(-1).double().mean(1)
    if reference is None:
        zeros = torch.zeros_like(nll)
        return _scores(nll, nll, zeros, zeros + 1)
    base = _log_softmax(reference[:, :-1].to(logits.device))
    reference_nll = -base.gather(-1, targets[..., None]).squeeze(-1).double().mean(1)
    # nn.functional.kl_div with log_target=True is sum p (log p - log q), here kept per window.
    kl = torch.nn.functional.kl_div(measured, base, reduction="none", log_target=True).sum(-1).double().mean(1)
    top1 = (measured.argmax(-1) == base.argmax(-1)).double().mean(1)
    return _scores(nll, reference_nll, kl, top1)


def join_scores(parts: list[Scores]) -> Scores:
    """Scores of consecutive batches as one."""
    return Scores(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Scores)))


def _scores(*columns: Tensor) -> Scores:
    return Scores(*(column.cpu().numpy() for column in columns))


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
