"""What a quantization method must say: its transforms at each site. The pipeline does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from sq.formats.format import Format
from sq.models.families import ModelDimensions
from sq.models.site_transform import SiteTransform
from sq.rotation.transform import Transform

if TYPE_CHECKING:
    from sq.quantize.training import Training
    from sq.quantize.training_block import TrainingBlock


@dataclass(frozen=True)
class SiteStatistics:
    """What calibration saw at one site of one layer.

    Attributes:
        tokens: an even sample of the tokens, (T, n) float32.
        rms, peak: root mean square and largest magnitude of each channel over all `count` tokens, (n,) float32.
        second_moment: mean of x^T x over all tokens, (n, n), or None where neither method nor rounder reads it.
    """

    tokens: Tensor
    rms: Tensor
    peak: Tensor
    second_moment: Tensor | None
    count: int


@dataclass(frozen=True)
class LayerView:
    """One decoder layer as a method sees it: statistics and weights by site.

    Attributes:
        index: of the layer.
        statistics: site -> what calibration saw at the site's input. Where keys or queries are quantized, also "keys",
            n = kv_heads * head_dim, and "queries", n = heads * head_dim, both after RoPE.
        weights: site -> weights of its linears stacked, (sum of d_out, n) float32.
        block: the layer as something to train on; None where a view was made without a model.
    """

    index: int
    statistics: Mapping[str, SiteStatistics]
    weights: Mapping[str, Tensor]
    dimensions: ModelDimensions
    block: TrainingBlock | None = None


@dataclass(frozen=True)
class LayerPlan:
    """Everything a method wants done to one layer.

    Attributes:
        sites: the transforms; sites left out are not transformed.
        keys: T on the head_dim features of every key after RoPE, or on all kv_heads * head_dim of them: k T and
            q T^-T, both online.
        query_key_scale: t, shape (kv_heads or 1, head_dim / 2), folded in front of RoPE: k t, q / t. RoPE turns
            channels i and i + head_dim / 2 into each other, so both have one factor. (1, ...) where q and k have norms.
        weight_ranges: linear -> (low, high), (d_out, 1) each: its transformed weight is clamped to them, and the grid
            spans what is left without a clip search of its own.
        activation_clips: site -> one factor on each token's range, or one on its low and one on its high end, instead
            of the run's clip. Those of a method stay where the run chooses a clip for each site.
        activation_peaks: site -> largest magnitude on calibration tokens behind the transforms, where the run's format
            has a static second scale; the pipeline fills it in.
    """

    sites: Mapping[str, SiteTransform] = field(default_factory=dict)
    keys: Transform | None = None
    query_key_scale: Tensor | None = None
    weight_ranges: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    activation_clips: Mapping[str, float | tuple[float, float]] = field(default_factory=dict)
    activation_peaks: Mapping[str, float] = field(default_factory=dict)


def on_device(plan: LayerPlan, device: torch.device) -> LayerPlan:
    """The plan with its transforms moved, in place: a method may build them where its seeds are, on the CPU."""
    parts = [part for site in plan.sites.values() for part in (site.folded, site.online)]
    for transform in [*parts, plan.keys]:
        if transform is not None:
            transform.to(device)
    return plan


def below_least(method: Method, least: Mapping[str, int]) -> list[str]:
    """ "key=value (at least low)" for each argument of a method that is smaller than its least value."""
    given = {key: getattr(method, key) for key in least}
    return [f"{key}={given[key]} (at least {low})" for key, low in least.items() if given[key] < low]


class Method(ABC):
    """A quantization method. Implementations take typed arguments and see no config object.

    A method without training overrides `layer_transforms`, and `key_transform` and `residual_rotation` where it has
    them. One that trains on a layer overrides `plan`; one that trains on the whole model, `learn`.

    Attributes:
        name: as printed in tables.
        fold_norms: fold the norm gains into the weights before anything is captured.
        quantizes: False for a method that leaves the model in full precision.
        propagates: what the next layer is calibrated on, where the method leaves no choice: see `Recipe`.
        reads_reference: a second stream of hidden states, through the full-precision layers, is kept for `plan`.
    """

    name: str
    fold_norms: ClassVar[bool] = False
    quantizes: ClassVar[bool] = True
    propagates: ClassVar[str | None] = None
    reads_reference: ClassVar[bool] = False

    def obstacle(self, weights: Format | None, activations: Format | None) -> str | None:
        """Why the method does not take these formats of weights and activations (None: 16 bits), or None if it does;
        the check of a config calls it before anything is loaded."""
        return None

    def export_obstacle(self, dimensions: ModelDimensions | None = None) -> str | None:
        """Why another engine cannot run what the method leaves online, with the setting that changes it; None where it
        can, or where only a layer's plan tells.

        The check of a config calls it before anything is loaded, and a run once more when the model's sizes are known.
        Engines multiply by one small matrix in front of a linear, which all blocks of neighbouring features share
        (sq/rotation/shared_block.py), and know no clips.
        """
        return None

    def resolved(self, dimensions: ModelDimensions) -> Mapping[str, str]:
        """Options that a model's sizes decide, where it decides against what is published; a row shows them."""
        return {}

    @property
    def reads_residual(self) -> bool:
        """Whether `residual_rotation` reads samples: one more calibration forward before the layers are visited."""
        return False

    @property
    def second_moments(self) -> Sequence[str]:
        """Sites whose second moment the method reads."""
        return ()

    @property
    def samples_windows(self) -> bool:
        """Whether statistics of some calibration windows serve the method as well as those of all (`Calibration`)."""
        return False

    def learn(self, training: Training) -> None:
        """Train on the whole model, before anything else."""
        return

    def residual_rotation(
        self, samples: Mapping[str, Sequence[Tensor]], dimensions: ModelDimensions
    ) -> Transform | None:
        """The rotation of the residual stream, which needs `fold_norms`.

        samples: site -> one (T, hidden) of normalized tokens a layer; empty unless `reads_residual`.
        """
        return None

    @abstractmethod
    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """The transforms of a layer by site; sites left out are not transformed."""

    def key_transform(self, layer: LayerView) -> Transform | None:
        """The transform of keys (and queries) after RoPE; called only where keys or queries are quantized."""
        return None

    def plan(self, layer: LayerView) -> LayerPlan:
        """All that is done to a layer."""
        keys = self.key_transform(layer) if "keys" in layer.statistics else None
        return LayerPlan(self.layer_transforms(layer), keys)
