"""What a weight rounder is: it says what it needs of calibration, and turns the weights of a site into codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from sq.formats.format import Format
from sq.formats.qtensor import QTensor
from sq.formats.weight import WeightQuantizer

Need = Literal["hessian", "mismatch", "held_out"]


@dataclass(frozen=True)
class HeldOut:
    """The same moments over a part of the tokens, the last ones; `share` is their share of all N."""

    hessian: Tensor
    mismatch: Tensor
    share: float


@dataclass(frozen=True)
class RoundingStatistics:
    """What calibration saw at one site, as far as the rounder needs it.

    Attributes:
        name: layer and site, for messages.
        hessian: (2 / N) sum of x^T x over N tokens x of the site as its linears read them, (n, n).
        mismatch: (2 / N) sum of (x' - x)^T x, (n, n): x' is the same token in the full-precision stream, behind the
            same transform.
        held_out: hessian and mismatch over the last quarter of the tokens, which the other two count as well.
        report: what a rounder found out and wants in the record of the site, by name.
    """

    name: str
    hessian: Tensor | None = None
    mismatch: Tensor | None = None
    held_out: HeldOut | None = None
    report: dict[str, float] = field(default_factory=dict)


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

    @property
    def sees_quantized_activations(self) -> bool:
        """Whether the tokens x of the statistics have passed through the site's activation quantizer."""
        return False

    @property
    def reads_reference(self) -> bool:
        """Whether the statistics compare the quantized stream with the full-precision one."""
        return "mismatch" in self.needs

    @property
    def takes_collected_moments(self) -> bool:
        """Whether second moments of the layer before anything is done to it, and then transformed, are all it needs."""
        return self.needs == {"hessian"} and not (self.sees_rounded_sites or self.sees_quantized_activations)

    @classmethod
    def obstacle(cls, format: Format) -> str | None:
        """Why the rounder does not take a format, or None if it does."""
        return None

    @abstractmethod
    def round(self, weights: Sequence[Tensor], statistics: RoundingStatistics) -> list[QTensor]:
        """Codes of the weights (d_out, n) of linears that read the same input."""
