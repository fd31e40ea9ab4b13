"""What a weight rounder is: it says what it needs of calibration, and turns the weights of a site into codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from sq.formats.format import Format
from sq.formats.qtensor import QTensor
from sq.formats.weight import WeightQuantizer

Need = Literal["hessian"]


@dataclass(frozen=True)
class RoundingStatistics:
    """What calibration saw at one site.

    Attributes:
        name: layer and site, for messages.
        hessian: (2 / N) sum of x^T x over N tokens x of the site as its linears read them, (n, n), where it is needed.
    """

    name: str
    hessian: Tensor | None = None


@dataclass(frozen=True)
class WeightRounder(ABC):
    """Turns weights into codes. A subclass is a frozen dataclass; its further fields are its options in a config.

    Attributes:
        quantizer: format and clip search.
        needs: what the pipeline gathers at each site before it calls `round`.
        compensates: whether rounding makes up for its own error, so that a training should leave weights unrounded.
    """

    quantizer: WeightQuantizer
    needs: ClassVar[frozenset[Need]] = frozenset()
    compensates: ClassVar[bool] = False

    @property
    def sees_rounded_sites(self) -> bool:
        """Whether the statistics of a site are taken with the sites before it in the layer rounded already."""
        return False

    @classmethod
    def obstacle(cls, format: Format) -> str | None:
        """Why the rounder does not take a format, or None if it does."""
        return None

    @abstractmethod
    def round(self, weights: Sequence[Tensor], statistics: RoundingStatistics) -> list[QTensor]:
        """Codes of the weights (d_out, n) of linears that read the same input."""
