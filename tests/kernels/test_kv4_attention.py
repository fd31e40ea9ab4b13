"""Decode attention over the int4 cache against float64, and the cache bit for bit against the framework's quantizer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizers import activation_quantizer
from torch import Tensor

from sq.formats.activation import clip_candidates
from sq.formats.elements import SCHEMES
from sq.formats.format import integer
from sq.formats.packing import pack, unpack
from sq.kernels.coded import Coded
from sq.kernels.kv4_attention import (
    Kv4Cache,
    Kv4Partials,
    dequantized,
    kv4_append,
    kv4_attention,
    kv4_cache,
    kv4_partials,
)
from sq.kernels.schemes import Scheme

SEARCH = clip_candidates(integer(4), 9)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def filled(batch: int, kv_heads: int, capacity: int, head_dim: int, scheme: Scheme = "asymmetric") -> Kv4Cache:
    """A cache whose every position holds a random token; values are off zero, as real ones are not."""
    cache = kv4_cache(batch, kv_heads, capacity, head_dim, scheme)
    k, v = torch.randn(2, batch, kv_heads, capacity, head_dim)
    kv4_append(cache, k, 3 * v + 1, torch.zeros(batch, dtype=torch.int32))
    return cache


def levels(side: Coded, scheme: Scheme) -> Tensor:
    """Values in float64, from the definitions of the grids."""
    u = unpack(side.codes, 2 * side.codes.shape[-1], signed=False).double()
    constant = {"symmetric": 8.0, "midrise": 7.5, "asymmetric": 0.0}[scheme]
    zero = torch.zeros(()) if side.zero is None else side.zero.double()[..., None]
    return (u - zero - constant) * side.scale.double()[..., None]


def expected(q: Tensor, cache: Kv4Cache, lengths: Tensor, starts: Tensor | None = None) -> Tensor:
    """Row by row and head by head."""
    keys, values = levels(cache.keys, cache.scheme), levels(cache.values, cache.scheme)
    group = q.shape[1] // keys.shape[1]
    y = torch.zeros(q.shape, dtype=torch.float64)
    for b, last in enumerate(lengths.tolist()):
        seen = slice(0 if starts is None else int(starts[b]), last)
        for h in range(q.shape[1]) if seen.start < last else ():
            scores = keys[b, h // group, seen] @ q[b, h].double() / q.shape[2] ** 0.5
            y[b, h] = scores.softmax(0) @ values[b, h // group, seen]
    return y


def assert_close(got: Tensor, y: Tensor, cache: Kv4Cache) -> None:
    """float32: 1e-5 of the largest value. 16 bits: probabilities in bfloat16, 2^-9 each, and the output's rounding.

    The interpreter truncates bfloat16 outputs: two roundings.
    """
    largest = float(levels(cache.values, cache.scheme).nan_to_num().abs().max())
    bound: Any = largest * 1e-5
    if got.dtype != torch.float32:
        bound = largest * 2.0**-8 + y.abs() * torch.finfo(got.dtype).eps
    excess = float(((got.double() - y).abs() - bound).max())
    assert excess <= 0, f"an output is {excess:.3g} beyond its bound"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "clip"),
    [(torch.bfloat16, 1.0), (torch.float16, 0.8), (torch.float32, SEARCH)],
    ids=["bf16, no clip", "fp16, clip 0.8", "fp32, search"],
)
@every_scheme
def test_appended_codes_are_bit_for_bit_those_of_the_framework(
    run: Any, guarded: Callable[..., Any], dtype: torch.dtype, scheme: Scheme, clip: float | list[float]
) -> None:
    """Keys as a projection leaves them (heads inside tokens); rows go to positions of their own and nowhere else."""
    batch, kv_heads, capacity, head_dim, tokens = 2, 2, 5, 12, 2
    k = torch.randn(batch, tokens, kv_heads, head_dim).transpose(1, 2).to(dtype)
    v = torch.randn(batch, kv_heads, tokens, head_dim + 4).to(dtype)[..., 2:-2]
    k[0, 0, 1] = 0
    k[0, 1, 0, 3], v[1, 0, 1, 5], v[1, 1, 0, 0] = 3e4, torch.nan, torch.inf
    positions = torch.tensor([2, 0], dtype=torch.int32)
    quantizer = activation_quantizer(4, scheme, clip if isinstance(clip, float) else "search")

    buffers: list[Any] = []

    def side() -> Coded:
        shape = (batch, kv_heads, capacity)
        codes, zero = (guarded(s, torch.uint8, 77) for s in ((*shape, head_dim // 2), shape))
        scale = guarded(shape, torch.float32, 77.0)
        for buffer in (codes, scale, zero):
            buffer.inside.fill_(99)
        buffers.extend([codes, scale, zero])
        return Coded(codes.inside, scale.inside, zero.inside if scheme == "asymmetric" else None)

    cache = Kv4Cache(side(), side(), scheme)
    run(kv4_append, cache, k, v, positions, clip=clip)
    for buffer in buffers:
        buffer.assert_untouched("the cache")
    for written, x in ((cache.keys, k), (cache.values, v)):
        made = quantizer.encode(torch.where(x.isfinite().all(-1, keepdim=True), x, 0))
        codes, scale, zero = made.codes, made.scale, made.zero
        packed = pack(codes if scheme == "asymmetric" else codes + 8, signed=False)
        scale = torch.where(x.isfinite().all(-1, keepdim=True), scale, torch.nan)
        for b, first in enumerate(positions.tolist()):
            own = slice(first, first + tokens)
            rest = [p for p in range(capacity) if not first <= p < first + tokens]
            assert torch.equal(written.codes[b, :, own].cpu(), packed[b])
            torch.testing.assert_close(written.scale[b, :, own].cpu(), scale[b, ..., 0], rtol=0, atol=0, equal_nan=True)
            assert bool((written.codes[b, :, rest] == 99).all() and (written.scale[b, :, rest] == 99).all())
            if written.zero is not None and zero is not None:
                assert torch.equal(written.zero[b, :, own].cpu(), zero[b, ..., 0].to(torch.uint8))
                assert bool((written.zero[b, :, rest] == 99).all())


@pytest.mark.slow
@pytest.mark.parametrize("clip", [1.0, SEARCH], ids=["no clip", "search"])
def test_ranges_that_need_not_hold_zero(run: Any, clip: float | list[float]) -> None:
    """A head's features as one group: zeros beyond 0..15, of either sign, and attention over them."""
    cache = kv4_cache(2, 2, 8, 32, include_zero=False)
    k, v = torch.randn(2, 2, 2, 8, 32)
    k[0, 0], k[0, 1, 2:4], v[1] = k[0, 0].abs() + 40, -k[0, 1, 2:4].abs() - 9, v[1].abs() + 3
    k[1, 0, 0], k[1, 1, 1] = 0.0, 7.0
    run(kv4_append, cache, k, v, torch.tensor([0, 0]), clip=clip)
    quantizer = activation_quantizer(4, "asymmetric", clip if isinstance(clip, float) else "search", group_size=32)
    for side, x in ((cache.keys, k), (cache.values, v)):
        assert side.zero is not None
        made = quantizer.encode(x)
        codes, scale, zero = made.codes, made.scale, made.zero
        assert zero is not None
        assert torch.equal(side.codes, pack(codes, signed=False))
        assert torch.equal(side.scale, scale[..., 0])
        assert torch.equal(side.zero.float(), zero[..., 0])
        assert torch.equal(dequantized(side, "asymmetric"), quantizer(x))
    assert cache.keys.zero is not None
    assert not ((cache.keys.zero >= 0) & (cache.keys.zero < 16)).all()
    q, lengths = torch.randn(2, 4, 32) / 8, torch.tensor([8, 5])
    assert_close(run(kv4_attention, q, cache, lengths), expected(q, cache, lengths), cache)


