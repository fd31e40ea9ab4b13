"""Evaluate a model layer by layer, beside the full-precision one, as the layers come out of the pipeline."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sq.data.windows import Windows
from sq.errors import EvaluationError
from sq.evaluate.reference import keep_states, kept_states
from sq.evaluate.scores import Scores, join_scores, refuse_non_finite, score_tokens, scores_of_windows
from sq.finite import all_finite
from sq.models.families import SITES
from sq.models.stream import DecoderStream, EmbeddingsAndHead
from sq.nn.hooks import watched_sites

POSITIONS = 1024  # whose logits are made at once: 0.5 GB for a vocabulary of 128k; a window of 2048 has twice as many


class StreamEvaluation:
    """Perplexity, KL and top-1 agreement without either model ever being whole in memory.

    Hidden states of all windows wait between layers: 2 * W * S * hidden numbers. Those of the reference are kept for
    the next evaluation on the same texts in this process (sq/evaluate/reference.py): in a sweep it runs once.

    Args:
        stream: the original model; its layers are read again as the reference.
        windows, batch: texts to score, so many windows a forward.
        outer: embeddings and head of the measured model.
        measured: False when the measured model is the original itself; its layers then run once.
    """

    @torch.no_grad()
    def __init__(
        self,
        stream: DecoderStream,
        windows: list[Windows],
        outer: EmbeddingsAndHead,
        *,
        measured: bool = True,
        batch: int = 8,
    ) -> None:
        self.stream, self.windows, self.embeddings_and_head, self.batch = stream, windows, outer, batch
        self._reference_outer = stream.embeddings_and_head()
        self._ids = [part for text in windows for part in text.ids.split(batch)]
        kept = kept_states(stream, self._ids) if measured else None
        self._reference_runs = kept is None
        self._reference = kept or [self._reference_outer.embed(ids) for ids in self._ids]
        self._measured = [outer.embed(ids) for ids in self._ids] if measured else None

    @torch.no_grad()
    def advance(self, index: int, layer: nn.Module) -> None:
        """Carry both streams of hidden states through layer `index`; `layer` is the measured model's."""
        if not self._ids:  # task=none: the reference layer need not be read
            return
        if self._measured is None:
            self._step(index, layer, self._reference)
            return
        self._step(index, layer, self._measured)
        if self._reference_runs:
            self._step(index, self.stream.layer(index), self._reference)

    @torch.no_grad()
    def finish(self, show: Callable[[str, int, int], None] = lambda text, done, total: None) -> dict[str, Scores]:
        """Scores by text, after the last layer.

        Args:
            show: called with a text, the batches scored and the batches in all.

        Raises:
            EvaluationError: scores that are not finite.
        """
        if self._reference_runs:
            keep_states(self.stream, self._ids, self._reference)
        parts: list[Scores] = []
        show("scores", 0, len(self._ids))
        for position, ids in enumerate(self._ids):
            parts.append(scores_of_windows([self._score(position, row, ids[row]) for row in range(len(ids))]))
            show("scores", position + 1, len(self._ids))
        scores, start = {}, 0
        for text in self.windows:
            count = len(text.ids.split(self.batch))
            scores[text.text] = join_scores(parts[start : start + count])
            refuse_non_finite(text.text, scores[text.text])
            start += count
        return scores

    def _score(self, position: int, row: int, ids: Tensor) -> Tensor:
        """(4, S - 1) of one window, POSITIONS at a time."""
        reference, measured = self._reference[position][row], None
        if self._measured is not None:
            measured = self._measured[position][row]
        found = []
        for start in range(0, len(ids) - 1, POSITIONS):
            part = slice(start, min(start + POSITIONS, len(ids) - 1))
            base = self._reference_outer.logits(reference[part].to(self.stream.device))
            own = None if measured is None else self.embeddings_and_head.logits(measured[part])
            targets = ids[part.start + 1 : part.stop + 1]
            found.append(score_tokens(base if own is None else own, None if own is None else base, targets))
        return torch.cat(found, 1)

    def _step(self, index: int, layer: nn.Module, hidden: list[Tensor]) -> None:
        for position, batch in enumerate(hidden):
            out = self.stream.forward(index, layer, batch)
            # One wait for the device a batch: a number that means nothing must name its layer.
            if not all_finite(out):
                which = "full-precision" if hidden is self._reference else "quantized"
                raise EvaluationError(
                    f"the {which} model has NaN or inf in layer {index}, {self._broken_site(index, layer, batch)}, on "
                    "the evaluation text: its numbers would mean nothing. Check the weights, or run in a wider dtype "
                    "(model.dtype=float32)"
                )
            hidden[position] = out

    def _broken_site(self, index: int, layer: nn.Module, batch: Tensor) -> str:
        """Where a layer's NaN or inf appear first."""
        broken: list[str] = []

        def watch(site: str) -> Callable[[Tensor], None]:
            return lambda x: None if all_finite(x) else broken.append(site)

        with watched_sites(self.stream.family, layer, {site: watch(site) for site in SITES}):
            self.stream.forward(index, layer, batch)
        return f"site {broken[0]!r}" if broken else "its output"
