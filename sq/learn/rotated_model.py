"""The fake-quantized model as a differentiable function of its residual and head rotations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sq.learn.held_clip import HeldClip
from sq.learn.rotations import Rotations
from sq.nn.attention import AttentionInput
from sq.quantize.recipe import Recipe
from sq.quantize.training import Training
from sq.quantize.training_block import TrainingBlock
from sq.rotation import Transform


class RotatedModel:
    """Next-token cross-entropy of the model with R1 and R2 folded, its weights, activations and attention rounded.

    With norm gains folded, y = x W^T in every linear:

        embedding  E R1                 q, k, gate, up   W R1
        head       W R1                 v                diag(R2, ..., R2)^T W R1,  its bias  b diag(R2, ..., R2)
        down       R1^T W D, b R1       o                R1^T W diag(R2, ..., R2),  its bias  b R1

    All but embedding and head are rounded. They are rotated on the side of the tokens: norm(x) R1^T W^T costs less than
    rotating and differentiating (vocab, hidden), and is the same.

    Args:
        training: the model. Its layers stay in memory, those of `down` multiplied by D once.
        recipe: what is rounded, which may differ from the run's own; `clip_interval` is that of `HeldClip`.
        down, keys: D, online in front of `down`, and the transform of keys and queries after RoPE, or None.
        rerotate_dtype: of the products that rotate weights, at least the layers' own.
        recompute: keep only the hidden states between layers for the gradient, and run each layer twice.
    """

    def __init__(
        self,
        training: Training,
        recipe: Recipe,
        *,
        down: Transform | None = None,
        keys: Transform | None = None,
        clip_interval: int = 1,
        rerotate_dtype: torch.dtype = torch.float32,
        recompute: bool = False,
    ) -> None:
        self.dimensions, self.recompute = training.dimensions, recompute
        self.blocks = []
        for index in range(training.count):
            training.log.progress("reading layers", index, training.count)
            self.blocks.append(training.block(index))
        training.log.progress("reading layers", training.count, training.count)
        self.round = HeldClip(recipe.weight_quantizer, clip_interval)
        self.embeddings_and_head = training.embeddings_and_head()
        self.dtype = self.blocks[0].dtype
        self.embedding, self.head = (
            end.to(self.dtype) for end in (self.embeddings_and_head.embedding, self.embeddings_and_head.head)
        )
        self.rerotate_dtype = torch.promote_types(rerotate_dtype, self.dtype)
        self.sites: dict[str, Callable[[Tensor], Tensor]] = {
            site: recipe.activations_at(site) or (lambda x: x) for site in self.blocks[0].family.linears
        }
        if down is not None:
            rounded = self.sites["down"]
            self.sites["down"] = lambda x: rounded(down(x))
            for block in self.blocks:
                for name in block.family.linears["down"]:
                    weight = block.weight(name)
                    weight.copy_(down.inverse_transpose(weight))
        self.attention = AttentionInput(
            keys if recipe.quantizes_scores else None, recipe.queries, recipe.keys, recipe.values
        )

    def loss(self, rotations: Rotations, ids: Tensor, step: int) -> Tensor:
        """Mean cross-entropy over the tokens of windows ids (B, S) but the first of each; a scalar.

        It is differentiable in the rotations; the number of the training step says when clips are searched.
        """
        r1 = rotations.residual.to(self.dtype)
        ids = ids.to(self.embedding.device)
        hidden = torch.nn.functional.embedding(ids, self.embedding) @ r1
        for block, r2 in zip(self.blocks, rotations.heads, strict=True):
            hidden = self._kept(self._layer, block, hidden, rotations.residual, r2, step)
        losses = [self._kept(self._cross_entropy, *window, r1) for window in zip(hidden, ids, strict=True)]
        return torch.stack(losses).mean()

    def _layer(self, block: TrainingBlock, hidden: Tensor, r1: Tensor, r2: Tensor, step: int) -> Tensor:
        parameters = self.parameters(block, r1, r2)
        for name in chain.from_iterable(block.family.linears.values()):
            key = f"{name}.weight"
            parameters[key] = self.round(f"{block.index}.{name}", parameters[key], step)
        with block.quantized(self.sites, self.attention):
            return block.outputs(hidden, parameters)

    def parameters(self, block: TrainingBlock, r1: Tensor, r2: Tensor) -> dict[str, Tensor]:
        """Rotated weights and biases of a layer by full name, not rounded."""
        family, heads = block.family, self.dimensions.heads
        r1, r2 = r1.to(self.rerotate_dtype), r2.to(self.rerotate_dtype)
        found: dict[str, Tensor] = {}
        for site in family.norms:
            for name in family.linears[site]:
                found[f"{name}.weight"] = block.weight(name).to(r1.dtype) @ r1
        for name in family.residual_outputs:
            found[f"{name}.weight"] = r1.T @ block.weight(name).to(r1.dtype)
            if (bias := block.bias(name)) is not None:
                found[f"{name}.bias"] = bias.to(r1.dtype) @ r1
        value, (out,) = family.producers["o"], family.linears["o"]
        rows = found[f"{value}.weight"].unflatten(0, (self.dimensions.kv_heads, -1))  # (kv_heads, head_dim, hidden)
        found[f"{value}.weight"] = (r2.T @ rows).flatten(0, 1)
        if (bias := block.bias(value)) is not None:
            found[f"{value}.bias"] = (bias.to(r1.dtype).unflatten(0, (self.dimensions.kv_heads, -1)) @ r2).flatten()
        columns = found[f"{out}.weight"].unflatten(1, (heads, -1))  # (hidden, heads, head_dim)
        found[f"{out}.weight"] = (columns @ r2).flatten(1)
        return {name: rotated.to(self.dtype) for name, rotated in found.items()}

    def _cross_entropy(self, hidden: Tensor, ids: Tensor, r1: Tensor) -> Tensor:
        logits = (self.embeddings_and_head.norm(hidden[:-1]) @ r1.T) @ self.head.T
        return torch.nn.functional.cross_entropy(logits, ids[1:])

    def _kept(self, function: Callable[..., Tensor], *arguments: object) -> Tensor:
        if not self.recompute:
            return function(*arguments)
        result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
        return result
