"""What a method that trains on the whole model is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sq.learn.block import TrainingBlock
from sq.learn.log import TrainingLog
from sq.models.families import Geometry
from sq.models.stream import Ends
from sq.recipe import Recipe


@dataclass(frozen=True)
class Training:
    """The whole model to train on, all layers in memory.

    Attributes:
        block: index -> the layer, its norm gains folded if the method folds them. Its `inputs` are empty: hidden states
            come from the embedding.
        count: number of layers.
        ends: reads embedding, final norm (gain folded into the head if the method folds gains) and head, unrotated.
        geometry: sizes.
        recipe: all quantizers of the run.
        ids: calibration windows (count, window).
        log: numbers by step; its `folder` is the run's own, where checkpoints and what was learned are kept, or None.
    """

    block: Callable[[int], TrainingBlock]
    count: int
    ends: Callable[[], Ends]
    geometry: Geometry
    recipe: Recipe
    ids: Tensor
    log: TrainingLog