def test_a_spread_that_is_nothing_beside_its_offset_is_rounded_with_zero_in_its_range(run: Any) -> None:
    """Zeros have 16 bits: entries that agree to 1 in 2000 take the nearest level of 0..high, off by their spread."""
    cache = kv4_cache(1, 1, 3, 8, include_zero=False)
    x = 1 + torch.linspace(0, 1, 8) * torch.tensor([1e-4, -1e-5, 0.0])[:, None]
    run(kv4_append, cache, x[None, None], -x[None, None], torch.tensor([0]))
    for side, sign in ((cache.keys, 1), (cache.values, -1)):
        torch.testing.assert_close(dequantized(side, "asymmetric")[0, 0], sign * x, rtol=2e-4, atol=0)


@settings(max_examples=30, deadline=None)
@given(half=st.integers(1, 20), tokens=st.integers(1, 4), scheme=st.sampled_from(SCHEMES), seed=st.integers(0, 2**31))
def test_the_torch_twin_of_the_cache_holds_what_the_framework_rounds_to(
    half: int, tokens: int, scheme: Scheme, seed: int
) -> None:
    k, v = torch.randn(2, 2, 3, tokens, 2 * half, generator=torch.Generator().manual_seed(seed))
    cache = kv4_cache(2, 3, tokens + 2, 2 * half, scheme)
    kv4_append(cache, k, v, torch.tensor([0, 2]))
    for side, x in ((cache.keys, k), (cache.values, v)):
        fake, got = activation_quantizer(4, scheme)(x), dequantized(side, scheme)
        torch.testing.assert_close(got[0, :, :tokens], fake[0], rtol=1e-6, atol=1e-30)
        torch.testing.assert_close(got[1, :, 2:], fake[1], rtol=1e-6, atol=1e-30)
        torch.testing.assert_close(dequantized(side, scheme, torch.float64), levels(side, scheme))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    ("group", "head_dim"),
    [(1, 64), pytest.param(4, 128, marks=pytest.mark.slow), (7, 32), pytest.param(2, 256, marks=pytest.mark.slow)],
    ids=str,
)
@every_scheme
def test_attention(run: Any, scheme: Scheme, group: int, head_dim: int, splits: int) -> None:
    """Rows of one, some and all positions; 70 fill no block, and three parts of one position are two without any."""
    cache = filled(3, 2, 70, head_dim, scheme)
    q, lengths = 2 * torch.randn(3, 2 * group, head_dim), torch.tensor([1, 37, 70], dtype=torch.int32)
    got = run(kv4_attention, q, cache, lengths, partials=kv4_partials(q, splits))
    assert_close(got, expected(q, cache, lengths), cache)


