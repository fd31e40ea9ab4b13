"""Attention of one query in float32: against float64, and beside transformers' own of the same 16-bit numbers."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sq.models import attention as of_model
from sq.models.cpu_attention import attend_one_query, takes_one_query


def heads(batch: int, count: int, kv: int, length: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * length)
    shapes = (batch, count, 1, size), (batch, kv, length, size), (batch, kv, length, size)
    query, key, value = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return 3 * query, key, value


def exact(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scaling: float) -> Tensor:
    """(B, 1, H, d) of float64 sums, head by head; `hidden` (B, L) are the keys that are not seen."""
    group = query.shape[1] // key.shape[1]
    found = torch.empty(query.shape, dtype=torch.float64)
    for b in range(len(query)):
        for h in range(query.shape[1]):
            scores = key[b, h // group].double() @ query[b, h, 0].double() * scaling
            if hidden is not None:
                scores[hidden[b]] = -torch.inf
            found[b, h, 0] = scores.softmax(0) @ value[b, h // group].double()
    return found.transpose(1, 2)


@pytest.mark.parametrize("mask", ["none", "bool", "added"])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("count", "kv"), [(9, 3), (4, 4), (6, 1)])
def test_it_is_attention(count: int, kv: int, dtype: torch.dtype, scaling: float | None, mask: str) -> None:
    parts = heads(2, count, kv, 37, 16, dtype)
    hidden = torch.zeros(2, 37, dtype=torch.bool)
    hidden[0, :5] = hidden[1, 11] = True
    seen = ~hidden[:, None, None]
    given = {"none": None, "bool": seen, "added": torch.zeros(2, 1, 1, 37, dtype=dtype).masked_fill_(~seen, -3e4)}[mask]
    assert takes_one_query(parts[0], given)
    found = attend_one_query(*parts, given, scaling=scaling)
    expected = exact(*parts, None if mask == "none" else hidden, 0.25 if scaling is None else scaling)
    assert found.dtype == dtype
    rounding = torch.finfo(dtype).eps / 2
    assert bool(((found.double() - expected).abs() <= rounding * expected.abs() + 1e-5).all())
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = count // kv, True
    theirs: Any = sdpa_attention_forward(module, *parts, given, scaling=scaling)[0]
    assert theirs.shape == found.shape
    assert float((found.double() - expected).norm()) <= float((theirs.double() - expected).norm())


@pytest.mark.parametrize(
    ("change", "taken"),
    [({}, True), ({"dtype": torch.float32}, False), ({"queries": 2}, False), ({"dropout": 0.1}, False)],
    ids=["one query", "float32", "two queries", "dropout"],
)
def test_what_is_left_to_transformers(change: dict[str, Any], taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = heads(1, 4, 2, 6, 8, change.get("dtype", torch.bfloat16))
    query = query.repeat(1, 1, change.get("queries", 1), 1)
    theirs = Mock(return_value=(query, None))
    monkeypatch.setattr(of_model, "sdpa_attention_forward", theirs)
    of_model.attention(nn.Module(), query, key, value, None, dropout=change.get("dropout", 0.0), scaling=0.5)
    assert theirs.call_count == (0 if taken else 1)


def test_a_mask_of_each_head_is_left_to_transformers() -> None:
    query = torch.zeros(1, 4, 1, 8, dtype=torch.bfloat16)
    assert not takes_one_query(query, torch.ones(1, 4, 1, 6, dtype=torch.bool))
