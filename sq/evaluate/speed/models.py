"""The models that are timed: full precision in bfloat16, packed, and the fake one of the same integers."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sq.models.families import Family
from sq.models.parts import weight_of
from sq.models.stream import DecoderStream, EmbeddingsAndHead
from sq.nn.assemble import assemble
from sq.nn.hooks import attention_input, replace_linear, set_attention_input
from sq.nn.linear import PackedLinear, QuantizedLinear
from sq.nn.site_input import SiteInput


def full_precision(stream: DecoderStream) -> PreTrainedModel:
    """The original model in bfloat16; a tied head stays tied, as transformers holds it."""
    dtype = torch.bfloat16
    layers = [layer.to(dtype) for layer in stream.layers()]
    outer = stream.embeddings_and_head()
    embedding = outer.embedding.to(dtype)
    head = embedding if outer.tied else outer.head.to(dtype)
    return stream.assemble(layers, EmbeddingsAndHead(embedding, outer.norm.to(dtype), head))


def fake_of(stream: DecoderStream, packed: PreTrainedModel) -> PreTrainedModel:
    """The fake quantized model of a packed one's integers, in the stream's dtype and on its device.

    Weights are dequantized; transforms and quantizers are copies; the packed model is left as it is. Its layers may
    compute norms and gating inside sites: the fake ones are built on the skeleton and compute them where the family
    does.
    """
    family, device = stream.family, stream.device
    layers = [_fake_layer(stream, index, layer) for index, layer in enumerate(layers_of(packed, family))]
    embedding, norm, head = (packed.get_submodule(path) for path in (family.embedding, family.final_norm, family.head))
    outer = EmbeddingsAndHead(
        weight_of(embedding, "").to(device), copy.deepcopy(norm).to(device), weight_of(head, "").to(device)
    )
    return assemble(stream, layers, outer)


def _fake_layer(stream: DecoderStream, index: int, packed: nn.Module) -> nn.Module:
    family, device = stream.family, stream.device
    layer = copy.deepcopy(stream.meta_layer(index))
    for names in family.linears.values():
        for name in names:
            linear = packed.get_submodule(name)
            if not isinstance(linear, PackedLinear):
                raise ValueError(f"layer {index}, {name} is a {type(linear).__name__}, not packed: use packed=True")
            if name == names[0]:
                parts = (copy.deepcopy(linear.inputs.transform), copy.deepcopy(linear.inputs.quantizer))
                inputs = SiteInput(*parts, len(names)).to(device)
            weight = linear.qweight.to(device).dequantize(stream.dtype)
            bias = None if linear.bias is None else linear.bias.to(device)
            replace_linear(layer, name, QuantizedLinear(inputs, weight, bias, owns_inputs=name == names[0]))
    gains = {name: packed.get_parameter(name).data.to(device) for name, _ in layer.named_parameters()}
    layer.load_state_dict(gains, strict=False, assign=True)  # all that is left of the skeleton: linears hold buffers
    found = attention_input(family, packed)
    if found is not None:
        set_attention_input(family, layer, copy.deepcopy(found).to(device))
    return layer.requires_grad_(False).eval()


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the tensors of its state dict, each storage once: tied matrices count once."""
    return _bytes(model.state_dict(keep_vars=True).values())


def linear_bytes(model: PreTrainedModel, family: Family) -> int:
    """Bytes of the decoder layers' linears: weights, scales and biases, and the transforms in front of them."""
    names = [name for names in family.linears.values() for name in names]
    linears = (layer.get_submodule(name) for layer in layers_of(model, family) for name in names)
    return _bytes(tensor for linear in linears for tensor in linear.state_dict(keep_vars=True).values())


def layers_of(model: PreTrainedModel, family: Family) -> Iterator[nn.Module]:
    """The decoder layers of a whole model."""
    yield from model.get_submodule(family.layers).children()


def full_bytes(stream: DecoderStream, dtype: torch.dtype) -> int:
    """Bytes of the original model's parameters in a dtype, without building it."""
    return sum(parameter.numel() for parameter in stream.skeleton.parameters()) * dtype.itemsize


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated: of the GPU, or pages of the machine that nothing uses."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _bytes(tensors: Iterable[Any]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if isinstance(t, Tensor)}
    return sum(storage.nbytes() for storage in storages.values())
