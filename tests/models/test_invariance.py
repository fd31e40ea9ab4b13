"""Every transform leaves the full-precision model's logits unchanged, in every family, before any rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import EVERY_FAMILY, SIZES, save_random
from quantizers import Unrounded
from recipes import folded
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from sq.methods.singlequant import SingleQuant
from sq.models.stream import DecoderStream
from sq.quantize.method import Method
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe

ONLINE: dict[str, Any] = {"placement": "online", "order": ("urt",)}
METHODS = {
    "online kurtosis, balanced": folded(**ONLINE),
    "online, orthogonal then ART then flat URT": folded(
        placement="online", order=("orthogonal", "art", "urt"), urt_target="flat"
    ),
    "online, full width": folded(**ONLINE, kronecker=False),
    "online, low-rank balance": folded(**ONLINE, rank=5),
    "online, block balance": folded(**ONLINE, mixing="block", block=6),
    "online, dense balance": folded(**ONLINE, mixing="dense"),
    "folded": folded(order=("orthogonal", "urt")),
    "folded, rank": folded(order=("orthogonal", "urt"), rank=5),
    "folded, a Hadamard of blocks at down": folded(order=("orthogonal", "urt"), down="hadamard"),
    "folded, nothing online": folded(order=("orthogonal", "urt"), down="none"),
    "merged": folded(order=("orthogonal",), placement="online", mixing="merged", block=8, rank=4, brake=0.6),
    "merged, nothing across blocks": folded(
        order=("orthogonal",), placement="online", mixing="merged", block=6, across_blocks=False
    ),
    "merged, URT": folded(**ONLINE, mixing="merged", block=12),
    "folded, no balance": folded(balance=False, order=("orthogonal",)),
}


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' RMSNorm computes in float32 whatever the model's dtype; here it computes in the dtype of x."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    for norm in (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(norm, "forward", forward)


def transformed_logits(folder: Path, method: Method, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits of the model with the method's transforms installed and nothing rounded, and the original's."""
    stream = DecoderStream(folder, dtype=dtype)
    ids = torch.randint(0, SIZES["vocab_size"], (4, 19), generator=torch.Generator().manual_seed(2))
    # Keys stay as they are, but their transforms are installed.
    recipe = Recipe(keys=Unrounded(), propagate="full_precision")
    pipeline = Pipeline(stream, method, recipe, ids, batch=2)
    pipeline.prepare()
    with torch.no_grad():
        rotated = stream.assemble(list(pipeline.layers()), pipeline.embeddings_and_head)(ids).logits
        original = stream.assemble(list(stream.layers()), stream.embeddings_and_head())(ids).logits
    return rotated, original


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["untied", "tied"])
@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_float64_logits_are_unchanged(
    family: str, method: SingleQuant, tied: bool, tmp_path: Path, exact_norms: None
) -> None:
    """Bound 1e-9 of the largest logit; measured 1e-12 at most without, 2e-11 with non-orthogonal balance."""
    save_random(tmp_path, family, tied=tied)
    rotated, original = transformed_logits(tmp_path, method, torch.float64)
    error = float((rotated - original).abs().max() / original.abs().max())
    assert error < 1e-9, f"relative logit error {error:.2e}"


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("placement", ["online", "folded"])
def test_bfloat16_logits_stay_within_its_rounding(family: str, placement: str, tmp_path: Path) -> None:
    """bfloat16 has 8 bits: three layers of it differ from float32 by about 2% of the rms logit, rotated or not."""
    save_random(tmp_path, family)
    method = folded(placement=placement, order=("orthogonal", "urt"))  # type: ignore[arg-type]
    rotated, _ = transformed_logits(tmp_path, method, torch.bfloat16)
    _, exact = transformed_logits(tmp_path, method, torch.float32)
    error = float((rotated.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert error < 0.06, f"relative rms error {error:.3f}"
