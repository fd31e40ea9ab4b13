"""The kernel of block_product and its torch twin against the whole matrix in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sq.kernels.block_product import LowRank, block_product, block_product_reference
from sq.kernels.block_product import tiles as cuts

# largest error in units of the output's rms; the interpreter truncates to bfloat16 where a GPU rounds
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
HALVES = [torch.float16, torch.bfloat16]


class Operands(NamedTuple):
    """Of one transform of n1 rows of n2 features."""

    blocks: Tensor
    first: Tensor | None
    low_rank: LowRank | None


def operands(n1: int, n2: int, first: bool, rank: int | None, dtype: torch.dtype = torch.float32) -> Operands:
    """Normal numbers, scaled as rotations are."""

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape) / shape[-1] ** 0.5).to(dtype)

    n = n1 * n2
    sides = None if rank is None else ((torch.randn(n, rank) / n**0.5).to(dtype), torch.randn(n, rank).to(dtype))
    return Operands(normal(n1, n2, n2), normal(n1, n1) if first else None, sides)


def matrix(given: Operands) -> Tensor:
    """The transform as one matrix (n, n): (I + U V^T) blockdiag(B) (R1 (x) I)."""
    blocks = given.blocks.double()
    n1, n2 = blocks.shape[:2]
    whole = torch.block_diag(*blocks)
    if given.first is not None:
        whole = whole @ torch.kron(given.first.double(), torch.eye(n2, dtype=torch.float64))
    if given.low_rank is not None:
        u, v = (side.double() for side in given.low_rank)
        whole = (torch.eye(n1 * n2, dtype=torch.float64) + u @ v.T) @ whole
    return whole


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    assert got.shape == expected.shape
    error = float((got.double() - expected).abs().max())
    bound = TOLERANCE[dtype] * float(expected.square().mean().sqrt())
    assert error <= bound, f"largest error {error:.3g}, allowed {bound:.3g}"


# n2 of one column tile and of several, of one piece and of several, of a power of two and not
SIZES = [(1, 16), (2, 7), (3, 24), (5, 72), (4, 40), (9, 64), (2, 160)]


@pytest.mark.parametrize("rank", [None, 3], ids=["", "low rank"])
@pytest.mark.parametrize("first", [False, True], ids=["blocks", "mixed"])
@pytest.mark.parametrize(("n1", "n2"), SIZES, ids=str)
def test_kernel_is_the_dense_product(run: Any, n1: int, n2: int, first: bool, rank: int | None) -> None:
    given, x = operands(n1, n2, first, rank), torch.randn(5, n1 * n2)
    assert_close(run(block_product, x, *given), x.double() @ matrix(given), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=["fp32", "fp16", "bf16"])
def test_kernel_that_mixes_in_a_launch_of_its_own(run: Any, dtype: torch.dtype) -> None:
    n1, n2, tokens = 17, 12, 65
    assert cuts.mixes_apart(n1, tokens)
    assert not cuts.mixes_apart(n1, cuts.FEW_TOKENS)
    given, x = operands(n1, n2, True, 2, dtype), torch.randn(tokens, n1 * n2).to(dtype)
    assert_close(run(block_product, x, *given), x.double() @ matrix(given), dtype)


def mixed(y: Tensor, first: Tensor, columns: int, backend: str) -> Tensor:
    """The second launch alone, in tiles of so many columns."""
    from sq.kernels.block_product.triton import mix

    out = torch.empty_like(y)
    mix(y, first, out, columns)
    return out


def test_second_launch_in_several_tiles_of_columns(run: Any) -> None:
    y, first = torch.randn(3, 5 * 40), torch.randn(5, 5)
    expected = torch.einsum("ij,til->tjl", first.double(), y.view(3, 5, 40).double()).reshape(3, -1)
    assert_close(run(mixed, y, first, 16), expected, torch.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("tokens", [1, 17])
def test_kernel_in_half_precision(run: Any, tokens: int, dtype: torch.dtype) -> None:
    given, x = operands(6, 24, True, 2, dtype), torch.randn(tokens, 144).to(dtype)
    assert_close(run(block_product, x, *given), x.double() @ matrix(given), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=["fp32", "fp16", "bf16"])
def test_kernel_is_exact_where_every_sum_is_representable(run: Any, dtype: torch.dtype) -> None:
    """Small integers everywhere: any wrong index is seen in bfloat16 too."""
    n1, n2 = 3, 20
    blocks, first = torch.zeros(n1, n2, n2), torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 1.0], [3.0, 0.0, 1.0]])
    for i, block in enumerate(blocks):
        block[torch.arange(n2), torch.randperm(n2)] = i + 1.0
    u, v = torch.zeros(n1 * n2, 1), torch.zeros(n1 * n2, 1)
    u[7], v[41] = 1.0, 2.0
    x = torch.randint(-4, 5, (4, n1 * n2)).to(dtype)
    given = Operands(blocks.to(dtype), first.to(dtype), (u.to(dtype), v.to(dtype)))
    got = run(block_product, x, *given)
    assert torch.equal(got.double(), x.double() @ matrix(given))


@pytest.mark.parametrize("first", [False, True], ids=["blocks", "mixed"])
def test_kernel_writes_within_its_output_and_reads_within_its_inputs(
    run: Any, guarded: Callable[..., Any], first: bool
) -> None:
    """Bands of NaN around what is read, of 7 around what is written; no size is a multiple of a tile's."""
    tokens, n1, n2, rank = 3, 3, 20, 2
    given, values = operands(n1, n2, first, rank), torch.randn(tokens, n1 * n2)

    def fenced(value: Tensor) -> Tensor:
        kept.append(guarded(tuple(value.shape), torch.float32, torch.nan))
        kept[-1].inside.copy_(value)
        inside: Tensor = kept[-1].inside
        return inside

    kept: list[Any] = []
    assert given.low_rank is not None
    out = guarded((tokens, n1 * n2), torch.float32, 7.0)
    mixer = None if given.first is None else fenced(given.first)
    sides = (fenced(given.low_rank[0]), fenced(given.low_rank[1]))
    run(block_product, fenced(values), fenced(given.blocks), mixer, sides, out=out.inside)
    assert_close(out.inside.cpu(), values.double() @ matrix(given), torch.float32)
    out.assert_untouched("out")


