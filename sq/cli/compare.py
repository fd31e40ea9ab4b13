"""Two replies to one prompt beside each other: full precision and quantized."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import Tensor

from sq.cli.speaker import Reply, Show
from sq.evaluate.scores import score_tokens

FULL, QUANTIZED = "full precision", "quantized"


class SideBySide:
    """Two columns of text that fill as it comes; without a terminal they are printed once, at the end."""

    def __init__(self) -> None:
        self.texts = {FULL: "", QUANTIZED: ""}
        self._live = Live(console=Console(), auto_refresh=False, vertical_overflow="visible")

    def __enter__(self) -> SideBySide:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)
        if not self._live.console.is_terminal:
            self._live.console.line()

    def show(self, column: str) -> Show:
        """A function that adds text to a column."""

        def add(text: str) -> None:
            self.texts[column] += text
            self._live.update(self._table(), refresh=True)

        return add

    def _table(self) -> Table:
        table = Table.grid(expand=True)
        for _ in self.texts:
            table.add_column(ratio=1)
        table.add_row(*(Panel(Text(text), title=title) for title, text in self.texts.items()))
        return table


@torch.no_grad()
def continuation_logits(model: Any, reply: Reply) -> Tensor:
    """Logits (N, vocab) that a model gives the N new tokens of a reply, on the CPU."""
    logits: Tensor = model(reply.ids.to(model.device)).logits[0]
    return logits[-reply.count - 1 : -1].float().cpu()


def agreement(full: Reply, quantized: Reply, reference: Tensor, measured: Tensor) -> str:
    """How far two replies agree, in words.

    Args:
        reference, measured: logits (N, vocab) of both models for the full-precision reply.
    """
    first, second = (reply.ids[0, -reply.count :].tolist() for reply in (full, quantized))
    pairs = list(zip(first, second, strict=False))
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs))
    _, _, kl, top1 = score_tokens(measured, reference, full.ids[0, -full.count :].cpu())
    return (
        f"both say the same for {same} of {max(len(first), len(second))} tokens; on the tokens of full precision: KL "
        f"{float(kl.mean()):.4f} nats a token, the same likeliest token at {float(top1.mean()):.0%}"
    )
