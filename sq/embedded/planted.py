"""Outliers planted in the embedded model without changing what it computes: README.md beside this file.

python -m sq.embedded.planted        # measures the committed model and writes sq/embedded/planting.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sq.digest import digest_of
from sq.embedded.exact import exact_product, orthogonal_part
from sq.errors import CalibrationError
from sq.finite import all_finite
from sq.io import read_json

PLANTING_FILE = Path(__file__).parent / "planting.safetensors"

# Scales of step 3, natural log: a log-normal bulk, and a few channels a layer far out (about 7 and 4 times the bulk).
# Enough to ruin 4-bit rounding of the unrotated model, while a rotation still repairs it: the rotated KL grows by
# a quarter to a third over no outliers at all; with a spread of 0.5 and six peaks of 12 it triples.
UP_SPREAD, UP_PEAKS, UP_PEAK = 0.2, 3, 2.0
VALUE_SPREAD, VALUE_PEAKS, VALUE_PEAK = 0.2, 2, 1.5


@dataclass(frozen=True)
class Planting:
    """What is planted, float64: R (hidden, hidden), and the scales s of the channels of each layer.

    `up` are those of up and down, (layers, intermediate), `value` those of v and o, (layers, KV heads * head_dim).
    `weights_sha256` is that of the weights it was measured on, `planted_digest` that of what they become at strength 1
    (`sq.digest.digest_of`).
    """

    rotation: Tensor
    up: Tensor
    value: Tensor
    weights_sha256: str
    planted_digest: str = ""


def plant(state: dict[str, Tensor], planting: Planting, *, heads: int, strength: float = 1.0) -> dict[str, Tensor]:
    """Weights of the same function with outliers; computed in float64, returned as float32, the same on every machine.

    Args:
        state: a Llama state dict with its own head (lm_head.weight), any float dtype, and `heads` query heads.
        strength: exponent of the channel scales; 0 leaves them at 1, 1 is the measured default.

    Raises:
        ValueError: sizes of state and planting differ, or a strength that is not finite.
    """
    if not -10.0 <= strength <= 10.0:
        raise ValueError(f"strength={strength} is outside -10..10; 0 plants no channel scales, 1 is the default")
    weights = {name: tensor.to(torch.float64) for name, tensor in state.items()}
    rotation = planting.rotation
    layers = len(planting.up)
    hidden = weights["model.embed_tokens.weight"].shape[1]
    if rotation.shape != (hidden, hidden) or f"model.layers.{layers - 1}.mlp.up_proj.weight" not in weights:
        raise ValueError(
            f"the planting is for {layers} layers of width {len(rotation)}, the weights have width {hidden} or another "
            "depth; run `python -m sq.embedded.planted` again after training"
        )
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        up_scale = planting.up[layer] ** strength
        value_scale = planting.value[layer] ** strength
        attention = [f"{prefix}self_attn.{name}_proj" for name in ("q", "k", "v")]
        mlp = [f"{prefix}mlp.{name}_proj" for name in ("gate", "up")]
        _fold_norm(weights, prefix + "input_layernorm", attention)
        _fold_norm(weights, prefix + "post_attention_layernorm", mlp)
        for reader in attention + mlp:
            weights[reader + ".weight"] = exact_product(weights[reader + ".weight"], rotation)
        for writer in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"{prefix}{writer}.weight"] = exact_product(rotation.T, weights[f"{prefix}{writer}.weight"])
        weights[prefix + "mlp.up_proj.weight"] *= up_scale[:, None]
        weights[prefix + "mlp.down_proj.weight"] /= up_scale
        weights[prefix + "self_attn.v_proj.weight"] *= value_scale[:, None]
        weights[prefix + "self_attn.o_proj.weight"] /= _per_query_head(value_scale, heads, weights, prefix)
    _fold_norm(weights, "model.norm", ["lm_head"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = exact_product(weights[name], rotation)
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in weights.items()}


def load_planting(path: Path = PLANTING_FILE) -> Planting:
    """Read a committed planting; the nearest orthogonal matrix (float64 polar factor) replaces its float32 rotation."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return Planting(
        rotation=orthogonal_part(tensors["rotation"]),
        up=tensors["up"].to(torch.float64),
        value=tensors["value"].to(torch.float64),
        weights_sha256=metadata.get("weights_sha256", ""),
        planted_digest=metadata.get("planted_digest", ""),
    )