def test_kernel_reads_strided_rows_of_any_leading_shape(run: Any) -> None:
    """Factors of the low rank are read as they lie, transposed as a LowRankStep has them too."""
    given = operands(3, 24, True, 2)
    assert given.low_rank is not None
    given = given._replace(low_rank=tuple(side.T.contiguous().T for side in given.low_rank))
    wide = torch.randn(2, 3, 80)
    for x in (wide[..., 4:76], torch.randn(72, 3).T):
        assert_close(run(block_product, x, *given), x.double() @ matrix(given), torch.float32)


def test_nan_stays_in_its_token(run: Any) -> None:
    given, x = operands(2, 24, True, 2), torch.randn(3, 48)
    x[1, 5] = torch.nan
    z = run(block_product, x, *given)
    assert z[1].isnan().all()
    assert_close(z[::2], x[::2].double() @ matrix(given), torch.float32)


@pytest.mark.parametrize("rank", [None, 0, 2])
def test_no_tokens_and_no_directions(run: Any, rank: int | None) -> None:
    given = operands(2, 16, True, rank)
    assert run(block_product, torch.empty(0, 4, 32), *given).shape == (0, 4, 32)
    x = torch.randn(1, 32)
    assert_close(run(block_product, x, *given), x.double() @ matrix(given), torch.float32)