@every_dtype
@every_scheme
def test_attention_of_half_precision_queries(run: Any, scheme: Scheme, dtype: torch.dtype) -> None:
    """Codes become numbers by their bits, 128 + u or 1024 + u; the constant must leave again."""
    cache, lengths = filled(2, 2, 90, 64, scheme), torch.tensor([90, 55])
    q = torch.randn(2, 6, 64).to(dtype)
    got = run(kv4_attention, q, cache, lengths)
    assert got.dtype == dtype
    assert_close(got, expected(q, cache, lengths), cache)


@pytest.mark.parametrize("magnitude", [1e-6, 1e4], ids=["tiny", "large"])
def test_attention_in_float16_keeps_the_range_of_its_values(run: Any, magnitude: float) -> None:
    """Probability times scale leaves float16's normal range below 6e-5: such products are bfloat16."""
    cache, lengths = kv4_cache(1, 1, 64, 32), torch.tensor([64])
    k, v = torch.randn(2, 1, 1, 64, 32)
    kv4_append(cache, k, v * magnitude, torch.tensor([0]))
    q = torch.randn(1, 1, 32, dtype=torch.float16)
    y = expected(q, cache, lengths)
    subnormal = 2.0**-24
    bound = float(levels(cache.values, "asymmetric").abs().max()) * 2.0**-8 + y.abs() * 2.0**-10 + subnormal
    assert bool(((run(kv4_attention, q, cache, lengths).double() - y).abs() <= bound).all())


@pytest.mark.parametrize("splits", [1, 2])
def test_positions_before_the_start_are_not_seen(run: Any, splits: int) -> None:
    """Left padding, a window within a block, nothing at all, and a start that no block begins at."""
    cache = filled(4, 1, 80, 32)
    q, lengths = torch.randn(4, 2, 32), torch.tensor([80, 43, 20, 80], dtype=torch.int32)
    starts = torch.tensor([0, 41, 20, 33], dtype=torch.int32)
    got = run(kv4_attention, q, cache, lengths, starts=starts, partials=kv4_partials(q, splits))
    assert_close(got, expected(q, cache, lengths, starts), cache)
    assert not got[2].any()


