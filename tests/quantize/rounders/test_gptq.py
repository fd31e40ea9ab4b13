"""GPTQ against the optimal brain surgeon update it accelerates, one column at a time in float64."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from quantizers import weight_quantizer
from torch import Tensor

from sq.errors import CalibrationError, QuantizationError
from sq.formats.elements import SCHEMES, Scheme
from sq.formats.qtensor import QTensor
from sq.formats.weight import WeightQuantizer
from sq.quantize.rounders.gptq import gptq as gptq_of_site
from sq.quantize.rounders.hessian import HessianAccumulator, conjugate_hessian, inverse_factor
from sq.rotation.transform import Dense


def problem(d_out: int, d_in: int, tokens: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of strongly correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d_in, d_in, generator=generator) * torch.logspace(0, -1.5, d_in)[:, None]
    x = torch.randn(tokens, d_in, generator=generator) @ mix
    accumulator = HessianAccumulator(d_in)
    accumulator.update(x)
    return torch.randn(d_out, d_in, generator=generator), accumulator.value


def gptq(w: Tensor, hessian: Tensor, quantizer: WeightQuantizer, **options: Any) -> QTensor:
    """Of a site with one linear."""
    (found,) = gptq_of_site([w], hessian, quantizer, **options)
    return found


def loss(w: Tensor, quantized: QTensor, hessian: Tensor) -> float:
    delta = w.double() - quantized.dequantize().double()
    return float(torch.trace(delta @ hessian.double() @ delta.T))


def surgeon(
    w: Tensor, hessian: Tensor, quantizer: WeightQuantizer, damping: float, order: list[int] | None = None
) -> np.ndarray:
    """Integer codes by the update of optimal brain surgeon: after column j is rounded to q_j,

        w -= (w_j - q_j) / [H^-1]_jj * [H^-1]_j,:    and    H^-1 -= [H^-1]_:,j [H^-1]_j,: / [H^-1]_jj

    which removes j from the inverse. Groups read their scale when their first column is reached; with an order, from w.
    """
    work = w.double().numpy().copy()
    h = hessian.double().numpy()
    d_in = h.shape[0]
    inverse = np.linalg.inv(h + damping * np.mean(np.diag(h)) * np.eye(d_in))
    codes = np.zeros(work.shape, dtype=np.int64)
    format = quantizer.format
    size = format.group or d_in
    static = quantizer.grid(w)
    for j in range(d_in) if order is None else order:
        if order is None and format.group is not None:
            if j % size == 0:
                own = quantizer.grid(torch.from_numpy(work[:, j : j + size]).float())
                s, z = own.scale[:, 0].double().numpy(), 0 if own.zero is None else own.zero[:, 0].double().numpy()
        else:
            s = static.scale[:, j // size].double().numpy()
            z = 0 if static.zero is None else static.zero[:, j // size].double().numpy()
        for i in range(work.shape[0]):
            zi = 0 if np.isscalar(z) else int(z[i])
            if format.scheme == "asymmetric":
                q = min(max(round(work[i, j] / s[i]) + zi, 0), 2**format.bits - 1)
                value = (q - zi) * s[i]
            else:
                half = 2 ** (format.bits - 1)
                ratio = work[i, j] / s[i]
                q = min(max(int(np.floor(ratio)) if format.scheme == "midrise" else round(ratio), -half), half - 1)
                value = (q + 0.5 * (format.scheme == "midrise")) * s[i]
            codes[i, j] = q
            work[i] -= (work[i, j] - value) / inverse[j, j] * inverse[j]
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, :] = inverse[:, j] = 0
    return codes


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("group_size", [None, 6, 12])
@pytest.mark.parametrize("block", [1, 5, 8, 128])
def test_equals_the_plain_surgeon(scheme: Scheme, group_size: int | None, block: int) -> None:
    w, hessian = problem(7, 24)
    quantizer = weight_quantizer(4, scheme, group_size)
    result = gptq(w, hessian, quantizer, block=block)
    assert np.array_equal(result.codes.numpy(), surgeon(w, hessian, quantizer, 0.01))


@pytest.mark.parametrize("group_size", [None, 6])
def test_act_order_equals_the_surgeon_in_that_order(group_size: int | None) -> None:
    w, hessian = problem(7, 24, seed=3)
    quantizer = weight_quantizer(3, "asymmetric", group_size)
    order = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    result = gptq(w, hessian, quantizer, block=10, act_order=True)
    assert np.array_equal(result.codes.numpy(), surgeon(w, hessian, quantizer, 0.01, order))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("act_order", [False, True])
def test_loss_is_below_rtn_on_correlated_data(scheme: Scheme, act_order: bool) -> None:
    for seed in range(3):
        w, hessian = problem(32, 96, seed=seed)
        for group_size in (None, 32):
            quantizer = weight_quantizer(4, scheme, group_size)
            better = loss(w, gptq(w, hessian, quantizer, act_order=act_order), hessian)
            assert better < 0.8 * loss(w, quantizer.quantize(w), hessian)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("act_order", [False, True])
def test_equals_rtn_on_a_diagonal_hessian(scheme: Scheme, group_size: int | None, act_order: bool) -> None:
    w, _ = problem(9, 40)
    quantizer = weight_quantizer(4, scheme, group_size)
    result, expected = gptq(w, torch.rand(40).add(0.1).diag(), quantizer, act_order=act_order), quantizer.quantize(w)
    assert torch.equal(result.codes, expected.codes)
    assert torch.equal(result.scale, expected.scale)


def test_dead_columns_are_zero_and_harmless() -> None:
    w, hessian = problem(8, 30)
    dead = [0, 7, 29]
    hessian[dead] = 0
    hessian[:, dead] = 0
    live = [i for i in range(30) if i not in dead]
    w[:, dead] = 100.0  # would ruin the scale
    result = gptq(w, hessian, weight_quantizer(4))
    assert (result.codes[:, dead] == 0).all()
    alone = gptq(w[:, live], hessian[live][:, live], weight_quantizer(4))
    assert torch.equal(result.codes[:, live], alone.codes)
    nothing = gptq(w, torch.zeros(30, 30), weight_quantizer(4))
    assert (nothing.codes == 0).all()


def test_dead_columns_do_not_change_the_damping() -> None:
    w, hessian = problem(16, 40)
    hessian *= 1e-6
    hessian[:30] = 0
    hessian[:, :30] = 0
    result = gptq(w, hessian, weight_quantizer(8, group_size=10), damping=0.3)
    alone = gptq(w[:, 30:], hessian[30:, 30:], weight_quantizer(8, group_size=10), damping=0.3)
    assert torch.equal(result.codes[:, 30:], alone.codes)


def test_input_is_untouched_and_any_float_dtype_is_taken() -> None:
    w, hessian = problem(4, 16)
    before = w.clone(), hessian.clone()
    full = gptq(w, hessian, weight_quantizer(4))
    assert torch.equal(w, before[0])
    assert torch.equal(hessian, before[1])
    half = w.bfloat16()
    assert torch.equal(
        gptq(half, hessian, weight_quantizer(4)).codes, gptq(half.float(), hessian, weight_quantizer(4)).codes
    )
    assert torch.equal(gptq(w, hessian.float(), weight_quantizer(4)).codes, full.codes)


def test_singular_hessian_without_damping_is_retried_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    w, _ = problem(6, 20)
    x = torch.randn(1, 20)
    x[0, 0] = 1.0
    hessian = 2.0 * x.T @ x  # rank one
    with caplog.at_level(logging.WARNING):
        result = gptq(w, hessian, weight_quantizer(4), damping=0.0, name="layer 3 qkv")
    assert "layer 3 qkv" in caplog.text
    assert "damping 0.01" in caplog.text
    assert loss(w, result, hessian) < loss(w, weight_quantizer(4).quantize(w), hessian)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        gptq(w, hessian, weight_quantizer(4))  # the default damping is enough
    assert not caplog.text


def test_indefinite_hessian_is_an_error_that_says_what_was_tried() -> None:
    hessian = torch.eye(6)
    hessian[0, 1] = hessian[1, 0] = 5.0
    with pytest.raises(QuantizationError, match=r"layer 3 qkv.*damping 0\.01, 0\.1, 1 .*more tokens"):
        gptq(torch.randn(3, 6), hessian, weight_quantizer(4), name="layer 3 qkv")
    with pytest.raises(QuantizationError, match="negative diagonal"):
        gptq(torch.randn(3, 6), -torch.eye(6), weight_quantizer(4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_inf_are_errors_that_name_the_site(bad: float) -> None:
    w, hessian = problem(3, 6)
    broken = hessian.clone()
    broken[2, 3] = bad
    with pytest.raises(QuantizationError, match="layer 1 o: the Hessian holds NaN or inf"):
        gptq(w, broken, weight_quantizer(4), name="layer 1 o")
    w[1, 1] = bad
    with pytest.raises(QuantizationError, match="layer 1 o: 1 of the weight's 18"):
        gptq(w, hessian, weight_quantizer(4), name="layer 1 o")


def test_bad_shapes_and_arguments_are_errors() -> None:
    w, hessian = problem(3, 6)
    with pytest.raises(QuantizationError, match=r"shape \(5, 5\)"):
        gptq(w, hessian[:5, :5], weight_quantizer(4))
    with pytest.raises(QuantizationError, match="block=0"):
        gptq(w, hessian, weight_quantizer(4), block=0)
    with pytest.raises(QuantizationError, match="damping=-1"):
        gptq(w, hessian, weight_quantizer(4), damping=-1)
    with pytest.raises(QuantizationError, match="groups of 4, which do not divide 6 features"):
        gptq(w, hessian, weight_quantizer(4, group_size=4))


def test_factor_squares_to_the_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    _, hessian = problem(2, 50)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(50)
    exact = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True)
    torch.testing.assert_close(inverse_factor(hessian).double(), exact, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("sq.quantize.rounders.hessian._FLOAT64_FACTOR", 0)  # float32 first
    torch.testing.assert_close(inverse_factor(hessian).double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("limit", [0, 1024])
def test_accumulator_equals_the_definition(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sq.quantize.rounders.hessian._FLOAT64_SUM", limit)
    x = torch.randn(2, 33, 10)
    accumulator = HessianAccumulator(10)
    for part in (x[0], x[1, :5].reshape(1, 5, 10), x[1, 5:], x[:0]):
        accumulator.update(part)
    rows = x.reshape(-1, 10).double()
    assert accumulator.tokens == 66
    torch.testing.assert_close(accumulator.value.double(), 2 / 66 * rows.T @ rows, rtol=1e-5, atol=1e-6)


def test_accumulator_errors() -> None:
    with pytest.raises(CalibrationError, match="no token"):
        _ = HessianAccumulator(4).value
    with pytest.raises(CalibrationError, match="5 features"):
        HessianAccumulator(4).update(torch.ones(2, 5))


def test_conjugated_hessian_is_that_of_transformed_activations() -> None:
    x = torch.randn(70, 9, dtype=torch.float64)
    transform = Dense(torch.randn(9, 9, dtype=torch.float64), orthogonal=False)
    hessian = 2 / 70 * x.T @ x
    moved = transform(x)
    result = conjugate_hessian(hessian, transform)
    torch.testing.assert_close(result, 2 / 70 * moved.T @ moved)
    assert torch.equal(result, result.T)


def test_a_feature_that_a_transform_makes_zero_has_no_negative_diagonal_in_a_conjugated_hessian() -> None:
    """Tokens whose features add up to zero have none along the constant direction, up to rounding of either sign."""
    for seed in range(20):
        x = torch.randn(70, 9, generator=torch.Generator().manual_seed(seed))
        x = 1e3 * (x - x.mean(1, keepdim=True))
        constant = torch.linalg.qr(torch.cat([torch.ones(9, 1), torch.eye(9)[:, 1:]], 1).double()).Q
        result = conjugate_hessian(2 / 70 * x.T @ x, Dense(constant, orthogonal=True))
        assert bool((result.diagonal() >= 0).all())