@settings(max_examples=40, deadline=None)
@given(
    n1=st.integers(1, 12), n2=st.sampled_from([1, 3, 16, 72, 96]), tokens=st.integers(1, 5),
    first=st.booleans(), rank=st.sampled_from([None, 0, 1, 16]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_reference_is_the_dense_product(
    n1: int, n2: int, tokens: int, first: bool, rank: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    given = operands(n1, n2, first, rank, torch.float64)
    x = torch.randn(tokens, n1 * n2, dtype=torch.float64)
    expected = x @ matrix(given)
    torch.testing.assert_close(block_product_reference(x, *given), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(block_product(x, *given), expected, rtol=1e-9, atol=1e-9)


def test_torch_backend_takes_many_tokens_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sq.kernels.block_product._CPU_CHUNK", 100)
    given, x = operands(3, 8, True, 2, torch.bfloat16), torch.randn(2, 7, 24).bfloat16()
    out = torch.empty_like(x)
    assert block_product(x, *given, out=out) is out
    assert_close(out, x.double() @ matrix(given), torch.bfloat16)


X, BLOCKS = torch.ones(2, 12), torch.ones(3, 4, 4)


@pytest.mark.parametrize(
    ("x", "blocks", "more", "message"),
    [
        (X.int(), BLOCKS, {}, "floating-point"),
        (torch.tensor(1.0), BLOCKS, {}, "floating-point"),
        (X, torch.ones(3, 5, 5), {}, r"blocks \(3, 5, 5\) for 12 features"),
        (X, torch.ones(3, 4, 3), {}, r"must be \(n1, n2, n2\)"),
        (X, torch.ones(12, 12), {}, r"must be \(n1, n2, n2\)"),
        (X, BLOCKS.int(), {}, "blocks is torch.int32"),
        (X, BLOCKS, {"first": torch.eye(4)}, r"first is torch.float32 \(4, 4\)"),
        (X, BLOCKS, {"low_rank": (torch.ones(12, 2), torch.ones(12, 3))}, r"V of low_rank is .* \(12, 3\)"),
        (X, BLOCKS, {"low_rank": (torch.ones(2, 12), torch.ones(2, 12))}, r"U of low_rank .* \(12, 12\)"),
        (X, BLOCKS, {"low_rank": (torch.ones(12), torch.ones(12))}, "a pair"),
        (X, BLOCKS, {"low_rank": (torch.ones(12, 1),)}, "a pair"),
        (X, BLOCKS, {"out": torch.empty(12, 2).T}, "contiguous"),
        (X, BLOCKS, {"out": X}, "out is x"),
        (X, BLOCKS.to("meta"), {}, "move blocks to x's device"),
        (X, BLOCKS, {"backend": "cuda"}, "backend is 'cuda'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(x: Tensor, blocks: Tensor, more: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block_product(x, blocks, **more)


@pytest.mark.parametrize(
    ("n1", "n2", "rank", "message"),
    [(1, 520, 0, "blocks of up to 512"), (2, 16, 65, "rank is 65"), (129, 1, 0, "mixes up to 128 rows")],
)
def test_sizes_beyond_the_kernel_are_refused_when_forced(run: Any, n1: int, n2: int, rank: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(block_product, torch.ones(1, n1 * n2), *operands(n1, n2, True, rank))


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("rank", [0, 16, 64])
@pytest.mark.parametrize(
    ("n1", "n2"), [(8, 72), (9, 64), (12, 64), (16, 96), (32, 128), (64, 64), (56, 256), (112, 256)]
)
def test_typical_sizes_have_launches(n1: int, n2: int, rank: int, itemsize: int) -> None:
    for first in (True, False):
        assert cuts.tile_obstacle(n1, n2, first, rank, itemsize) is None


@pytest.mark.parametrize(("n2", "size"), [(7, 32), (64, 64), (72, 32), (96, 32), (128, 128), (160, 32), (256, 128)])
def test_pieces_pad_least(n2: int, size: int) -> None:
    assert cuts.piece(n2) == size
