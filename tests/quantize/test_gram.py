"""Sums of x^T x: those of float64 up to the rounding that the docstring names."""

from __future__ import annotations

import pytest
import torch

from sq.quantize.gram import add_gram, add_product
from sq.quantize.rounders.hessian import HessianAccumulator


@pytest.mark.parametrize("total", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tokens", "n"), [(1, 5), (700, 33), (1537, 96)])
def test_is_the_gram_matrix_of_tokens_rounded_to_bfloat16(tokens: int, n: int, total: torch.dtype) -> None:
    x = torch.randn(tokens, n, generator=torch.Generator().manual_seed(tokens)) * torch.logspace(-2, 3, n)
    found = torch.zeros(n, n, dtype=total)
    add_gram(found, x)
    norms = x.double().square().sum(0).sqrt()
    error = (found.double() - x.double().T @ x.double()).abs() / norms / norms[:, None]
    assert float(error.max()) < 2**-7  # both factors are rounded by at most 2^-9
    assert torch.equal(found, found.T)


def test_bfloat16_tokens_lose_nothing() -> None:
    x = torch.randn(600, 40).bfloat16()
    found = torch.zeros(40, 40)
    add_gram(found, x)
    torch.testing.assert_close(found.double(), x.double().T @ x.double(), rtol=1e-5, atol=1e-3)


def test_float64_tokens_and_products_of_two_are_float32_throughout() -> None:
    x, y = torch.randn(900, 20, dtype=torch.float64), torch.randn(900, 12)
    gram, cross = torch.zeros(20, 20), torch.zeros(20, 12)
    add_gram(gram, x)
    add_product(cross, x, y)
    torch.testing.assert_close(gram.double(), x.T @ x, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(cross.double(), x.T @ y.double(), rtol=1e-5, atol=1e-3)


def test_the_setting_of_torch_stays_as_it_was() -> None:
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    with pytest.raises(RuntimeError):
        add_gram(torch.zeros(3, 3), torch.randn(4, 5))
    assert matmul.fp32_precision == before
    product = torch.randn(64, 64) @ torch.eye(64)
    assert (product != product.bfloat16().float()).any(), "other products must not be rounded"


def test_an_exact_hessian_is_asked_for() -> None:
    x = torch.randn(300, 16)
    exact, fast = HessianAccumulator(16, exact=True), HessianAccumulator(16)
    for accumulator in (exact, fast):
        accumulator.update(x)
    reference = 2 / 300 * x.double().T @ x.double()
    torch.testing.assert_close(exact.value.double(), reference, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast.value.double(), reference, rtol=1e-2, atol=1e-2)
