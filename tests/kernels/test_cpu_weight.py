"""int4_matmul on a CPU: packed rows compiled, and int8 for many tokens, against the torch path and float64."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import FunctionType

import pytest
import torch
from torch import Tensor

from sq.kernels import compiled
from sq.kernels.coded import Coded
from sq.kernels.int4_matmul import CpuWeight, cpu_weight, int4_matmul, int4_matmul_reference, weight_sums
from sq.kernels.schemes import Scheme

SCHEMES: tuple[Scheme, ...] = ("symmetric", "asymmetric", "midrise")


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    before = torch.get_num_threads()
    monkeypatch.setattr(cpu_weight, "_PART", 64)  # small weights are cut too
    monkeypatch.setattr(cpu_weight, "_PART_TOKENS", 1)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def operands(
    d_out: int, d_in: int, groups: int, tokens: int, x_scheme: Scheme, w_scheme: Scheme, *, x_bits: int = 4
) -> tuple[Coded, Coded]:
    generator = torch.Generator().manual_seed(d_out + d_in)

    def scales(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) + 0.1

    def zeros(scheme: Scheme, *shape: int) -> Tensor | None:
        return torch.randint(0, 16, shape, generator=generator).float() if scheme == "asymmetric" else None

    codes = torch.randint(0, 256, (d_out, d_in // 2), dtype=torch.uint8, generator=generator)
    w = Coded(codes, scales(d_out, groups), zeros(w_scheme, d_out, groups))
    half = 2 ** (x_bits - 1)
    low, high = (0, 16) if x_scheme == "asymmetric" else (-half, half)
    planes = torch.randint(low, high, (tokens, 2, d_in // 2), dtype=torch.int8, generator=generator)
    x = Coded(planes, scales(tokens, 1), zeros(x_scheme, tokens, 1))
    return x, w._replace(sums=weight_sums(w, w_scheme))


@pytest.mark.parametrize("x_scheme", SCHEMES)
@pytest.mark.parametrize("w_scheme", SCHEMES)
@pytest.mark.parametrize(("d_out", "d_in"), [(65, 34), (7, 2), (100, 576), (130, 160)])
@pytest.mark.parametrize("tokens", [1, 3, 21])
def test_same_bits_as_the_torch_path(
    d_out: int, d_in: int, tokens: int, x_scheme: Scheme, w_scheme: Scheme, threads: int
) -> None:
    """Without groups sums are integers, scaled twice and rounded once: no bit differs."""
    x, w = operands(d_out, d_in, 1, tokens, x_scheme, w_scheme)
    for dtype in (torch.bfloat16, torch.float32):
        expected = int4_matmul(x, w, x_scheme=x_scheme, w_scheme=w_scheme, dtype=dtype, backend="torch")
        prepared = CpuWeight(w, w_scheme, None)
        assert prepared.takes(x, dtype)
        assert torch.equal(prepared.product(x, x_scheme, dtype), expected)
    exact = int4_matmul_reference(x, w, x_scheme=x_scheme, w_scheme=w_scheme)
    torch.testing.assert_close(expected.double(), exact, rtol=1e-6, atol=1e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("x_scheme", SCHEMES)
@pytest.mark.parametrize("w_scheme", SCHEMES)
@pytest.mark.parametrize(("d_in", "groups"), [(96, 3), (256, 2), (20, 5)])
def test_groups(d_in: int, groups: int, x_scheme: Scheme, w_scheme: Scheme, threads: int) -> None:
    """Of float64 it differs by one rounding to float32 of each of the parts."""
    x, w = operands(33, d_in, groups, 3, x_scheme, w_scheme)
    found = CpuWeight(w, w_scheme, None).product(x, x_scheme, torch.float32)
    exact = int4_matmul_reference(x, w, x_scheme=x_scheme, w_scheme=w_scheme)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6 * float(exact.abs().max()))
    many, _ = operands(33, d_in, groups, 21, x_scheme, w_scheme)
    assert not CpuWeight(w, w_scheme, None).takes(many, torch.float32)


@pytest.mark.parametrize("tokens", [2, 21])
def test_bias_eight_bits_and_leading_axes(tokens: int) -> None:
    x, w = operands(50, 64, 1, tokens, "symmetric", "midrise", x_bits=8)
    bias = torch.randn(50)
    expected = int4_matmul(x, w, w_scheme="midrise", bias=bias, dtype=torch.float32)
    x = Coded(x.codes.unsqueeze(0), x.scale.unsqueeze(0))
    found = CpuWeight(w, "midrise", bias).product(x, "symmetric", torch.float32)
    assert found.shape == (1, tokens, 50)
    assert torch.equal(found[0], expected)


def test_nan_stays_in_its_token_and_its_feature() -> None:
    for tokens in (2, 20):
        x, w = operands(40, 64, 1, tokens, "symmetric", "symmetric")
        x.scale[1], w.scale[3] = torch.nan, torch.nan
        y = CpuWeight(w, "symmetric", None).product(x, "symmetric", torch.bfloat16)
        expected = torch.zeros(tokens, 40, dtype=torch.bool)
        expected[1], expected[:, 3] = True, True
        assert torch.equal(y.isnan(), expected)


def test_without_vector_instructions_the_sums_are_the_same() -> None:
    """The form for processors without VNNI, compiled here."""
    numba = pytest.importorskip("numba")
    from sq.kernels.int4_matmul import numba_rows

    names = {**vars(numba_rows), "dot": numba_rows.dot_of(vnni=False)}
    rows = numba.njit(error_model="numpy")(FunctionType(numba_rows.rows.py_func.__code__, names))
    x, w = operands(40, 352, 1, 2, "symmetric", "symmetric")
    expected = int4_matmul(x, w, dtype=torch.float32)
    y = torch.empty(2, 40)
    assert w.sums is not None
    at = [part.data_ptr() for part in (w.codes, w.scale, w.sums, x.codes, x.scale, y)]
    head = (0, 40, 2, 1, 176, at[0], 0x88, 8, at[1], 0, 0.0, at[2], at[3], at[4], 0, 0.0, 0, False, at[5], 40)
    rows(*head)
    assert torch.equal(y, expected)


def test_a_second_copy_is_made_for_many_tokens_only() -> None:
    x, w = operands(64, 128, 1, 1, "symmetric", "symmetric")
    prepared = CpuWeight(w, "symmetric", None)
    prepared.product(x, "symmetric", torch.bfloat16)
    assert prepared.prepacked_bytes == 0
    many, _ = operands(64, 128, 1, 9, "symmetric", "symmetric")
    prepared.product(many, "symmetric", torch.bfloat16)
    assert prepared.prepacked_bytes == 64 * 128


def test_what_is_missing_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    compiled.compiles.cache_clear()
    try:
        x, w = operands(8, 16, 1, 1, "symmetric", "symmetric")
        with caplog.at_level(logging.INFO):
            assert not CpuWeight(w, "symmetric", None).takes(x, torch.bfloat16)
            assert not CpuWeight(w, "symmetric", None).takes(x, torch.bfloat16)
        assert [record.message for record in caplog.records if "numba" in record.message] != []
        assert sum("numba" in record.message for record in caplog.records) == 1
    finally:
        compiled.compiles.cache_clear()