@every_dtype
@pytest.mark.parametrize("splits", [1, 2])
def test_one_position_that_outweighs_all_others_yields_its_value_exactly(
    run: Any, dtype: torch.dtype, splits: int
) -> None:
    """Its probability is 1 and theirs 0; integers in, integers out, in every precision."""
    cache = kv4_cache(1, 1, 70, 32)
    cache.keys.scale.fill_(1.0)
    cache.values.scale.fill_(2.0)
    u = torch.randint(0, 16, (70, 32))
    cache.values.codes.copy_(pack(u, signed=False))
    assert cache.values.zero is not None
    cache.values.zero.fill_(5)
    cache.keys.codes[..., 44, :] = 0xFF
    q = torch.full((1, 1, 32), 8.0).to(dtype)  # a score of 8 * 15 * 32 / sqrt(32) = 679 there, 0 elsewhere
    got = run(kv4_attention, q, cache, torch.tensor([70]), partials=kv4_partials(q, splits))
    assert torch.equal(got[0, 0].long(), 2 * (u[44] - 5))


@pytest.mark.parametrize("splits", [1, 4])
def test_equal_scores_average_the_values_exactly(run: Any, splits: int) -> None:
    """q = 0 and 64 positions: sums of integers over a power of two, the same however they are split."""
    cache = filled(1, 2, 64, 32, "symmetric")
    cache.values.scale.fill_(0.5)
    q = torch.zeros(1, 2, 32)
    got = run(kv4_attention, q, cache, torch.tensor([64]), partials=kv4_partials(q, splits))
    assert torch.equal(got.double(), levels(cache.values, "symmetric").mean(2))


def test_a_length_beyond_the_cache_ends_with_it(run: Any) -> None:
    cache, q = filled(1, 1, 40, 32), torch.randn(1, 1, 32)
    y = expected(q, cache, torch.tensor([40]))
    assert_close(run(kv4_attention, q, cache, torch.tensor([99])), y, cache)
    assert_close(kv4_attention(q, cache, torch.tensor([99]), backend="torch"), y, cache)


def test_tokens_beyond_the_cache_are_dropped_by_the_kernel(run: Any, guarded: Callable[..., Any]) -> None:
    """What a GPU does where the public function cannot look at the positions without waiting for them."""
    pytest.importorskip("triton")
    from sq.kernels.kv4_attention.triton_append import launch

    shapes = [((3, 1, 3, 4), torch.uint8), ((3, 1, 3), torch.float32), ((3, 1, 3), torch.uint8)]
    buffers = [guarded(shape, dtype, 77) for shape, dtype in shapes * 2]
    for buffer in buffers:
        buffer.inside.fill_(99)
    inside = [buffer.inside for buffer in buffers]
    cache = Kv4Cache(Coded(*inside[:3]), Coded(*inside[3:]), "asymmetric")
    k, positions = torch.ones(3, 1, 2, 8, device=run.device), torch.tensor([2, 5, -1], device=run.device)
    if run.pool is None:
        launch(cache, k, k, positions, (1.0,))
    else:
        run.pool.submit(launch, cache, k, k, positions, (1.0,)).result()
    for buffer in buffers:
        buffer.assert_untouched("the cache")
    for buffer in buffers:
        written = [bool((buffer.inside[b, 0, p] != 99).any()) for b in range(3) for p in range(3)]
        assert written == [False, False, True, False, False, False, True, False, False]


@every_dtype
def test_what_is_not_seen_may_hold_anything(run: Any, dtype: torch.dtype) -> None:
    cache, lengths, starts = filled(2, 1, 70, 32), torch.tensor([40, 66]), torch.tensor([3, 33])
    q = torch.randn(2, 2, 32).to(dtype)
    clean = run(kv4_attention, q, cache, lengths, starts=starts)
    for side in (cache.keys, cache.values):
        for b in range(2):
            hidden = [p for p in range(70) if not int(starts[b]) <= p < int(lengths[b])]
            side.codes[b, :, hidden] = 0xFF
            side.scale[b, :, hidden] = torch.nan
    assert torch.equal(run(kv4_attention, q, cache, lengths, starts=starts), clean)
    assert torch.isfinite(kv4_attention(q, cache, lengths, starts=starts, backend="torch")).all()


