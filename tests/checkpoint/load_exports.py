"""Run by tests in a process of its own, without this package: the logits of exported folders, by transformers alone.

Each FOLDER has FOLDER.pt beside it, with token ids; logits of all go to the last argument. transformers ignores
transform_config, so compressed-tensors applies its online part here, as engines do: the weights have the rest already.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors import decompress_module, unpack_fp4_from_uint8
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.transform import TransformConfig, apply_transform_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def in_float32(module: torch.nn.Module) -> None:
    """Decompress an FP4 linear of a float32 model; the library itself makes bfloat16 weights, which do not run there.

    Its function that dequantizes is given codes in float32, so that products of scales are not rounded to bfloat16.
    """
    rows, half = module.weight_packed.shape
    values = unpack_fp4_from_uint8(module.weight_packed, rows, 2 * half, dtype=torch.float32)
    args, scale = module.quantization_scheme.weights, module.weight_scale
    scale = decompress_mx_scale(scale).float() if scale.dtype == torch.uint8 else scale.float()
    second = getattr(module, "weight_global_scale", None)
    decompress_module(module)  # for the module's state
    module.weight.data = dequantize(values, scale, args=args, dtype=torch.float32, global_scale=second)


def logits(folder: Path) -> torch.Tensor:
    """Of the token ids beside the folder."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    unknown = [name for name in report.pop("unexpected_keys") if not name.endswith("_input.weight")]
    assert not any([unknown, *report.values()]), (unknown, report)
    found = json.loads((folder / "config.json").read_text())["quantization_config"]
    if "fp4" in found["format"]:
        model.ct_decompress_hook.remove()
        for module in [module for module in model.modules() if hasattr(module, "weight_packed")]:
            in_float32(module)
    ids = torch.load(folder.with_suffix(".pt"))
    if found["transform_config"]:
        model(ids)  # decompresses
        config = TransformConfig.model_validate(found["transform_config"])
        for scheme in config.config_groups.values():
            scheme.apply = [one for one in scheme.apply if one.is_online()]
        apply_transform_config(model, config)
        files = [load_file(file) for file in folder.glob("*.safetensors")]
        stored = {name: tensor for file in files for name, tensor in file.items() if name.endswith("_input.weight")}
        named = dict(model.named_parameters(remove_duplicate=False))
        for name, tensor in stored.items():
            named[name].data = tensor
    result: torch.Tensor = model(ids).logits
    return result


with torch.no_grad():
    *folders, out = map(Path, sys.argv[1:])
    torch.save({folder.name: logits(folder) for folder in folders}, out)
assert not any(name.split(".")[0] == "sq" for name in sys.modules), "this package was imported"
