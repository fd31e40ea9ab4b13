"""A head gets its tokens as rows one behind the other, and gives what it gave before."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from models.checkpoints import save_random
from torch import Tensor, nn

from sq.models.head_rows import lay_out_rows
from sq.models.stream import DecoderStream


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("part", [slice(-1, None), slice(2, 5), slice(None), slice(4, 4)])
def test_rows_lie_one_behind_the_other(batch: int, part: slice) -> None:
    head, seen = nn.Linear(8, 5), list[Tensor]()
    hidden = torch.randn(batch, 7, 8)[:, part]
    expected = head(hidden)
    lay_out_rows(head)
    head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    assert torch.equal(copy.deepcopy(head)(hidden), expected)
    assert torch.equal(head(hidden), expected)
    assert torch.equal(seen[-1], hidden)
    count = hidden.shape[1]
    assert seen[-1].stride() == (max(1, count) * 8, 8, 1)


@torch.no_grad()
def test_the_last_position_of_a_prompt_reaches_the_head_so(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    stream = DecoderStream(tmp_path, dtype=torch.bfloat16)
    model, seen = stream.assemble(list(stream.layers()), stream.embeddings_and_head()), list[Tensor]()
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(torch.arange(12).view(1, 12), logits_to_keep=1)
    (given,) = seen
    assert given.shape[:2] == (1, 1)
    assert given.stride() == (given.shape[-1], given.shape[-1], 1)