@pytest.mark.parametrize("side", ["keys", "values"])
@pytest.mark.parametrize("splits", [1, 3])
def test_nan_reaches_the_heads_that_see_it_and_no_other(run: Any, splits: int, side: str) -> None:
    cache, lengths = filled(2, 2, 70, 32), torch.tensor([70, 70])
    getattr(cache, side).scale[1, 0, 50] = torch.nan
    q = torch.randn(2, 4, 32)
    for got in (
        run(kv4_attention, q, cache, lengths, partials=kv4_partials(q, splits)),
        kv4_attention(q, cache, lengths, backend="torch"),
    ):
        assert got[1, :2].isnan().all()
        assert not got[0].isnan().any()
        assert not got[1, 2:].isnan().any()


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_kernels_write_within_their_outputs_and_read_within_the_cache(
    run: Any, guarded: Callable[..., Any], splits: int
) -> None:
    """Bands of NaN around q and the scales, of 77 around what is written; the last row sees the last position."""
    plain, lengths, starts = filled(2, 2, 45, 32), torch.tensor([45, 45]), torch.tensor([0, 9])
    values = torch.randn(2, 6, 32)

    def inside(tensor: Tensor, band: float) -> Tensor:
        buffer = guarded(tuple(tensor.shape), tensor.dtype, band)
        buffer.inside.copy_(tensor)
        inner: Tensor = buffer.inside
        return inner

    sides = []
    for side in (plain.keys, plain.values):
        assert side.zero is not None
        sides.append(Coded(inside(side.codes, 255), inside(side.scale, torch.nan), inside(side.zero, 255)))
    written = [guarded(shape, torch.float32, 77.0) for shape in ((2, 6, 32), (2, 6, splits, 32), (2, 6, splits))]
    out, partials = written[0], Kv4Partials(written[1].inside, written[2].inside)
    q, cache = inside(values, torch.nan), Kv4Cache(sides[0], sides[1], "asymmetric")
    run(kv4_attention, q, cache, lengths, starts=starts, out=out.inside, partials=partials)
    for name, buffer in zip(("out", "partial values", "partial sums"), written, strict=True):
        buffer.assert_untouched(name)
    assert_close(out.inside.cpu(), expected(values, plain, lengths, starts), plain)


@every_scheme
@every_dtype
def test_torch_twin(scheme: Scheme, dtype: torch.dtype) -> None:
    cache, lengths, starts = filled(3, 2, 33, 10, scheme), torch.tensor([33, 1, 0]), torch.tensor([5, 0, 0])
    q = torch.randn(3, 6, 10).to(dtype)
    got = kv4_attention(q, cache, lengths, starts=starts)
    assert_close(got, expected(q, cache, lengths, starts), cache)
    assert not got[2].any()


@pytest.mark.gpu
@every_dtype
def test_many_positions_split_as_the_gpu_asks(dtype: torch.dtype) -> None:
    cache, lengths = filled(4, 8, 4096, 128), torch.tensor([4096, 1, 2049, 4000])
    q = torch.randn(4, 32, 128).to(dtype)
    sides = [Coded(*(part.cuda() for part in side if part is not None)) for side in (cache.keys, cache.values)]
    got = kv4_attention(q.cuda(), Kv4Cache(sides[0], sides[1], "asymmetric"), lengths.cuda(), backend="triton")
    assert_close(got.cpu(), expected(q, cache, lengths), cache)


def test_no_rows() -> None:
    cache = kv4_cache(1, 2, 4, 8)
    keys, values = (Coded(*(part[:0] for part in side if part is not None)) for side in (cache.keys, cache.values))
    empty = Kv4Cache(keys, values, "asymmetric")
    assert kv4_attention(torch.empty(0, 4, 8), empty, torch.empty(0, dtype=torch.int32)).shape == (0, 4, 8)
    kv4_append(cache, torch.empty(1, 2, 0, 8), torch.empty(1, 2, 0, 8), torch.tensor([4]))


