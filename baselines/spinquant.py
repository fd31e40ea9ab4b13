"""SpinQuant (Liu et al., arXiv 2405.16406): rotations of the residual stream and of the heads, learned by Cayley SGD.

R1 of the residual stream and R2 of each layer's heads are learned, R3 of keys and queries and R4 in front of down are
fixed Hadamards. How they are learned, sites, defaults and differences from the released code: README.md beside this
file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.format import Format
from sq.formats.labels import parse_bits
from sq.learn.descent import Descent, learn_rotations
from sq.learn.rotated_model import RotatedModel
from sq.learn.rotations import Rotations, load_rotations
from sq.learn.schedule import Decay, windows_of_step
from sq.learn.train_bits import describe, recipe_at
from sq.learn.training_state import TrainingStateFile
from sq.models.families import ModelDimensions
from sq.models.site_transform import SiteTransform
from sq.quantize.method import LayerView, Method, below_least
from sq.quantize.recipe import Recipe
from sq.quantize.training import Training
from sq.rotation import Dense, PerHead, Transform, blind_rotation
from sq.rotation.shared_block import width_obstacle

Start = Literal["hadamard", "orthogonal"]
Fixed = Literal["hadamard", "orthogonal", "none"]
Rerotate = Literal["float32", "float64"]
STATE, LEARNED = "training.safetensors", "rotations.safetensors"  # in the run directory

logger = logging.getLogger(__name__)


@dataclass
class SpinQuant(Method):
    """Learned R1 and R2, Hadamard R3 and R4; ValueError for an option other than these.

    Args:
        steps: of Cayley SGD; 0 keeps the start.
        lr: learning rate of the first step.
        schedule: how it falls to 0: "linear" or "cosine".
        batch: windows a step, at most all there are.
        train_bits: what is rounded in training: "auto", see README.md, or a label such as w16a4 or w4a4kv4, whose
            left-out parts are the run's own.
        clip_interval: steps from one clip search of the weights to the next; 1 is the released code's.
        rerotate_dtype: of the products that rotate weights at each step.
        recompute: keep the hidden states between layers only and run each layer twice: less memory, more time.
        rotations: file of learned rotations (rotations.safetensors of another run) to take instead of training.
        checkpoint_interval: steps from one saved state to the next; an interrupted run goes on from the last.
        residual, head: start of R1 and R2: "hadamard" (random signs) or "orthogonal" (Haar).
        down, keys: R4 and R3: "hadamard", "orthogonal" (Haar, n^2 online) or "none".
        seed: of the start and of the order of the windows.
    """

    name: str = "spinquant"
    steps: int = 100
    lr: float = 1.5
    schedule: Decay = "linear"
    batch: int = 8
    train_bits: str = "auto"
    clip_interval: int = 10
    rerotate_dtype: Rerotate = "float32"
    recompute: bool = False
    rotations: str | None = None
    checkpoint_interval: int = 10
    residual: Start = "hadamard"
    head: Start = "hadamard"
    down: Fixed = "hadamard"
    keys: Fixed = "hadamard"
    seed: int = 0
    learned: Rotations | None = field(default=None, init=False, repr=False, compare=False)
    fold_norms: ClassVar[bool] = True

    def __post_init__(self) -> None:
        allowed = {"schedule": Decay, "rerotate_dtype": Rerotate, "residual": Start, "head": Start}
        allowed |= {"down": Fixed, "keys": Fixed}
        wrong = [
            f"{key}={getattr(self, key)!r} (allowed: {', '.join(get_args(choices))})"
            for key, choices in allowed.items()
            if getattr(self, key) not in get_args(choices)
        ]
        wrong += below_least(self, {"steps": 0, "batch": 1, "clip_interval": 1, "checkpoint_interval": 1})
        wrong += [] if self.lr > 0 else [f"lr={self.lr} (more than 0)"]
        if self.rotations is not None and not Path(self.rotations).expanduser().is_file():
            wrong.append(f"rotations={self.rotations!r} (a file that exists, or null to train)")
        if wrong:
            raise ValueError("; ".join(wrong))
        if self.train_bits != "auto":
            parse_bits(self.train_bits)

    def obstacle(self, weights: Format | None, activations: Format | None) -> str | None:
        """It trains before a static second scale of activations could be calibrated."""
        if activations is None or not activations.static:
            return None
        return f"its training comes before calibration, which the second scale of {activations.name} needs; use nvfp4"

    def export_obstacle(self, dimensions: ModelDimensions | None = None) -> str | None:
        """R4 in front of `down` must be one that engines know."""
        if dimensions is None or self.down == "none":
            return None
        reason = width_obstacle(self.down, dimensions.intermediate)
        return reason and f"{reason}, in front of `down`; set method.down=none, or take method=singlequant_export"

    def learn(self, training: Training) -> None:
        """Train R1 and R2, or read them. What was trained is kept in the run directory."""
        dimensions, recipe, folder = training.dimensions, self.trained_on(training.recipe), training.log.folder
        outer = training.embeddings_and_head()
        device = outer.embedding.device
        if self.rotations is not None:
            self.learned = self._read(Path(self.rotations).expanduser(), dimensions, recipe).to(torch.float64, device)
            return
        keys = self._keys(dimensions) if recipe.quantizes_scores else None
        down, keys = (part and part.to(device) for part in (self._down(dimensions), keys))
        model = RotatedModel(
            training,
            recipe,
            down=down,
            keys=keys,
            clip_interval=self.clip_interval,
            rerotate_dtype=getattr(torch, self.rerotate_dtype),
            recompute=self.recompute,
        )

        def loss(rotations: Rotations, step: int) -> Tensor:
            chosen = windows_of_step(step, self.batch, len(training.ids), self.seed)
            return model.loss(rotations, training.ids[chosen], step)

        facts = {"trained_on": describe(recipe), **self._settings(training, outer.embedding)}
        self.learned = learn_rotations(
            self.start(dimensions).to(model.dtype, device),
            loss,
            Descent(self.steps, self.lr, self.schedule),
            log=training.log,
            checkpoint=TrainingStateFile(folder and folder / STATE, facts, self.checkpoint_interval),
            held=model.round.factors,
        )
        if folder is not None:
            self.learned.save(folder / LEARNED, facts)

    def trained_on(self, recipe: Recipe) -> Recipe:
        """The quantizers of the training: the run's, at `train_bits`."""
        if self.train_bits != "auto":
            return recipe_at(recipe, self.train_bits)
        others = [recipe.activations, recipe.queries, recipe.keys, recipe.values]
        if recipe.weights is None or not recipe.weights.compensates or others == [None] * 4:
            return recipe
        return replace(recipe, weights=None)

    def start(self, dimensions: ModelDimensions) -> Rotations:
        """R1 and R2 in front of the first step, float64."""
        residual = self._rotation("residual", dimensions.hidden, self.seed, "the residual stream: a hidden size of")
        seeds = range(self.seed + 1, self.seed + 1 + dimensions.layers)
        heads = [self._rotation("head", dimensions.head_dim, seed, "o: a head_dim of") for seed in seeds]
        return Rotations(residual.matrix(), torch.stack([head.matrix() for head in heads]))

    def residual_rotation(
        self, samples: Mapping[str, Sequence[Tensor]], dimensions: ModelDimensions
    ) -> Transform | None:
        """R1 as learned; the samples are not read."""
        return Dense(self._learned.residual, orthogonal=True)

    def layer_transforms(self, layer: LayerView) -> Mapping[str, SiteTransform]:
        """R2 as learned at o, R4 at down."""
        folded = PerHead(self._learned.heads[layer.index].expand(layer.dimensions.kv_heads, -1, -1))
        return {"o": SiteTransform(folded=folded), "down": SiteTransform(online=self._down(layer.dimensions))}

    def key_transform(self, layer: LayerView) -> Transform | None:
        """R3 on every head of keys and queries."""
        return self._keys(layer.dimensions)

    @property
    def _learned(self) -> Rotations:
        if self.learned is None:
            raise QuantizationError("SpinQuant has no rotations yet; call learn first, as sq.quantize.pipeline does")
        return self.learned

    def _down(self, dimensions: ModelDimensions) -> Transform | None:
        return self._fixed("down", dimensions.intermediate, "down: an intermediate size of")

    def _keys(self, dimensions: ModelDimensions) -> Transform | None:
        return self._fixed("keys", dimensions.head_dim, "keys: a head_dim of")

    def _fixed(self, place: str, n: int, what: str) -> Transform | None:
        return None if getattr(self, place) == "none" else self._rotation(place, n, self.seed, what)

    def _rotation(self, place: str, n: int, seed: int, what: str) -> Transform:
        signs, kind = place in ("residual", "head"), getattr(self, place)
        return blind_rotation(kind, n, seed, signs=signs, what=what, option=f"method.{place}")

    def _read(self, path: Path, dimensions: ModelDimensions, recipe: Recipe) -> Rotations:
        rotations, facts = load_rotations(path, dimensions)
        known, wanted = facts.get("trained_on"), describe(recipe)
        if known != wanted:
            logger.warning(
                "the rotations of %s were learned for %s; this run would learn them for %s (method.train_bits=%s)",
                path,
                known or "quantizers that the file does not name",
                wanted,
                self.train_bits,
            )
        return rotations

    def _settings(self, training: Training, embedding: Tensor) -> dict[str, Any]:
        """All that determines the training, beside the quantizers."""
        left_out = {"name", "recompute", "rotations", "checkpoint_interval", "learned"}
        options = {key: value for key, value in vars(self).items() if key not in left_out}
        data = (training.ids, embedding.float())
        windows, model = (sha256(tensor.detach().cpu().numpy().tobytes()).hexdigest()[:16] for tensor in data)
        return {"method": options, "geometry": asdict(training.dimensions), "windows": windows, "embedding": model}
