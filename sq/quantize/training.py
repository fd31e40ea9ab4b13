"""What `Method.learn` reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sq.models.families import ModelDimensions
from sq.models.stream import EmbeddingsAndHead
from sq.quantize.recipe import Recipe
from sq.quantize.training_block import TrainingBlock
from sq.quantize.training_log import TrainingLog


@dataclass(frozen=True)
class Training:
    """The whole model to train on, all `count` layers in memory.

    Attributes:
        block: index -> the layer, its norm gains folded if the method folds them. Its `inputs` are empty: hidden states
            come from the embedding.
        embeddings_and_head: reads embedding, final norm and head, unrotated; the norm's gain is folded into the head if
            the method folds gains.
        recipe: all quantizers of the run.
        ids: calibration windows (windows, window).
        log: numbers by step; its `folder` is the run's own, where checkpoints and what was learned are kept, or None.
    """

    block: Callable[[int], TrainingBlock]
    count: int
    embeddings_and_head: Callable[[], EmbeddingsAndHead]
    dimensions: ModelDimensions
    recipe: Recipe
    ids: Tensor
    log: TrainingLog