@pytest.mark.parametrize("name", ["UNPACK_BF16", "UNPACK_FP16"])
def test_unpacking_instructions_mean_what_the_plain_path_computes(name: str) -> None:
    """The assembly that only a GPU runs, by a small interpreter of its four instructions, on all 256 bytes."""
    pytest.importorskip("triton")
    from sq.kernels.kv4_attention import triton_nibbles

    base, itype = (128, torch.bfloat16) if name == "UNPACK_BF16" else (1024, torch.float16)
    lines = re.findall(r"^(and|shr|prmt)\.\w+ ([\w$]+), (.+);$", getattr(triton_nibbles, name).value, re.M)
    assert len(lines) == 7
    for codes in torch.randperm(256).view(-1, 4).tolist():
        registers = {"$4": sum(code << 8 * i for i, code in enumerate(codes))}
        for operation, target, operands in lines:
            a, *rest = (registers[o] if o in registers else int(o, 0) for o in operands.split(", "))
            if operation == "prmt":
                source = [(a >> 8 * i) & 255 for i in range(4)] + [(rest[0] >> 8 * i) & 255 for i in range(4)]
                registers[target] = sum(source[(rest[1] >> 4 * i) & 7] << 8 * i for i in range(4))
            else:
                registers[target] = a & rest[0] if operation == "and" else a >> rest[0]
        words = [registers[f"${i // 2}"] >> 16 * (i % 2) & 0xFFFF for i in range(8)]
        numbers = torch.tensor(words, dtype=torch.int32).to(torch.int16).view(itype).int().tolist()
        assert numbers == [base + (code & 15) for code in codes] + [base + (code >> 4) for code in codes]


def test_shapes_that_the_kernel_does_not_take_are_refused_when_forced_and_work_in_torch(run: Any) -> None:
    q, cache, lengths = torch.randn(1, 2, 80), filled(1, 1, 5, 80), torch.tensor([5])
    with pytest.raises(ValueError, match="head_dim of 32, 64, 128, 256, not 80"):
        run(kv4_attention, q, cache, lengths)
    assert_close(kv4_attention(q, cache, lengths), expected(q, cache, lengths), cache)
    with pytest.raises(ValueError, match="129 query heads share a KV head"):
        run(kv4_attention, torch.randn(1, 129, 32), filled(1, 1, 5, 32), lengths)


Q, CACHE, LENGTHS = torch.ones(2, 4, 8), kv4_cache(2, 2, 4, 8), torch.tensor([4, 4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": torch.ones(2, 3, 8)}, "multiple of the cache's 2 KV heads"),
        ({"q": torch.ones(2, 4, 1, 8)}, r"\(B, H, 8\)"),
        ({"q": torch.ones(3, 4, 8)}, "the cache has 2 rows and the arguments have 3"),
        ({"lengths": torch.ones(2)}, "lengths is torch.float32"),
        ({"starts": torch.tensor([1])}, r"starts is torch.int64 \(1,\)"),
        ({"out": torch.empty(2, 4, 16)[..., ::2]}, "contiguous: False"),
        ({"partials": kv4_partials(torch.ones(2, 3, 8), 2)}, "partials.values"),
        ({"cache": CACHE._replace(scheme="symmetric")}, "cache.keys.zero is torch.uint8.*must be None"),
        ({"cache": CACHE._replace(values=CACHE.values._replace(zero=None))}, "cache.values.zero is None"),
        ({"cache": CACHE._replace(keys=CACHE.keys._replace(codes=torch.ones(3)))}, r"must be \(B, H_kv, S, D / 2\)"),
    ],
)
def test_arguments_of_attention_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    values = {"q": Q, "cache": CACHE, "lengths": LENGTHS, **arguments}
    with pytest.raises(ValueError, match=message):
        kv4_attention(values.pop("q"), values.pop("cache"), values.pop("lengths"), **values)


K = torch.ones(2, 2, 3, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": torch.ones(2, 3, 3, 8)}, r"k is torch.float32 \(2, 3, 3, 8\)"),
        ({"v": torch.ones(2, 2, 2, 8)}, r"v is torch.float32 \(2, 2, 2, 8\)"),
        ({"v": K.half()}, "v is torch.float16"),
        ({"k": K.int(), "v": K.int()}, "k is torch.int32"),
        ({"positions": torch.tensor([2, 0])}, r"3 tokens at positions \[2, 0\] leave the cache, which holds 4"),
        ({"positions": torch.tensor([-1, 0])}, "leave the cache"),
        ({"clip": []}, "non-empty list"),
    ],
)
def test_arguments_of_append_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    values = {"k": K, "v": K, "positions": torch.tensor([0, 1]), **arguments}
    with pytest.raises(ValueError, match=message):
        kv4_append(CACHE, values.pop("k"), values.pop("v"), values.pop("positions"), **values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"head_dim": 7}, "head_dim is even"), ({"capacity": 0}, "capacity=0"), ({"scheme": "ternary"}, "use one of")],
)
def test_a_cache_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kv4_cache(**{"batch": 1, "kv_heads": 1, "capacity": 4, "head_dim": 8, **arguments})
