"""Activation quantizer: clip search against brute force, groups, dtypes, shapes, gradient, bad input."""

from __future__ import annotations

import pytest
import torch
from quantizers import activation_quantizer, row_format
from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.activation import clip_candidates, shared_clip
from sq.formats.elements import SCHEMES, Scheme
from sq.formats.format import integer
from sq.formats.grid import row_grid


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [None, 8])
def test_clip_search_finds_the_least_squared_error(scheme: Scheme, bits: int, group_size: int | None) -> None:
    x = tokens(37, 40, seed=bits)
    result = activation_quantizer(bits, scheme, "search", group_size)(x)
    groups = x if group_size is None else x.reshape(-1, group_size)
    errors = torch.stack(
        [
            (row_grid(groups, row_format(bits, scheme, group_size is None), clip).fake(groups) - groups)
            .double()
            .square()
            .sum(1)
            for clip in clip_candidates(integer(bits), 9)
        ]
    )
    found = (result.reshape(groups.shape) - groups).double().square().sum(1)
    torch.testing.assert_close(found, errors.min(0).values, rtol=1e-5, atol=1e-12)


def test_candidates_span_the_useful_range() -> None:
    assert clip_candidates(integer(4), 9) == pytest.approx([1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6])
    x = tokens(200, 768)
    fine = torch.stack(
        [
            (row_grid(x, integer(4, "midrise"), c).fake(x) - x).square().sum(1)
            for c in torch.linspace(1, 0.3, 141).tolist()
        ]
    )
    nine = (activation_quantizer(4, "midrise", "search")(x) - x).square().sum()
    assert nine <= 1.015 * fine.min(0).values.sum()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("clip", [1.0, 0.9, "search"])
@pytest.mark.parametrize("group_size", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_stand_for_the_fake_quantized_values(
    scheme: Scheme, clip: float, group_size: int | None, dtype: torch.dtype
) -> None:
    x = tokens(2, 3, 15).to(dtype)
    quantizer = activation_quantizer(4, scheme, clip, group_size)
    made = quantizer.encode(x)
    codes, scale, zero = made.codes, made.scale, made.zero
    assert codes.shape == x.shape
    assert scale.shape == (2, 3, 1 if group_size is None else 3)
    assert (zero is not None) == (scheme == "asymmetric")
    grouped = codes.reshape(*scale.shape, -1).float()
    if zero is not None:
        grouped = grouped - zero[..., None]
    if scheme == "midrise":
        grouped = grouped + 0.5
    result = quantizer(x)
    assert result.dtype == dtype
    assert torch.equal((grouped * scale[..., None]).reshape(x.shape).to(dtype), result)
    assert torch.equal(made.dequantize(dtype), result)


def test_a_group_does_not_hold_zero_and_a_token_does() -> None:
    x = tokens(4, 16).abs() + 100
    per_token = (activation_quantizer(4, "asymmetric")(x) - x).abs().max()
    per_group = (activation_quantizer(4, "asymmetric", group_size=8)(x) - x).abs().max()
    assert per_group < 0.2 < 1 < per_token


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tokens(50, 24)
    quantizer = activation_quantizer(4, "midrise", "search")
    whole = quantizer(x)
    monkeypatch.setattr("sq.formats.clip_search._CPU_CHUNK", 7 * 24)
    assert torch.equal(quantizer(x), whole)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (8,), (2, 0, 8), (1, 1)])
@pytest.mark.parametrize("clip", [1.0, "search"])
def test_any_shape(shape: tuple[int, ...], clip: float) -> None:
    x = torch.randn(shape)
    quantizer = activation_quantizer(4, "midrise", clip)
    assert quantizer(x).shape == x.shape
    assert quantizer.encode(x).codes.shape == x.shape


def test_strided_input_and_input_untouched() -> None:
    x = tokens(16, 12)
    before = x.clone()
    quantizer = activation_quantizer(4, "asymmetric", "search")
    assert torch.equal(quantizer(x.T), quantizer(x.T.contiguous()))
    assert torch.equal(x, before)


def test_sixteen_bits_are_no_format() -> None:
    with pytest.raises(QuantizationError, match="integers of 16 bits; use 2 to 8"):
        integer(16)


@pytest.mark.parametrize("clip", [1.0, "search"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_token_with_nan_shows_it_and_the_others_do_not(scheme: Scheme, clip: float) -> None:
    x = tokens(4, 16)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    result = activation_quantizer(4, scheme, clip)(x)
    assert not result[1:3].isfinite().any()
    assert result[[0, 3]].isfinite().all()


def test_gradient_passes_straight_through() -> None:
    x = tokens(3, 8).requires_grad_()
    weight = tokens(3, 8, seed=1)
    quantizer = activation_quantizer(4, "symmetric", 0.5)
    (quantizer(x) * weight).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weight)
    assert torch.equal(quantizer(x), quantizer(x.detach()))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"bits": 1}, "integers of 1 bits"),
        ({"bits": 4, "scheme": "fp4"}, "fp4"),
        ({"bits": 4, "clip": 0.0}, "clip is 0.0"),
        ({"bits": 4, "clip": 1.5}, "clip is 1.5"),
        ({"bits": 4, "clip": "mse"}, "mse"),
        ({"bits": 4, "group_size": 0}, "group=0"),
        ({"bits": 4, "candidates": 1}, "candidates is 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(QuantizationError, match=text):
        activation_quantizer(**arguments)  # type: ignore[arg-type]


def test_a_group_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(QuantizationError, match="groups of 5, which do not divide 12 features"):
        activation_quantizer(4, group_size=5)(tokens(2, 12))


def test_shared_clip_is_the_candidate_of_least_relative_error() -> None:
    """Against a loop over candidates and tokens; a loud token must not decide for all."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 32, generator=generator)
    x[7] *= 1000
    quantizer = activation_quantizer(4)
    errors = {}
    for clip in clip_candidates(integer(4), 9):
        rounded = activation_quantizer(4, clip=clip)(x)
        errors[clip] = sum(float((rounded[t] - x[t]).square().mean() / x[t].square().mean()) for t in range(40))
    assert shared_clip(x, quantizer) == min(errors, key=lambda clip: errors[clip])
    assert shared_clip(x, quantizer) < 1


def test_a_pair_of_clips_acts_on_the_two_ends() -> None:
    """Asymmetric, one token: the grid spans [0.5 low, 0.75 high]."""
    x = torch.tensor([[-4.0, -1.0, 0.5, 8.0]])
    found = activation_quantizer(4, "asymmetric", clip=(0.5, 0.75))(x)
    step = (6.0 + 2.0) / 15
    zero = round(2.0 / step)
    codes = [min(max(round(value / step) + zero, 0), 15) for value in x[0].tolist()]
    torch.testing.assert_close(found, torch.tensor([[(code - zero) * step for code in codes]]))
