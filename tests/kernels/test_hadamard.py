"""The Hadamard kernel and its torch twin against the dense matrix in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sq.kernels.backend import Backend
from sq.kernels.hadamard import hadamard, hadamard_reference
from sq.kernels.hadamard.tiles import tile_shape
from sq.rotation import hadamard as rotation
from sq.rotation.hadamard import Hadamard, hadamard_matrix, random_signs
from sq.rotation.hadamard_orders import base_matrix, hadamard_split

# largest error in units of the output's rms; the interpreter truncates to bfloat16 where a GPU rounds
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
# one product (up to 96), two (from 320 on); H_K is not symmetric for K = 12, 20, 108; 2 and 12 are padded to 16
ORDERS = [1, 2, 12, 64, 96, 320, 512, 864]


def base_of(n: int) -> Tensor:
    return base_matrix(hadamard_split(n)[0])


def dense(x: Tensor) -> Tensor:
    """x H / sqrt(n) by the whole matrix."""
    n = x.shape[-1]
    product: Tensor = x.double() @ hadamard_matrix(n) / n**0.5
    return product


def assert_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((got.double() - expected).abs().max())
    bound = tolerance * max(1e-30, float(expected.square().mean().sqrt()))
    assert error <= bound, f"largest error {error:.3g}, allowed {bound:.3g}"


@pytest.mark.parametrize("n", ORDERS)
def test_kernel_is_the_dense_product(run: Any, n: int) -> None:
    x = torch.randn(5, n)
    assert_close(run(hadamard, x, base_of(n)), dense(x), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("n", [64, 320, 1376])
def test_kernel_in_half_precision(run: Any, n: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, n).to(dtype)
    y = run(hadamard, x, base_of(n).to(dtype))
    assert y.dtype == dtype
    assert_close(y, dense(x), TOLERANCE[dtype])


@pytest.mark.parametrize("n", [64, 256, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_kernel_is_exact_where_every_sum_is_representable(run: Any, n: int, dtype: torch.dtype) -> None:
    """Four entries of +-1 and n = 4^k: the results are multiples of 2^-k of at most 4 2^-k."""
    x = torch.zeros(3, n)
    for row in x:
        row[torch.randperm(n)[:4]] = torch.tensor([1.0, -1.0, 1.0, 1.0])
    y = run(hadamard, x.to(dtype), torch.ones(1, 1))
    assert torch.equal(y.double(), dense(x))


def test_kernel_takes_any_base_of_order_one(run: Any) -> None:
    x = torch.randn(2, 512)
    assert_close(run(hadamard, x, -torch.ones(1, 1)), -dense(x), TOLERANCE[torch.float32])


def test_kernel_does_not_overflow_in_float16(run: Any) -> None:
    """A constant token of value a becomes a sqrt(n) in its first entry: 62,720 here, where 65,504 is the limit."""
    x = torch.full((2, 1024), 1960.0, dtype=torch.float16)
    y = run(hadamard, x, torch.ones(1, 1))
    assert torch.equal(y[:, 0], torch.full((2,), 62720.0, dtype=torch.float16))
    assert not y[:, 1:].any()


@pytest.mark.parametrize("n", [12, 512])
def test_kernel_writes_within_its_output_and_reads_within_its_inputs(
    run: Any, guarded: Callable[..., Any], n: int
) -> None:
    """Bands of NaN around what is read, of 7 around what is written; T is odd and no multiple of a block."""
    k = hadamard_split(n)[0]
    values = torch.randn(3, n)
    x, base = guarded((3, n), torch.float32, torch.nan), guarded((k, k), torch.float32, torch.nan)
    out = guarded((3, n), torch.float32, 7.0)
    x.inside.copy_(values)
    base.inside.copy_(base_of(n))
    run(hadamard, x.inside, base.inside, out=out.inside)
    assert_close(out.inside.cpu(), dense(values), TOLERANCE[torch.float32])
    out.assert_untouched("out")


@pytest.mark.parametrize("n", [64, 512])
def test_kernel_reads_strided_rows_of_any_leading_shape(run: Any, n: int) -> None:
    wide = torch.randn(2, 3, n + 8)
    x = wide[..., 4 : n + 4]
    assert_close(run(hadamard, x, torch.ones(1, 1)), dense(x), TOLERANCE[torch.float32])
    transposed = torch.randn(n, 3).T
    assert_close(run(hadamard, transposed, torch.ones(1, 1)), dense(transposed), TOLERANCE[torch.float32])


@pytest.mark.parametrize("n", [64, 512])
def test_nan_stays_in_its_token(run: Any, n: int) -> None:
    x = torch.randn(3, n)
    x[1, 5] = torch.nan
    y = run(hadamard, x, torch.ones(1, 1))
    assert y[1].isnan().all()
    assert_close(y[::2], dense(x[::2]), TOLERANCE[torch.float32])


def test_no_tokens(run: Any) -> None:
    assert run(hadamard, torch.empty(0, 4, 64), torch.ones(1, 1)).shape == (0, 4, 64)


@settings(max_examples=25, deadline=None)
@given(n=st.sampled_from([1, 4, 12, 40, 96, 320, 344, 1376]), tokens=st.integers(0, 4), seed=st.integers(0, 2**31))
def test_reference_is_the_transform_of_the_framework(n: int, tokens: int, seed: int) -> None:
    x = torch.randn(tokens, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(hadamard_reference(x, base_of(n)), Hadamard(n)(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(hadamard(x, base_of(n)).norm(), x.norm(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("n", [896, 4096, 5120, 8192, 8960, 11008, 13824, 14336, 18944, 28672, 32768])
def test_sizes_of_known_models_have_a_tile(n: int) -> None:
    k, powers = hadamard_split(n)
    shape = tile_shape(k, powers, itemsize=2)
    assert shape is not None
    n1, n2 = shape
    assert n1 * n2 == n
    assert n1 % k == 0
    assert n2 & (n2 - 1) == 0


@pytest.mark.parametrize(
    ("x", "base", "message"),
    [
        (torch.ones(2, 24), torch.ones(1, 1), "24 features and a base of order 1"),
        (torch.ones(2, 20), torch.ones(12, 12), "12 times a power of 2"),
        (torch.ones(2, 4), torch.ones(1, 2), r"base of shape \(1, 2\)"),
        (torch.ones(2, 4, dtype=torch.int32), torch.ones(1, 1), "floating-point"),
        (torch.tensor(1.0), torch.ones(1, 1), "scalar"),
    ],
    ids=["not a power of two", "not a multiple of K", "base not square", "integers", "scalar"],
)
def test_arguments_that_do_not_fit_are_refused(x: Tensor, base: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hadamard(x, base)


def test_an_output_that_does_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        hadamard(torch.ones(2, 4), torch.ones(1, 1), out=torch.empty(4, 2).T)


def test_a_token_too_large_for_the_kernel_is_refused_when_forced(run: Any) -> None:
    with pytest.raises(ValueError, match="no tile"):
        run(hadamard, torch.ones(1, 65536), torch.ones(1, 1))


def transformed(transform: Hadamard, x: Tensor, inverse: bool, backend: Backend) -> Tensor:
    transform = transform.to(x.device)
    transform.backend = backend
    return transform.inverse(x) if inverse else transform(x)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("signs", [False, True], ids=["plain", "signs"])
@pytest.mark.parametrize("n", [12, 64, 320, 864])
def test_transform_through_the_kernel_is_that_of_torch(
    run: Any, n: int, signs: bool, dtype: torch.dtype, inverse: bool
) -> None:
    transform = Hadamard(n, random_signs(n, seed=1) if signs else None)
    x = torch.randn(2, 3, n).to(dtype)
    y = run(transformed, transform, x, inverse)
    assert y.dtype == dtype
    assert_close(y, transformed(transform, x.double(), inverse, "torch"), TOLERANCE[dtype])


def no_kernel(*arguments: Any, **keywords: Any) -> Tensor:
    raise AssertionError("the kernel's function was called")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
def test_transform_on_a_cpu_does_not_call_the_kernel(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(rotation, "hadamard", no_kernel)
    transform, x = Hadamard(320, random_signs(320, seed=1)), torch.randn(2, 320).to(dtype)
    transform.inverse(transform(x))


def test_transform_of_what_needs_a_gradient_does_not_call_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the kernel could run."""
    monkeypatch.setattr(rotation, "hadamard", no_kernel)
    monkeypatch.setattr(rotation, "picks_triton", lambda *_: True)
    transform, x = Hadamard(320), torch.randn(2, 320, requires_grad=True)
    transform.inverse(transform(x)).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(2, 320))
    with torch.no_grad(), pytest.raises(AssertionError, match="was called"):
        transform(x)
