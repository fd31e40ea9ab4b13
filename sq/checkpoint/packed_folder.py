"""Packed checkpoints on disk: one safetensors file a layer, written as layers come, renamed into place when whole."""

from __future__ import annotations

import copy
import json
import logging
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
from sq.checkpoint.by_name import add_module, with_keys
from sq.checkpoint.card import card_text
from sq.checkpoint.layer_data import describe_layer, empty_layer, guard_of
from sq.checkpoint.manifest import CARD, CONFIG, damaged_files, digests, run_of, seal
from sq.checkpoint.register import FORMAT, QUANT_METHOD
from sq.digest import content_digest, is_sealed, record_digest, sealed
from sq.errors import CheckpointError, FileError
from sq.io import jsonable, read_json, read_safetensors, write_json, write_safetensors, write_text
from sq.models.families import Family, family_of
from sq.models.stream import EmbeddingsAndHead

INDEX = "model.safetensors.index.json"
MARK = "recipe.txt"  # of a folder that is being written: what writes it
MEASURED = "quantization.json"  # what the pass measured, layer by layer, times too: no digest of the model holds it
KEPT = (CONFIG, CARD, MEASURED)
log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes a packed model layer by layer; a folder with config.json is complete.

    Layers go to `<folder>.part`; what an interrupted run left there is used again by the same run alone, layers that
    are whole at least. A folder that the same run finished is read and not written: its layers are there already.

    Args:
        folder: to be made.
        config: of the model; it is copied.
        recipe: what made the weights: method, bits, quantizers. Kept in config.json.
        run: identity of the run, which alone may go on with what is there; "" is that of no run.

    Attributes:
        finished: whether the folder was whole before.

    Raises:
        CheckpointError: the folder holds something else.
    """

    def __init__(self, folder: Path, config: PretrainedConfig, recipe: Mapping[str, Any], run: str = "") -> None:
        self.folder, self.part = folder, folder.with_name(folder.name + ".part")
        self.config, self.family, self.recipe, self.run = copy.deepcopy(config), family_of(config), dict(recipe), run
        self.count = config.num_hidden_layers
        self.finished = self._is_finished()
        if self.finished:
            self._tidy()
            return
        self.part.mkdir(parents=True, exist_ok=True)
        made = [FORMAT, sq.__version__, run, jsonable(self.recipe), config.to_json_string()]
        mark, owner = record_digest({"made": made}), self.part / MARK
        if not run or not owner.is_file() or owner.read_text(encoding="utf-8", errors="replace") != mark:
            shutil.rmtree(self.part)
            self.part.mkdir()
            write_text(owner, mark)

    def has(self, index: int) -> bool:
        """Whether a layer is there already, whole."""
        return self.finished or self._description(index) is not None

    def write_layer(self, index: int, layer: nn.Module, report: Mapping[str, Any] | None = None) -> None:
        """Keep one packed layer, which stays as it is, and what its pass measured."""
        prefix, tensors = f"{self.family.layers}.{index}.", {**layer.state_dict(), **self._guard(index)}
        self._save(self._name(index), {prefix + name: tensor for name, tensor in tensors.items()})
        file = content_digest(self.part / self._name(index))
        data = {"run": self.run, "layer": describe_layer(self.family, layer), "report": report, "file": file}
        write_json(self.part / _data_name(index), sealed(jsonable(data)))

    def read_layer(self, index: int, skeleton: nn.Module) -> tuple[nn.Module, Mapping[str, Any] | None]:
        """A layer that was written before, from a skeleton on the meta device, and its report; on the CPU."""
        found = self._description(index)
        assert found is not None
        layer = copy.deepcopy(skeleton)
        dtype = getattr(self.config, "dtype", None) or torch.float32
        empty_layer(self.family, layer, found["layer"], dtype)
        prefix, guard = f"{self.family.layers}.{index}.", self._guard(index)
        tensors, _ = read_safetensors((self.folder if self.finished else self.part) / self._name(index))
        own = {name.removeprefix(prefix): tensor.clone() for name, tensor in tensors.items()}
        layer.load_state_dict({name: tensor for name, tensor in own.items() if name not in guard}, assign=True)
        return layer.requires_grad_(False).eval(), found["report"]

    def finish(
        self,
        outer: EmbeddingsAndHead,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generation: GenerationConfig | None = None,
    ) -> Path:
        """Write the rest and rename the folder into place; CheckpointError where a layer is missing.

        A kill between any two steps leaves a `.part` that the same run goes on with, or a finished folder.
        """
        if self.finished:
            return self.folder
        found = [self._description(index) for index in range(self.count)]
        if missing := [index for index, data in enumerate(found) if data is None]:
            raise CheckpointError(f"layers {missing} were not written to {self.part}")
        layers = [data for data in found if data is not None]
        ends: dict[str, Any] = {self.family.embedding: outer.embedding, self.family.final_norm: outer.norm.weight}
        if not outer.tied:
            ends[self.family.head] = outer.head
        self._save(self._name(self.count), {f"{name}.weight": tensor for name, tensor in ends.items()})
        self._write_index()
        if self.config.tie_word_embeddings and not outer.tied:
            log.info(
                "the head is written as a matrix of its own, %.1f MB: the recipe rotates the residual stream, which "
                "unties it from the embedding; recipes with transforms online leave both as they are",
                outer.head.nbytes / 1e6,
            )
        self.config.tie_word_embeddings = outer.tied
        if tokenizer is not None:
            tokenizer.save_pretrained(self.part)
        add_module(self.part)
        (generation or GenerationConfig.from_model_config(self.config)).save_pretrained(self.part)
        if self.run:
            write_json(self.part / MEASURED, sealed({"layers": [data["report"] for data in layers]}))
        described = self._described([data["layer"] for data in layers])
        write_text(self.part / CARD, card_text(described))
        write_json(self.part / CONFIG, described)  # last: it makes the folder a checkpoint
        if self.folder.exists():
            self.folder.rmdir()
        os.replace(self.part, self.folder)
        self._tidy()
        return self.folder

    def _is_finished(self) -> bool:
        """Whether this very run finished the folder and it is whole; one that is not is removed, to be made again."""
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return False
        made_by = run_of(self.folder)
        if not self.run or made_by != self.run:
            holds = "something else" if made_by is None else f"the checkpoint of run {made_by[:8] or 'unknown'}"
            wanted = f", and this is run {self.run[:8]}" if self.run else ""
            raise CheckpointError(
                f"{self.folder} exists, is not empty and holds {holds}{wanted}: remove it, or choose another folder"
            )
        if wrong := damaged_files(self.folder) + self._unmeasured():
            log.warning("%s is damaged (%s): making it again", self.folder, wrong[0])
            shutil.rmtree(self.folder)
            return False
        return True

    def _described(self, layers: list[Any]) -> dict[str, Any]:
        """What config.json says: the model's own, with digests of all files beside it."""
        if hasattr(self.config, "quantization_config"):
            del self.config.quantization_config
        config: dict[str, Any] = json.loads(self.config.to_json_string())
        config = with_keys(config)
        config.pop("_name_or_path", None)  # a place on the machine that made it
        files = [path.name for path in self.part.iterdir() if path.is_file() and not _of_work(path.name)]
        data = {"quant_method": QUANT_METHOD, "format": FORMAT, "version": sq.__version__, "run": self.run}
        data |= {"recipe": jsonable(self.recipe), "layers": layers, "files": digests(self.part, files)}
        config["quantization_config"] = data
        data["config_digest"] = seal(config)
        return config

    def _description(self, index: int) -> dict[str, Any] | None:
        """A written layer's data and its report; None where a file of it is missing or damaged."""
        if self.finished:
            data = read_json(self.folder / CONFIG)["quantization_config"]["layers"][index]
            return {"layer": data, "report": read_json(self.folder / MEASURED)["layers"][index]}
        try:
            found: dict[str, Any] = read_json(self.part / _data_name(index))
            own = is_sealed(found) and found["run"] == self.run
            return found if own and content_digest(self.part / self._name(index)) == found["file"] else None
        except (FileError, KeyError, TypeError, AttributeError):
            return None

    def _unmeasured(self) -> list[str]:
        """Why a finished folder does not say what its pass measured."""
        try:
            found = read_json(self.folder / MEASURED)
            return [] if is_sealed(found) and len(found["layers"]) == self.count else [f"{MEASURED} is damaged"]
        except (FileError, KeyError, TypeError, AttributeError):
            return [f"{MEASURED} is missing or damaged"]

    def _tidy(self) -> None:
        """Remove what only the work needed."""
        for path in [path for path in self.folder.iterdir() if _of_work(path.name) and path.name not in KEPT]:
            path.unlink(missing_ok=True)

    def _save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        write_safetensors(self.part / name, tensors, {"format": "pt"}, digest=False)  # config.json has one

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


def check_files(family: Family, model: nn.Module, files: list[str], *, tied: bool = False) -> None:
    """Compare a checkpoint's tensors with what an empty model wants, before anything is loaded.

    Args:
        tied: whether the head is the embedding, so that no file holds one.

    Raises:
        CheckpointError: every missing or foreign tensor, wrong shape or dtype, and file that cannot be read, together.
    """
    wanted = {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}
    if tied:
        del wanted[f"{family.head}.weight"]  # transformers gives it the embedding's
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


def _of_work(name: str) -> bool:
    """Whether a file is of the work on a folder, or says something of it: what no digest in config.json holds."""
    return name in (CONFIG, CARD, MARK, MEASURED) or name.startswith((".", "layer-"))
