"""Sums of x^T x: those of float64 up to the rounding of float32."""

from __future__ import annotations

import pytest
import torch

from sq.quantize.gram import add_gram, add_product


@pytest.mark.parametrize("total", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("tokens", "n"), [(1, 5), (700, 33), (1537, 96), (600, 129), (513, 1100)])
def test_products_are_exact_up_to_the_rounding_of_float32(
    tokens: int, n: int, dtype: torch.dtype, total: torch.dtype
) -> None:
    x = torch.randn(tokens, n, generator=torch.Generator().manual_seed(tokens)) * torch.logspace(-2, 2, n)
    x = x.to(dtype)
    found = torch.zeros(n, n, dtype=total)
    for part in (x, x[: tokens // 2]):  # the second one is added to what is mirrored already
        add_gram(found, part)
    seen = torch.cat([x, x[: tokens // 2]]).double()
    norms = seen.square().sum(0).sqrt()
    error = (found.double() - seen.T @ seen).abs() / norms / norms[:, None]
    assert float(error.max()) < 2e-6


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
        add_gram(torch.zeros(3, 3), torch.randn(4, 5).bfloat16())
    assert matmul.fp32_precision == before
    product = torch.randn(64, 64) @ torch.eye(64)
    assert (product != product.bfloat16().float()).any(), "other products must not be rounded"
