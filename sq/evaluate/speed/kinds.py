"""The kinds of model that are timed: where each can run, what it is, and how many of them fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from sq.evaluate.speed.models import fake_of, free_memory, full_bytes, full_precision
from sq.models.memory import return_freed
from sq.models.stream import DecoderStream
from sq.nn.kv_cache import int4_obstacle

# Share of the free memory that models measured side by side may take; the rest is for caches and activations.
ROOM = 0.7


def is_graph(kind: str) -> bool:
    """Whether a kind runs as CUDA graphs."""
    return kind.endswith("_graph")


def model_of(kind: str) -> str:
    """The model that a kind runs: "bf16", "fake" or "packed"."""
    return kind.removesuffix("_graph")


def holds_int4(model: PreTrainedModel, kind: str) -> bool:
    """Whether a kind's cache holds codes: packed, where keys and values are rounded to grids that it has."""
    return model_of(kind) == "packed" and int4_obstacle(model) is None


def obstacle(kind: str, device: torch.device, packed: PreTrainedModel | None) -> str | None:
    """Why a kind cannot be measured, or None."""
    if is_graph(kind) and device.type != "cuda":
        return f"CUDA graphs need a CUDA device, this is {device.type}"
    if model_of(kind) != "bf16" and packed is None:
        return "nothing was quantized to integer weights"
    return None


def grouped(kinds: Sequence[str], stream: DecoderStream) -> list[list[str]]:
    """Kinds that are measured side by side: all of them where their models fit, else those of one model at a time.

    The packed model is in memory already.
    """
    sizes = {"bf16": torch.bfloat16, "fake": stream.dtype}
    names = list(dict.fromkeys(model_of(kind) for kind in kinds))
    more = sum(full_bytes(stream, sizes[name]) for name in names if name in sizes)
    if len(names) < 2 or more <= ROOM * free_memory(stream.device):
        return [list(kinds)]
    return [[kind for kind in kinds if model_of(kind) == name] for name in names]


def models_for(
    kinds: Sequence[str], stream: DecoderStream, packed: PreTrainedModel | None
) -> dict[str, PreTrainedModel]:
    """The models of a group by kind; on a GPU the packed one waits in the host's memory where the group has it not."""
    names = {model_of(kind) for kind in kinds}
    if packed is not None:
        cast("nn.Module", packed).to(stream.device if "packed" in names else "cpu")
    release(stream.device)
    made: dict[str, PreTrainedModel] = {}
    if "bf16" in names:
        made["bf16"] = full_precision(stream)
    if packed is not None:
        made |= {"fake": fake_of(stream, packed)} if "fake" in names else {}
        made["packed"] = packed
    return {kind: made[model_of(kind)] for kind in kinds}


def release(device: torch.device) -> None:
    """Return freed memory, so that it does not count as the next work's."""
    return_freed()
    if device.type == "cuda":
        torch.cuda.empty_cache()
