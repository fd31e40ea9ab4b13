"""RoPE fused with the append to the int4 cache: bit for bit the modules of transformers and the append behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from sq.formats.elements import SCHEMES
from sq.kernels.coded import Coded
from sq.kernels.kv4_attention import Kv4Cache, kv4_append, kv4_cache, kv4_rope_append, rope_reference
from sq.kernels.schemes import Scheme

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def angles(position_ids: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin as a Llama's decoder layers get them."""
    config = LlamaConfig(hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim)
    cos, sin = LlamaRotaryEmbedding(config)(torch.empty(0, dtype=dtype), position_ids)
    return cos, sin


def heads(batch: int, tokens: int, count: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """As a projection leaves them: heads inside tokens."""
    return (2 * torch.randn(batch, tokens, count, head_dim)).transpose(1, 2).to(dtype)


def assert_equal(got: Kv4Cache, wanted: Kv4Cache) -> None:
    for one, other in ((got.keys, wanted.keys), (got.values, wanted.values)):
        assert torch.equal(one.codes.cpu(), other.codes)
        torch.testing.assert_close(one.scale.cpu(), other.scale, rtol=0, atol=0, equal_nan=True)
        assert (one.zero is None) == (other.zero is None)
        assert other.zero is None or torch.equal(one.zero.cpu(), other.zero)


@every_dtype
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_the_module_and_the_append_bit_for_bit(run: Any, scheme: Scheme, dtype: torch.dtype) -> None:
    """Two ragged rows with positions of their own; a head_dim that is no power of two; NaN in a key and a value."""
    batch, tokens, kv_heads, head_dim = 2, 2, 2, 24
    q, k, v = (heads(batch, tokens, count, head_dim, dtype) for count in (6, kv_heads, kv_heads))
    k[0, 1, 0, 3], v[1, 0, 1, 5] = torch.nan, torch.inf
    positions = torch.tensor([3, 0])
    cos, sin = angles(positions[:, None] + torch.arange(tokens), head_dim, dtype)
    turned, keys = apply_rotary_pos_emb(q, k, cos, sin)
    found, wanted = (kv4_cache(batch, kv_heads, 6, head_dim, scheme) for _ in range(2))
    kv4_append(wanted, keys, v, positions, clip=0.9, backend="torch")
    got = run(kv4_rope_append, found, q, k, v, cos, sin, positions, clip=0.9)
    assert got.dtype == dtype
    assert torch.equal(got, turned)
    if run.pool is not None:  # on a GPU the cache is moved there, and stays
        assert_equal(found, wanted)


@every_dtype
def test_torch_twin_is_the_module(dtype: torch.dtype) -> None:
    q, k, v = (heads(2, 3, count, 16, dtype) for count in (4, 2, 2))
    cos, sin = angles(torch.arange(3)[None] + 90, 16, dtype)
    turned, keys = apply_rotary_pos_emb(q, k, cos, sin)
    assert torch.equal(rope_reference(k, cos, sin), keys)
    found, wanted = (kv4_cache(2, 2, 3, 16) for _ in range(2))
    kv4_append(wanted, keys, v, torch.tensor([0, 0]))
    out = torch.empty(q.shape, dtype=dtype)
    assert kv4_rope_append(found, q, k, v, cos, sin, torch.tensor([0, 0]), out=out) is out
    assert torch.equal(out, turned)
    assert_equal(found, wanted)


@pytest.mark.parametrize("rows", [1, 2], ids=["angles of all rows", "angles of each row"])
@pytest.mark.parametrize("include_zero", [True, False], ids=["with 0", "as it is"])
def test_a_search_and_ranges_of_both_kinds(run: Any, rows: int, include_zero: bool) -> None:
    q, k, v = (heads(2, 1, count, 32, torch.float32) for count in (4, 2, 2))
    cos, sin = angles(torch.tensor([[5], [11]])[:rows], 32, torch.float32)
    found, wanted = (kv4_cache(2, 2, 2, 32, include_zero=include_zero) for _ in range(2))
    kv4_append(wanted, rope_reference(k, cos, sin), v + 3, torch.tensor([1, 0]), clip=[1.0, 0.9, 0.8])
    got = run(kv4_rope_append, found, q, k, v + 3, cos, sin, torch.tensor([1, 0]), clip=[1.0, 0.9, 0.8])
    assert torch.equal(got, rope_reference(q, cos, sin))
    if run.pool is not None:
        assert_equal(found, wanted)


def test_turning_keeps_scores_of_equal_distance(run: Any) -> None:
    """What RoPE is for: q at 7 and k at 4 score as q at 103 and k at 100."""
    q, k = torch.randn(2, 1, 1, 1, 64, dtype=torch.float32)
    scores = []
    for at, back in ((7, 4), (103, 100)):
        cos, sin = angles(torch.tensor([[at]]), 64, torch.float32)
        turned = run(kv4_rope_append, kv4_cache(1, 1, 1, 64), q, k, k, cos, sin, torch.tensor([0]))
        scores.append(float((turned * rope_reference(k, *angles(torch.tensor([[back]]), 64, torch.float32))).sum()))
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_it_writes_within_its_outputs(run: Any, guarded: Callable[..., Any]) -> None:
    """Rows at, over and in front of the end of the cache: what is outside is dropped, as a GPU must."""
    pytest.importorskip("triton")
    from sq.kernels.kv4_attention.triton_rope import launch

    shapes = [((3, 1, 3, 12), torch.uint8), ((3, 1, 3), torch.float32), ((3, 1, 3), torch.uint8)]
    buffers = [guarded(shape, dtype, 77) for shape, dtype in shapes * 2]
    for buffer in buffers:
        buffer.inside.fill_(99)
    out = guarded((3, 2, 2, 24), torch.float32, 77)
    inside = [buffer.inside for buffer in buffers]
    cache = Kv4Cache(Coded(*inside[:3]), Coded(*inside[3:]), "asymmetric")
    q, k = torch.randn(3, 2, 2, 24, device=run.device), torch.ones(3, 1, 2, 24, device=run.device)
    cos, sin = (angle.to(run.device) for angle in angles(torch.tensor([[0, 1]]), 24, torch.float32))
    arguments = (cache, q, k, k, cos, sin, torch.tensor([2, 5, -1], device=run.device), (1.0,), out.inside)
    if run.pool is None:
        launch(*arguments)
    else:
        run.pool.submit(launch, *arguments).result()
    for buffer in (*buffers, out):
        buffer.assert_untouched("an output")
    assert torch.equal(out.inside, rope_reference(q, cos, sin))
    for buffer in buffers:
        written = [bool((buffer.inside[b, 0, p] != 99).any()) for b in range(3) for p in range(3)]
        assert written == [False, False, True, False, False, False, True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(1, 2, 1, 8)}, "q is torch.float32"),
        ({"q": torch.ones(1, 2, 1, 16).half()}, "q is torch.float16"),
        ({"cos": torch.ones(3, 1, 16)}, "cos is"),
        ({"cos": torch.ones(())}, "cos is"),
        ({"sin": torch.ones(1, 1, 8)}, "sin is"),
        ({"positions": torch.tensor([4])}, r"positions \[4\] leave the cache"),
        ({"out": torch.empty(1, 2, 1, 32)[..., ::2]}, "contiguous"),
    ],
    ids=["q", "dtype", "rows of cos", "scalar", "width of sin", "position", "out"],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    k = torch.ones(1, 1, 1, 16)
    given = {"q": torch.ones(1, 2, 1, 16), "cos": torch.ones(1, 1, 16), "sin": torch.ones(1, 1, 16)}
    given |= {"positions": torch.tensor([0]), "k": k, "v": k} | change
    with pytest.raises(ValueError, match=message):
        kv4_rope_append(kv4_cache(1, 1, 2, 16), **given)