def measure_planting(folder: Path, *, tokens: int = 16_384, window: int = 256, seed: int = 0) -> Planting:
    """Principal axes of the residual stream over the train text, and scales drawn from `seed`.

    R holds the eigenvectors, largest eigenvalue first, of the second moment of the stream scaled to unit rms a token,
    averaged over the inputs of all norms. The mean stays in: massive channels of large models are nearly constant.

    CalibrationError is raised for a model with activations that are not finite.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sq.data.windows import calibration_windows

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    windows = calibration_windows(
        "embedded", AutoTokenizer.from_pretrained(folder), tokens=tokens, window=window, seed=seed
    )
    moment = _residual_moment(model, windows.ids)
    if not all_finite(moment):
        raise CalibrationError(f"{folder}: activations at the norms are not finite; train the model again")
    axes = torch.linalg.eigh(moment).eigenvectors.flip(1)
    # The sign of an eigenvector is free: its largest entry is made positive, so that a rerun writes the same file.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    values = config.num_key_value_heads * config.head_dim
    up = [_scales(config.intermediate_size, UP_SPREAD, UP_PEAKS, UP_PEAK, generator) for _ in model.model.layers]
    value = [_scales(values, VALUE_SPREAD, VALUE_PEAKS, VALUE_PEAK, generator) for _ in model.model.layers]
    return Planting(axes, torch.stack(up), torch.stack(value), weights_sha256(folder))


def save_planting(planting: Planting, path: Path = PLANTING_FILE) -> None:
    """Write rotation and scales as float32, with both digests as metadata."""
    tensors = {name: getattr(planting, name).to(torch.float32).contiguous() for name in ("rotation", "up", "value")}
    digests = {name: getattr(planting, name) for name in ("weights_sha256", "planted_digest")}
    save_file(tensors, path, metadata=digests)


def planted_digest(folder: Path, planting: Path) -> str:
    """Digest of what the weights of a model folder become by a committed planting at strength 1."""
    heads = read_json(folder / "config.json")["num_attention_heads"]
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.safetensors"
        save_file(plant(load_file(folder / "model.safetensors"), load_planting(planting), heads=heads), file)
        return digest_of([file])


def weights_sha256(folder: Path) -> str:
    """sha256 of a model folder's model.safetensors."""
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


def _fold_norm(weights: dict[str, Tensor], norm: str, readers: list[str]) -> None:
    gain = weights[norm + ".weight"]
    for reader in readers:
        weights[reader + ".weight"] = weights[reader + ".weight"] * gain
    weights[norm + ".weight"] = torch.ones_like(gain)


def _per_query_head(scale: Tensor, heads: int, weights: dict[str, Tensor], prefix: str) -> Tensor:
    # Query heads of a group are neighbours (repeat_kv), and all of them read the group's one value head.
    head_dim = weights[prefix + "self_attn.o_proj.weight"].shape[1] // heads
    groups = scale.view(-1, head_dim)
    return groups.repeat_interleave(heads // len(groups), dim=0).flatten()


@torch.no_grad()
def _residual_moment(model: Any, ids: Tensor, batch: int = 16) -> Tensor:
    moments: dict[str, Tensor] = {}
    epsilon = model.config.rms_norm_eps

    def record(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2)
            # With the norm's epsilon: the end-of-text token is the padding token too, so its embedding is all zeros.
            x = x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
            moments[name] = moments.get(name, torch.zeros(())) + (x.T @ x).to(torch.float64)

        return hook

    handles = [
        module.register_forward_pre_hook(record(name))
        for name, module in model.named_modules()
        if name.endswith(("layernorm", "model.norm"))
    ]
    for rows in ids.split(batch):
        model(input_ids=rows, use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(list(moments.values())).mean(0) / ids.numel()


def _scales(n: int, spread: float, peaks: int, peak: float, generator: torch.Generator) -> Tensor:
    logarithm = spread * torch.randn(n, generator=generator, dtype=torch.float64)
    far = torch.randperm(n, generator=generator)[:peaks]
    logarithm[far] = peak + spread * torch.randn(peaks, generator=generator, dtype=torch.float64)
    return (logarithm - logarithm.mean()).exp()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "tiny")
    parser.add_argument("--out", type=Path, default=PLANTING_FILE)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    measured = measure_planting(arguments.model, seed=arguments.seed)
    save_planting(measured, arguments.out)
    # Of the scales as the file has them, in float32.
    save_planting(replace(measured, planted_digest=planted_digest(arguments.model, arguments.out)), arguments.out)
    print(json.dumps({"out": str(arguments.out), "weights_sha256": measured.weights_sha256}))
