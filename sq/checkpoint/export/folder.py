"""An exported model on disk: one safetensors file a layer, written as layers come, renamed into place when whole."""

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
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import sq
from sq.checkpoint.export.card import write_export_card
from sq.checkpoint.export.scheme import activation_arguments, storage_of, weight_arguments
from sq.checkpoint.export.stamp import STAMP, read_stamp
from sq.checkpoint.export.tensors import input_tensors, weight_tensors
from sq.checkpoint.export.transforms import InputTransforms
from sq.checkpoint.manifest import CONFIG, digests
from sq.digest import sealed
from sq.errors import CheckpointError, QuantizationError
from sq.formats.activation import ActivationQuantizer
from sq.formats.format import Format
from sq.formats.qtensor import QTensor
from sq.io import jsonable, write_json, write_safetensors
from sq.models.families import family_of
from sq.models.place import INDEX
from sq.models.stream import EmbeddingsAndHead
from sq.nn.hooks import attention_input
from sq.nn.site_input import SiteInput

log = logging.getLogger(__name__)
KIND = "compressed-tensors"  # the value of `export`, and what config.json calls the format


class ExportWriter:
    """Writes a fake-quantized model for engines, layer by layer; a folder with config.json is complete.

    Layers go to `<folder>.part`. What an interrupted run left there is written anew.

    Args:
        folder: to be made, empty, or the export of the same run, which is replaced.
        config: of the model; it is copied.
        dtype: of the model that was quantized.
        recipe: what made the weights, for the stamp.
        run: identity of the run.

    Raises:
        CheckpointError: the folder holds something else.
    """

    def __init__(
        self, folder: Path, config: PretrainedConfig, dtype: torch.dtype, recipe: Mapping[str, Any], run: str = ""
    ) -> None:
        self.folder, self.part = folder, folder.with_name(folder.name + ".part")
        self.config, self.family = copy.deepcopy(config), family_of(config)
        self.dtype, self.recipe, self.run = dtype, dict(recipe), run
        self.count = config.num_hidden_layers
        self.transforms = InputTransforms()
        self._formats: tuple[Format, Format | None] | None = None
        self._weights: dict[str, str] = {}
        self._bytes = 0
        if folder.exists() and any(folder.iterdir()):
            stamp = read_stamp(folder)
            if not run or stamp is None or stamp["run"] != run:
                raise CheckpointError(f"{folder} exists and holds something else: remove it, or choose another folder")
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)

    def write_layer(self, index: int, layer: nn.Module, codes: Mapping[str, QTensor]) -> None:
        """Write one layer, which stays as it is.

        Args:
            layer: of `QuantizedLinear`s, with its quantizers.
            codes: of its linears, by name.

        Raises:
            QuantizationError: the layer does at run time what the format cannot say.
        """
        if attention_input(self.family, layer) is not None:
            raise QuantizationError(f"layer {index} rounds or transforms inside attention, which has no export")
        tensors: dict[str, Tensor] = {}
        linears = [name for names in self.family.linears.values() for name in names]
        for site, names in self.family.linears.items():
            inputs = layer.get_submodule(names[0]).inputs
            assert isinstance(inputs, SiteInput)
            quantizer = self._agree(f"layer {index}, {site}", codes[names[0]].format, inputs.quantizer)
            tensors |= self.transforms.add(index, site, names, inputs.transform)
            for name in names:
                stored = {**weight_tensors(codes[name], self._storage), **input_tensors(quantizer)}
                tensors |= {f"{name}.{part}": tensor for part, tensor in stored.items()}
                bias = layer.get_submodule(name).bias
                if isinstance(bias, Tensor):
                    tensors[f"{name}.bias"] = bias
        rest = layer.state_dict()
        tensors |= {name: value for name, value in rest.items() if not name.startswith(tuple(f"{n}." for n in linears))}
        self._save(index, {f"{self.family.layers}.{index}.{name}": tensor for name, tensor in tensors.items()})

    def finish(
        self,
        outer: EmbeddingsAndHead,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generation: GenerationConfig | None = None,
    ) -> Path:
        """Write the rest and rename the folder into place.

        A head that the checkpoint ties stays tied where the recipe left it equal to the embedding.
        """
        tied = bool(self.config.tie_word_embeddings) and torch.equal(outer.embedding, outer.head)
        self.config.tie_word_embeddings = tied
        named = {self.family.embedding: outer.embedding, self.family.final_norm: outer.norm.weight}
        if not tied:
            named[self.family.head] = outer.head
        self._save(self.count, {f"{name}.weight": tensor for name, tensor in named.items()})  # type: ignore[misc]
        index = {"metadata": {"total_size": self._bytes}, "weight_map": dict(sorted(self._weights.items()))}
        write_json(self.part / INDEX, index)
        if tokenizer is not None:
            tokenizer.save_pretrained(self.part)
        (generation or GenerationConfig.from_model_config(self.config)).save_pretrained(self.part)
        write_json(self.part / CONFIG, self._described())
        files = digests(self.part, [path.name for path in self.part.iterdir() if path.is_file()])
        stamp = {"export": KIND, "version": sq.__version__, "run": self.run, "recipe": self.recipe, "files": files}
        write_json(self.part / STAMP, sealed(jsonable(stamp)))
        write_export_card(self.part)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        os.replace(self.part, self.folder)
        if online := self.transforms.groups:
            log.warning(
                "%s has transforms online (%s): vLLM applies them, transformers ignores them and computes nonsense",
                self.folder,
                ", ".join(online),
            )
        return self.folder

    def _agree(self, where: str, weight: Format, quantizer: nn.Module | None) -> ActivationQuantizer | None:
        """The quantizer: all linears have one pair of formats, and no clip of a method's own."""
        activations = None
        assert quantizer is None or isinstance(quantizer, ActivationQuantizer)
        if quantizer is not None:
            activations = quantizer.format
            if quantizer.clip != 1.0:
                raise QuantizationError(f"{where} has the clip {quantizer.clip}, for which the format has no field")
        self._formats = self._formats or (weight, activations)
        if self._formats != (weight, activations):
            raise QuantizationError(f"{where} has formats of its own; the export has one pair for all linears")
        return quantizer

    @property
    def _storage(self) -> str:
        assert self._formats is not None
        return storage_of(*self._formats)

    def _described(self) -> dict[str, Any]:
        """config.json: the model's own, and what compressed-tensors' classes make of the recipe."""
        if hasattr(self.config, "quantization_config"):
            del self.config.quantization_config
        config: dict[str, Any] = json.loads(self.config.to_json_string())
        config.pop("_name_or_path", None)  # a place on the machine that made it
        config["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.family.model_type]]  # a GGUF file has none
        config["dtype"] = str(self.dtype).removeprefix("torch.")
        assert self._formats is not None
        config["quantization_config"] = quantization_config(
            *self._formats, transforms=self.transforms.config(self.count), ignore=[self.family.head]
        )
        return config

    def _save(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        name = f"model-{index + 1:05d}-of-{self.count + 1:05d}.safetensors"
        write_safetensors(self.part / name, tensors, {"format": "pt"}, digest=False)  # the stamp has one
        self._weights |= dict.fromkeys(tensors, name)
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())


def quantization_config(
    weights: Format, activations: Format | None, *, transforms: Mapping[str, Any], ignore: list[str]
) -> dict[str, Any]:
    """The `quantization_config` of config.json, checked and filled in by compressed-tensors' own classes.

    Args:
        transforms: fields of TransformConfig; empty for none.
        ignore: linears that stay in 16 bits.
    """
    import compressed_tensors
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.transform import TransformConfig

    storage = storage_of(weights, activations)
    group = {
        "targets": ["Linear"],
        "weights": weight_arguments(weights),
        "input_activations": None if activations is None else activation_arguments(activations),
        "format": storage,
    }
    made = QuantizationConfig.model_validate(
        {
            "config_groups": {"group_0": group},
            "format": storage,
            "quantization_status": "compressed",
            "ignore": ignore,
            "quant_method": KIND,
        }
    )
    found = {key: value for key, value in made.model_dump(mode="json").items() if key != "moe_sparsity_config"}
    found["transform_config"] = TransformConfig.model_validate(transforms).model_dump(mode="json") if transforms else {}
    found["version"] = compressed_tensors.__version__
    return found
