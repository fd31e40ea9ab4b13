"""Decode attention over an int4 KV cache, and the cache; derivation in README.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..arguments import check_tensor, clip_factors
from ..backend import Backend, picks_triton
from .cache import Kv4Cache, append_reference, dequantized, kv4_cache, zero_dtype
from .partials import Kv4Partials, kv4_partials, split_count
from .reference import kv4_attention_reference
from .rope import rope_reference
from .takes import obstacle

__all__ = [
    "Kv4Cache", "Kv4Partials", "dequantized", "kv4_append", "kv4_attention", "kv4_attention_reference", "kv4_cache",
    "kv4_partials", "kv4_rope_append", "obstacle", "rope_reference",
]  # fmt: skip

_HEAD_DIMS = (32, 64, 128, 256)
_LARGEST_GROUP = 128
_FLOAT32 = (torch.float32,)


@torch.no_grad()
def kv4_attention(
    q: Tensor, cache: Kv4Cache, lengths: Tensor, *, starts: Tensor | None = None, scale: float | None = None,
    out: Tensor | None = None, partials: Kv4Partials | None = None, backend: Backend = "auto",
) -> Tensor:  # fmt: skip
    """softmax(scale q K^T) V for one new token a row, over the row's cached positions.

    Args:
        q: (B, H, D), floating point, behind RoPE and the counterpart of the keys' transform; head h reads KV head
            h // (H / H_kv).
        cache: keys and values in 4 bits, the new token's own included (kv4_append).
        lengths: (B,), int32 or int64 on q's device, where it is read: positions below it are seen.
        starts: (B,) likewise: positions below it are not seen (left padding, a sliding window); None for 0.
        scale: of the scores; 1 / sqrt(D) by default.
        out: (B, H, D) of q's dtype, contiguous, written and returned if given.
        partials: buffers of the first pass (kv4_partials), which also say into how many parts positions are split;
            None chooses and allocates.
        backend: see sq/kernels/backend.py; the Triton kernel takes the heads of README.md, "Limits".

    Returns: (B, H, D) of q's dtype; zeros for a row that sees no position, NaN for heads that see a token that
    contained NaN or inf.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other, or backend="triton" where it cannot run.
    """
    _check_cache(cache, q.device)
    kv_heads, capacity, head_dim = _cache_sizes(cache)
    if q.dim() != 3 or not q.is_floating_point() or q.shape[2] != head_dim or q.shape[1] % kv_heads:
        raise ValueError(
            f"q is {q.dtype} {tuple(q.shape)}; it must be floating-point (B, H, {head_dim}) with H a multiple of the "
            f"cache's {kv_heads} KV heads: one token a row"
        )
    batch, heads = q.shape[:2]
    _check_batch(cache, batch, {"lengths": lengths, "starts": starts}, q.device)
    check_tensor("out", out, q.shape, (q.dtype,), q.device, of="q", contiguous=True)
    if partials is not None:
        splits = partials.lse.shape[-1] if partials.lse.dim() == 3 else 0
        check_tensor("partials.values", partials.values, (batch, heads, splits, head_dim), _FLOAT32, q.device, of="q")
        check_tensor("partials.lse", partials.lse, (batch, heads, max(1, splits)), _FLOAT32, q.device, of="q")
    scale = head_dim**-0.5 if scale is None else scale
    triton = picks_triton(backend, q, _kernel_obstacle(head_dim, heads // kv_heads))
    if q.numel() == 0:
        return torch.empty_like(q) if out is None else out
    if not triton:
        y = kv4_attention_reference(q, cache, lengths, starts, scale).to(q.dtype)
        return y if out is None else out.copy_(y)

    from .triton import launch

    if partials is None and (splits := split_count(batch * kv_heads, capacity, q.device)) > 1:
        partials = kv4_partials(q, splits)
    several = partials is not None and partials.lse.shape[-1] > 1
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    launch(q, cache, lengths, starts, scale, partials if several else None, out)
    return out


@torch.no_grad()
def kv4_append(
    cache: Kv4Cache,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    *,
    clip: float | Sequence[float] = 1.0,
    backend: Backend = "auto",
) -> None:
    """Quantize the keys and values of new tokens, each head's features on a grid of their own, into the cache.

    Args:
        cache: written at positions[b]..positions[b] + N - 1 of row b, nowhere else.
        k, v: (B, H_kv, N, D) of one dtype, floating point, any strides; keys behind RoPE and their transform.
        positions: (B,), int32 or int64 on k's device. On a GPU, where checking would wait for it, a token whose
            position lies outside the cache is dropped.
        clip: factor on the range in (0, 1], or candidates, as for `rotate_quantize`, for each token and head.
        backend: "auto" | "torch" | "triton", see sq/kernels/backend.py.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other, a clip outside (0, 1], a position outside the
            cache (CPU), or backend="triton" where it cannot run.
    """
    clips = clip_factors(clip)
    _check_appended(cache, k, v, positions)
    triton = picks_triton(backend, k, None)
    if k.numel() == 0:
        return
    if triton:
        from .triton_append import launch

        launch(cache, k, v, positions, clips)
    else:
        for side, x in ((cache.keys, k), (cache.values, v)):
            append_reference(side, cache.scheme, x, positions, clips, cache.include_zero)


@torch.no_grad()
def kv4_rope_append(
    cache: Kv4Cache, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *,
    clip: float | Sequence[float] = 1.0, out: Tensor | None = None, backend: Backend = "auto",
) -> Tensor:  # fmt: skip
    """Queries behind RoPE; keys behind RoPE and values go into the cache, as `kv4_append` puts them there.

    Args:
        q: (B, H, N, D), any strides, of k's dtype.
        cache, k, v, positions, clip: as for `kv4_append`, but k in front of RoPE. No transform stands behind it.
        cos, sin: (B or 1, N, D) of k's dtype: x cos + (-x_2, x_1) sin of halves x = (x_1, x_2). Each product and the
            sum are rounded to k's dtype, as transformers' modules round them.
        out: (B, H, N, D) of q's dtype, contiguous, written and returned if given; not q.
        backend: see sq/kernels/backend.py.

    Returns: (B, H, N, D) of q's dtype.

    Raises:
        ValueError: as `kv4_append`; q, cos, sin or out that do not fit k.
    """
    clips = clip_factors(clip)
    _check_appended(cache, k, v, positions)
    batch, _, tokens, head_dim = k.shape
    heads = q.shape[1] if q.dim() == 4 else 0
    check_tensor("q", q, (batch, heads, tokens, head_dim), (k.dtype,), k.device, of="k")
    rows = batch if cos.dim() == 3 and len(cos) == batch else 1
    for name, angle in (("cos", cos), ("sin", sin)):
        check_tensor(name, angle, (rows, tokens, head_dim), (k.dtype,), k.device, of="k")
    check_tensor("out", out, q.shape, (q.dtype,), k.device, of="k", contiguous=True)
    triton = picks_triton(backend, k, None)
    turned = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    if k.numel() == 0:
        return turned
    if triton:
        from .triton_rope import launch

        launch(cache, q, k, v, cos, sin, positions, clips, turned)
    else:
        turned.copy_(rope_reference(q, cos, sin))
        for side, x in ((cache.keys, rope_reference(k, cos, sin)), (cache.values, v)):
            append_reference(side, cache.scheme, x, positions, clips, cache.include_zero)
    return turned


def _kernel_obstacle(head_dim: int, group: int) -> str | None:
    if head_dim not in _HEAD_DIMS:
        return f"it takes a head_dim of {', '.join(map(str, _HEAD_DIMS))}, not {head_dim}"
    if group > _LARGEST_GROUP:
        return f"{group} query heads share a KV head, and it takes up to {_LARGEST_GROUP}"
    return None


def _cache_sizes(cache: Kv4Cache) -> tuple[int, int, int]:
    """(H_kv, S, D)."""
    _, kv_heads, capacity, half = cache.keys.codes.shape
    return kv_heads, capacity, 2 * half


def _check_cache(cache: Kv4Cache, device: torch.device) -> None:
    shape, zeros = tuple(cache.keys.codes.shape), cache.scheme == "asymmetric"
    if len(shape) != 4:
        raise ValueError(f"cache.keys.codes has shape {shape}; it must be (B, H_kv, S, D / 2)")
    zero_dtypes = (zero_dtype(cache.include_zero),)
    for name, side in (("keys", cache.keys), ("values", cache.values)):
        if (side.zero is not None) != zeros:
            raise ValueError(
                f"cache.{name}.zero is {'None' if side.zero is None else side.zero.dtype}; for the {cache.scheme} "
                f"scheme it must be {'a tensor' if zeros else 'None'}"
            )
        parts = {"codes": (side.codes, shape, (torch.uint8,)), "scale": (side.scale, shape[:3], _FLOAT32)}
        for part, (tensor, expected, dtypes) in (parts | {"zero": (side.zero, shape[:3], zero_dtypes)}).items():
            check_tensor(f"cache.{name}.{part}", tensor, expected, dtypes, device, of="the input", contiguous=True)


def _check_appended(cache: Kv4Cache, k: Tensor, v: Tensor, positions: Tensor) -> None:
    """New keys and values fit the cache, and where it waits for nothing, their positions as well."""
    _check_cache(cache, k.device)
    kv_heads, capacity, head_dim = _cache_sizes(cache)
    expected = (cache.keys.scale.shape[0], kv_heads, k.shape[2] if k.dim() == 4 else 0, head_dim)
    check_tensor("k", k, expected, None, k.device)
    check_tensor("v", v, expected, (k.dtype,), k.device, of="k")
    _check_batch(cache, len(k), {"positions": positions}, k.device)
    outside = (
        k.device.type == "cpu"
        and k.numel()
        and (int(positions.min()) < 0 or int(positions.max()) + k.shape[2] > capacity)
    )
    if outside:
        raise ValueError(
            f"{k.shape[2]} tokens at positions {positions.tolist()} leave the cache, which holds {capacity}; "
            "make it larger with kv4_cache"
        )


def _check_batch(cache: Kv4Cache, batch: int, indices: dict[str, Tensor | None], device: torch.device) -> None:
    if cache.keys.codes.shape[0] != batch:
        raise ValueError(f"the cache has {cache.keys.codes.shape[0]} rows and the arguments have {batch}")
    for name, index in indices.items():
        check_tensor(name, index, (batch,), (torch.int32, torch.int64), device, of="the input")
