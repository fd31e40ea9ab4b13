"""A whole model over all devices that torch finds, for models larger than one of them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from sq.models.families import Family


def spread(model: PreTrainedModel, family: Family, max_memory: dict[int | str, Any] | None = None) -> PreTrainedModel:
    """The model in place, its layers on the devices that accelerate's balance of memory gives them.

    Decoder layers stay whole: the linears of a site share what computes their input. What no device has room for stays
    in the CPU's memory and is copied for each forward.

    Args:
        model: anywhere; it is moved to the CPU's memory first.
        max_memory: device -> bytes ("10GiB"); None takes what is free.
    """
    from accelerate import dispatch_model, infer_auto_device_map

    model.cpu()
    layers = model.get_submodule(family.layers)
    whole = sorted({type(layer).__name__ for layer in layers.children()})
    placed = infer_auto_device_map(model, max_memory=max_memory, no_split_module_classes=whole)
    # Quantized weights are buffers.
    spread_out: PreTrainedModel = dispatch_model(model, device_map=placed, offload_buffers=True)
    return spread_out
