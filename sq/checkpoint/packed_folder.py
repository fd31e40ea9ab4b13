"""Packed checkpoints on disk: one safetensors file a layer, written as layers come, renamed into place when whole."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import sq
from sq.checkpoint.layer_data import describe_layer, empty_layer, guard_of
from sq.checkpoint.register import FORMAT, QUANT_METHOD
from sq.errors import CheckpointError
from sq.io import read_json, read_safetensors, write_json, write_safetensors, write_text
from sq.models.families import Family, family_of
from sq.models.stream import EmbeddingsAndHead

INDEX = "model.safetensors.index.json"


class CheckpointWriter:
    """Writes a packed model layer by layer; a folder with config.json is complete.

    Layers go to `<folder>.part`; what an interrupted run of the same recipe left there is used again.

    Args:
        folder: to be made; one with another checkpoint in it is refused.
        config: of the model; it is copied.
        recipe: what made the weights: method, bits, quantizers. Kept in config.json.

    Raises:
        CheckpointError: the folder exists and is not empty.
    """

    def __init__(self, folder: Path, config: PretrainedConfig, recipe: Mapping[str, Any]) -> None:
        self.folder, self.part = folder, folder.with_name(folder.name + ".part")
        if folder.exists() and any(folder.iterdir()):
            raise CheckpointError(f"{folder} exists and is not empty: remove it, or choose another folder")
        self.config, self.family, self.recipe = copy.deepcopy(config), family_of(config), dict(recipe)
        self.count = config.num_hidden_layers
        self.part.mkdir(parents=True, exist_ok=True)
        mark, owner = _digest([FORMAT, sq.__version__, self.recipe, config.to_json_string()]), self.part / "recipe.txt"
        if not owner.is_file() or owner.read_text() != mark:
            shutil.rmtree(self.part)
            self.part.mkdir()
            write_text(owner, mark)

    def has(self, index: int) -> bool:
        """Whether a layer is there already."""
        return (self.part / self._name(index)).is_file() and (self.part / _data_name(index)).is_file()

    def write_layer(self, index: int, layer: nn.Module) -> None:
        """Keep one packed layer, which stays as it is."""
        write_json(self.part / _data_name(index), describe_layer(self.family, layer))
        prefix, tensors = f"{self.family.layers}.{index}.", {**layer.state_dict(), **self._guard(index)}
        self._save(self._name(index), {prefix + name: tensor for name, tensor in tensors.items()})

    def read_layer(self, index: int, skeleton: nn.Module) -> nn.Module:
        """A layer that was written before, from a skeleton on the meta device; on the CPU."""
        layer = copy.deepcopy(skeleton)
        dtype = getattr(self.config, "dtype", None) or torch.float32
        empty_layer(self.family, layer, read_json(self.part / _data_name(index)), dtype)
        prefix, guard = f"{self.family.layers}.{index}.", self._guard(index)
        tensors, _ = read_safetensors(self.part / self._name(index))
        own = {name.removeprefix(prefix): tensor.clone() for name, tensor in tensors.items()}
        layer.load_state_dict({name: tensor for name, tensor in own.items() if name not in guard}, assign=True)
        return layer.requires_grad_(False).eval()

    def finish(
        self,
        outer: EmbeddingsAndHead,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generation: GenerationConfig | None = None,
    ) -> Path:
        """Write the rest and rename the folder into place; CheckpointError where a layer is missing."""
        if missing := [index for index in range(self.count) if not self.has(index)]:
            raise CheckpointError(f"layers {missing} were not written to {self.part}")
        names = (self.family.embedding, self.family.final_norm, self.family.head)
        tensors = (outer.embedding, outer.norm.weight, outer.head)
        last = self._name(self.count)
        self._save(last, {f"{name}.weight": tensor for name, tensor in zip(names, tensors, strict=True)})  # type: ignore[misc]
        self._write_index()
        layers = [read_json(self.part / _data_name(index)) for index in range(self.count)]
        self.config.tie_word_embeddings = False
        data = {"quant_method": QUANT_METHOD, "format": FORMAT, "version": sq.__version__, "recipe": self.recipe}
        self.config.quantization_config = {**data, "layers": layers}
        if tokenizer is not None:
            tokenizer.save_pretrained(self.part)
        (generation or GenerationConfig.from_model_config(self.config)).save_pretrained(self.part)
        for index in range(self.count):
            (self.part / _data_name(index)).unlink()
        (self.part / "recipe.txt").unlink()
        self.config.save_pretrained(self.part)  # last: it makes the folder a checkpoint
        if self.folder.exists():
            self.folder.rmdir()
        os.replace(self.part, self.folder)
        return self.folder

    def _save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        write_safetensors(self.part / name, tensors, {"format": "pt"})

    def _guard(self, index: int) -> dict[str, Tensor]:
        return guard_of(self.family) if index == 0 else {}

    def _name(self, index: int) -> str:
        return f"model-{index + 1:05d}-of-{self.count + 1:05d}.safetensors"

    def _write_index(self) -> None:
        weights, total = {}, 0
        for index in range(self.count + 1):
            with safe_open(self.part / self._name(index), framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118
                    weights[name] = self._name(index)
            total += (self.part / self._name(index)).stat().st_size
        write_json(self.part / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))})


def save_packed(model: PreTrainedModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Save a packed model, from `sq.quantize(..., packed=True)` or loaded from a checkpoint.

    Raises:
        CheckpointError: the model is not packed, or the folder exists and is not empty.
    """
    found = getattr(model.config, "quantization_config", None)
    data = found if isinstance(found, dict) or found is None else found.to_dict()
    if data is None or data.get("quant_method") != QUANT_METHOD:
        raise CheckpointError("the model is not a packed one: make it with sq.quantize(..., packed=True)")
    config = copy.deepcopy(model.config)
    del config.quantization_config
    writer = CheckpointWriter(Path(folder), config, data["recipe"])
    family = writer.family
    for index in range(writer.count):
        writer.write_layer(index, model.get_submodule(f"{family.layers}.{index}"))
    embedding, norm, head = (model.get_submodule(path) for path in (family.embedding, family.final_norm, family.head))
    outer = EmbeddingsAndHead(embedding.weight, norm, head.weight)  # type: ignore[arg-type]
    return writer.finish(outer, tokenizer, model.generation_config)


def check_files(family: Family, model: nn.Module, files: list[str]) -> None:
    """Compare a checkpoint's tensors with what an empty model wants, before anything is loaded.

    Raises:
        CheckpointError: every missing or foreign tensor, wrong shape or dtype, and file that cannot be read, together.
    """
    wanted = {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    problems: list[str] = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118
                    part = handle.get_slice(name)
                    found[name] = (tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            problems.append(f"{file} cannot be read ({error}): truncated or not a safetensors file")
    problems += [f"tensor {name!r} is missing" for name in wanted if name not in found]
    problems += [f"tensor {name!r} belongs to another model" for name in found if name not in wanted]
    for name, (shape, dtype) in found.items():
        if name in wanted and shape != wanted[name][0]:
            problems.append(f"tensor {name!r} has shape {shape}, its config needs {wanted[name][0]}")
        elif name in wanted and not wanted[name][1].is_floating_point and dtype != "U8":
            problems.append(f"tensor {name!r} is {dtype}, packed weights are U8")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"the packed checkpoint in {Path(files[0]).parent} cannot be used: {'; '.join(problems[:5])}{more}. "
            "Write it again with `python run.py save_to=FOLDER`, or fetch it again"
        )


def _data_name(index: int) -> str:
    return f"layer-{index:05d}.json"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
