"""The layer stream: a decoder whose layers are read one at a time; the model itself stays on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from sq.errors import CheckpointError
from sq.models.attention import ATTENTION
from sq.models.families import ModelDimensions, check_layer, family_of
from sq.models.gguf_source import GgufSource
from sq.models.head_rows import lay_out_rows
from sq.models.place import is_gguf
from sq.models.prefetch import Prefetch
from sq.models.random_source import RandomSource
from sq.models.source import TensorSource, WeightSource, read_config


@dataclass
class EmbeddingsAndHead:
    """What stands around the decoder layers: tokens become hidden states, and hidden states logits.

    Embedding and head are (vocab, hidden), the norm is the final RMSNorm. A head that the checkpoint ties to the
    embedding is the same tensor: what transforms one of them makes a new tensor and so unties them.
    """

    embedding: Tensor
    norm: nn.Module
    head: Tensor

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one matrix in memory."""
        return self.head.data_ptr() == self.embedding.data_ptr() and self.head.shape == self.embedding.shape

    def embed(self, ids: Tensor) -> Tensor:
        """Hidden states of token ids (B, S): (B, S, hidden)."""
        return nn.functional.embedding(ids.to(self.embedding.device), self.embedding)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states (..., hidden): (..., vocab)."""
        return nn.functional.linear(self.norm(hidden), self.head)


class DecoderStream:
    """A decoder LLM read layer by layer, from a folder, a GGUF file or a source of random weights.

    `folder` is a transformers model folder (config.json and safetensors), a GGUF file, or random weights of an
    architecture. `dtype` and `device` are those of the computation (None: the checkpoint's dtype). CheckpointError is
    raised for no config, an unknown architecture, or weights that cannot be read.
    """

    def __init__(
        self, folder: Path | RandomSource, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.source: TensorSource
        if isinstance(folder, RandomSource):
            self.config, self.source, self.name = folder.config, folder, "the random model"
        elif is_gguf(folder):
            opened = GgufSource(folder)
            self.config, self.source, self.name = opened.config, opened, str(folder)
        else:
            self.config, self.source, self.name = read_config(Path(folder)), WeightSource(folder), str(folder)
        self.family = family_of(self.config)
        self.dimensions = ModelDimensions.of(self.config)
        self.dtype = dtype or getattr(self.config, "dtype", None) or torch.float32
        self.device = torch.device(device)
        try:
            with torch.device("meta"):
                self.skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(
                    self.config, dtype=self.dtype, attn_implementation=ATTENTION
                )
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise CheckpointError(f"the config of {self.name} makes no model ({reason}); it is damaged") from error
        self.skeleton.eval()
        check_layer(self.family, self.meta_layer(0))
        self._arguments: dict[tuple[int, int], list[dict[str, Any]]] = {}
        reads_files = self.device.type != "cpu" and not isinstance(self.source, RandomSource)
        self._ahead = Prefetch(self._read, self.count, self.device) if reads_files else None

    @property
    def count(self) -> int:
        """Number of decoder layers."""
        return self.dimensions.layers

    def meta_layer(self, index: int) -> nn.Module:
        """The layer's skeleton on the meta device."""
        return self.skeleton.get_submodule(f"{self.family.layers}.{index}")

    def layer(self, index: int) -> nn.Module:
        """A fresh decoder layer with its weights read from the checkpoint, in `dtype` on `device`."""
        prefix = f"{self.family.layers}.{index}."
        layer = copy.deepcopy(self.meta_layer(index))
        names = [name for name, _ in layer.named_parameters()]
        weights = self._read(index) if self._ahead is None else self._ahead.get(index)
        state = {name: self._place(weights[prefix + name]) for name in names}
        for name, parameter in layer.named_parameters():
            if state[name].shape != parameter.shape:
                raise CheckpointError(
                    f"tensor {prefix + name!r} has shape {tuple(state[name].shape)}, the config asks for "
                    f"{tuple(parameter.shape)}"
                )
        layer.load_state_dict(state, assign=True)
        return layer.requires_grad_(False).eval()

    def _read(self, index: int) -> Mapping[str, Tensor]:
        """Tensors of a layer by their full names, on the CPU."""
        names = (name for name, _ in self.meta_layer(index).named_parameters())
        return self.source.read(f"{self.family.layers}.{index}.{name}" for name in names)

    def embeddings_and_head(self) -> EmbeddingsAndHead:
        """Embedding, final norm and head; a tied head is the embedding itself."""
        paths = (self.family.embedding, self.family.final_norm, self.family.head)
        embedding, norm, head = (f"{path}.weight" for path in paths)
        names = [embedding, norm] + ([head] if head in self.source.names() else [])
        if head not in names and not self.config.tie_word_embeddings:
            raise CheckpointError(f"{self.name} has no tensor {head!r} and config.json does not tie the embeddings")
        weights = self.source.read(names)
        module = copy.deepcopy(self.skeleton.get_submodule(self.family.final_norm))
        module.load_state_dict({"weight": self._place(weights[norm])}, assign=True)
        tied = self.config.tie_word_embeddings or head not in weights
        placed = self._place(weights[embedding])
        return EmbeddingsAndHead(
            embedding=placed,
            norm=module.requires_grad_(False).eval(),
            head=placed if tied else self._place(weights[head]),
        )

    def arguments(self, batch: int, length: int) -> list[dict[str, Any]]:
        """Keyword arguments that transformers passes to each decoder layer for a full batch: (B, S) tokens, no cache.

        They are recorded from the model's own forward, so masks, sliding windows and rotary embeddings are its own.
        """
        key = (batch, length)
        if key not in self._arguments:
            # A copy of each part but the layers; the norm is skipped because its weight is on the meta device.
            decoder = copy.copy(self.skeleton.get_submodule(self.family.layers.rpartition(".")[0]))
            decoder._modules = dict(decoder._modules)
            recorders = nn.ModuleList(_Recorder() for _ in range(self.count))
            setattr(decoder, self.family.layers.rpartition(".")[2], recorders)
            setattr(decoder, self.family.final_norm.rpartition(".")[2], nn.Identity())
            setattr(decoder, self.family.rotary.rpartition(".")[2], self.rotary())
            hidden = torch.zeros(batch, length, self.dimensions.hidden, dtype=self.dtype, device=self.device)
            decoder(inputs_embeds=hidden, use_cache=False)
            self._arguments[key] = [recorder.arguments for recorder in recorders]  # type: ignore[misc]
        return self._arguments[key]

    def rotary(self) -> nn.Module:
        """A working rotary embedding: the skeleton's has its frequencies on the meta device."""
        return type(self.skeleton.get_submodule(self.family.rotary))(self.config).to(self.device)

    def forward(self, index: int, layer: Callable[..., Tensor], hidden: Tensor) -> Tensor:
        """Run layer `index`, or what stands in for it, on hidden states (B, S, hidden) of full windows."""
        batch, length, _ = hidden.shape
        out: Tensor = layer(hidden.to(self.device), **self.arguments(batch, length)[index])
        return out

    def layers(self) -> Iterator[nn.Module]:
        """All layers in order, each fresh from the checkpoint."""
        return (self.layer(index) for index in range(self.count))

    def assemble(self, layers: list[nn.Module], outer: EmbeddingsAndHead) -> PreTrainedModel:
        """A whole model in memory from its layers, embeddings and head; tied where these two are one matrix."""
        model = copy.deepcopy(self.skeleton)
        stack = model.get_submodule(self.family.layers)
        for index, layer in enumerate(layers):
            stack[index] = layer  # type: ignore[operator]
        model.config.tie_word_embeddings = outer.tied
        embedding = nn.Parameter(outer.embedding, requires_grad=False)
        head = embedding if outer.tied else nn.Parameter(outer.head, requires_grad=False)
        model.get_submodule(self.family.embedding).weight = embedding
        model.get_submodule(self.family.head).weight = head
        model.set_submodule(self.family.final_norm, outer.norm)
        model.set_submodule(self.family.rotary, self.rotary())
        lay_out_rows(model.get_submodule(self.family.head))
        model.eval()
        return model

    def _place(self, tensor: Tensor) -> Tensor:
        # From pinned memory the host goes on while the copy runs; from other memory this waits as usual.
        return tensor.to(self.device, non_blocking=tensor.is_pinned()).to(self.dtype)


class _Recorder(nn.Module):
    """Stands in for a decoder layer and keeps the keyword arguments it was called with."""

    arguments: dict[str, Any]

    def forward(self, hidden: Tensor, **arguments: Any) -> Tensor:
        self.arguments = arguments
        return hidden
