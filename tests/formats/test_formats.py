"""MXFP4, NVFP4, FP8 and grouped integers: scales from closed formulas, sizes, and every way a tensor is rounded."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from sq.errors import QuantizationError
from sq.formats.activation import ActivationQuantizer, shared_clip
from sq.formats.catalog import FP8, FP8_TENSOR, INT4G16, INT4G32, MXFP4, MXFP8, NVFP4, NVFP4_46
from sq.formats.elements import E2M1, Integers
from sq.formats.format import Format, integer, named, names, register
from sq.formats.qtensor import QTensor
from sq.formats.scales import FLOAT16_SCALE
from sq.formats.weight import WeightQuantizer

ALL = [
    MXFP4,
    MXFP8,
    NVFP4,
    NVFP4_46,
    FP8,
    INT4G16,
    INT4G32,
    integer(4),
    integer(3, "asymmetric"),
    integer(4, "midrise"),
]
IDS = [f"{format.name}-{format.scheme}" for format in ALL]


def tokens(rows: int = 5, n: int = 64, seed: int = 0) -> Tensor:
    """Rows of very different size, one of zeros, one with a massive entry."""
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    x *= torch.logspace(-3, 2, rows)[:, None]
    x[1] = 0
    x[2, 7] = 40 * x[2].abs().max()
    return x


def e4m3(x: float) -> float:
    return float(np.float32(min(max(x, 2.0**-9), 448.0)).astype(ml_dtypes.float8_e4m3fn))


def e2m1(x: Tensor) -> Tensor:
    return torch.from_numpy(x.clamp(-6, 6).numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32))


def mxfp4_by_hand(x: Tensor) -> Tensor:
    """OCP MX v1.0, section 6.3: X = 2^(floor(log2 max|x|) - 2) for each 32 entries, elements saturate."""
    out = torch.empty_like(x)
    for part, target in zip(x.view(-1, 32), out.view(-1, 32), strict=True):
        peak = float(part.abs().max())
        scale = 2.0 ** (math.floor(math.log2(peak)) - 2) if peak else 1.0
        target.copy_(e2m1(part / scale) * scale)
    return out


def nvfp4_by_hand(x: Tensor, tops: tuple[float, ...] = (6.0,)) -> Tensor:
    """A float32 scale a token, max|x| / (6 * 448); E4M3 scales of 16 entries, by the top of least error."""
    out = torch.empty_like(x)
    for token, target in zip(x, out, strict=True):
        second = np.float32(float(token.abs().max()) / (6 * 448)) or np.float32(1)
        for part, into in zip(token.view(-1, 16), target.view(-1, 16), strict=True):
            found = []
            for top in tops:
                peak = float(part.abs().max())
                scale = e4m3(peak / top / float(second)) if peak else e4m3(1 / float(second))
                step = np.float32(scale) * second
                rounded = e2m1(part / float(step)) * float(step)
                found.append((float((rounded - part).square().sum()), rounded))
            into.copy_(min(found, key=lambda pair: pair[0])[1])
    return out


def test_mxfp4_is_the_formula_of_its_standard() -> None:
    x = tokens()
    torch.testing.assert_close(ActivationQuantizer(MXFP4)(x), mxfp4_by_hand(x), rtol=0, atol=0)


@pytest.mark.parametrize(("format", "tops"), [(NVFP4, (6.0,)), (NVFP4_46, (6.0, 4.0))], ids=["nvfp4", "four over six"])
def test_nvfp4_is_its_formula_with_a_second_scale_for_each_token(format: Format, tops: tuple[float, ...]) -> None:
    x = tokens()
    torch.testing.assert_close(ActivationQuantizer(format)(x), nvfp4_by_hand(x, tops), rtol=2e-6, atol=0)


def test_four_over_six_never_has_the_larger_error() -> None:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    plain, chosen = ((ActivationQuantizer(f)(x) - x).square().view(200, 4, 16).sum(-1) for f in (NVFP4, NVFP4_46))
    assert bool((chosen <= plain * (1 + 1e-5)).all())
    assert float(chosen.sum()) < 0.97 * float(plain.sum())


def test_fp8_is_scaled_to_its_largest_number() -> None:
    x = tokens()
    scale = x.abs().amax(1, keepdim=True) / 448
    scale[scale == 0] = 1
    expected = torch.from_numpy((x / scale).numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)) * scale
    torch.testing.assert_close(ActivationQuantizer(FP8)(x), expected, rtol=1e-6, atol=0)


def test_one_scale_a_tensor() -> None:
    w = tokens()
    found = WeightQuantizer(FP8_TENSOR, clip=1.0).quantize(w)
    assert found.scale.shape == (1, 1)
    scale = w.abs().max() / 448
    expected = torch.from_numpy((w / scale).numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)) * scale
    torch.testing.assert_close(found.dequantize(), expected, rtol=1e-6, atol=0)
    with pytest.raises(QuantizationError, match="depend on its batch"):
        ActivationQuantizer(FP8_TENSOR)


@pytest.mark.parametrize("format", ALL, ids=IDS)
def test_a_token_does_not_depend_on_its_batch(format: Format) -> None:
    x, quantizer = tokens(), ActivationQuantizer(format, "search")
    alone = torch.cat([quantizer(row[None]) for row in x])
    torch.testing.assert_close(quantizer(x), alone, rtol=0, atol=0)


@pytest.mark.parametrize("format", ALL, ids=IDS)
@pytest.mark.parametrize("clip", [1.0, 0.8, "search"])
def test_codes_and_fake_values_are_one_rounding(format: Format, clip: float) -> None:
    x, quantizer = tokens(), ActivationQuantizer(format, clip)
    found = quantizer.encode(x)
    assert found.shape == x.shape
    torch.testing.assert_close(found.dequantize(), quantizer(x), rtol=1e-6, atol=0)
    assert torch.equal(found.pack().dequantize(), found.dequantize())
    found.check("x")


@pytest.mark.parametrize("format", [*ALL, FP8_TENSOR], ids=[*IDS, "fp8_tensor"])
@pytest.mark.parametrize("clip", [1.0, "search"])
def test_weights_of_every_format_survive_packing(format: Format, clip: float) -> None:
    w, quantizer = tokens(), WeightQuantizer(format, clip)
    found = quantizer.quantize(w)
    torch.testing.assert_close(quantizer(w), found.dequantize(), rtol=0, atol=0)
    packed = found.pack().check("w")
    assert packed.is_packed
    assert packed.shape == w.shape
    assert torch.equal(packed.dequantize(), found.dequantize())
    assert torch.equal(packed.unpack().codes, found.codes)
    assert packed.pack() is packed
    assert found.unpack() is found


@pytest.mark.parametrize("format", ALL, ids=IDS)
def test_a_searched_clip_is_no_worse_than_none(format: Format) -> None:
    w = torch.randn(20, 64, generator=torch.Generator().manual_seed(3))
    searched, plain = (WeightQuantizer(format, clip, norm=2.0)(w) for clip in ("search", 1.0))
    errors = [(found - w).square().sum(1) for found in (searched, plain)]
    assert bool((errors[0] <= errors[1] * (1 + 1e-5)).all())
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(4))
    quantizer = ActivationQuantizer(format)
    assert 0.2 < shared_clip(x, quantizer) <= 1


@pytest.mark.parametrize("format", ALL, ids=IDS)
def test_gradients_pass_straight_through(format: Format) -> None:
    x = tokens().requires_grad_()
    weight = torch.randn(x.shape)
    (ActivationQuantizer(format)(x) * weight).sum().backward()
    assert torch.equal(x.grad, weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ALL, ids=IDS)
def test_nan_and_inf_are_not_hidden(format: Format) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    found = ActivationQuantizer(format)(x)
    size = format.group or 64
    assert not bool(torch.isfinite(found[0, :size]).any())
    assert not bool(torch.isfinite(found[1, :size]).any())
    assert bool(torch.isfinite(found[2]).all())


@pytest.mark.parametrize(
    ("format", "bits"),
    [(MXFP4, 4.25), (NVFP4, 4.5 + 32 / (8 * 64)), (MXFP8, 8.25), (INT4G16, 5.0), (INT4G32, 4.5), (integer(4), 4.25),
     (integer(4, "asymmetric"), 4.5), (FP8_TENSOR, 8 + 16 / (8 * 64))],
    ids=lambda value: value.name if isinstance(value, Format) else "",
)  # fmt: skip
def test_sizes_count_codes_scales_zero_points_and_the_second_scale(format: Format, bits: float) -> None:
    w = torch.randn(8, 64)
    assert WeightQuantizer(format, 1.0).quantize(w).nbytes() * 8 / w.numel() == bits


def test_groups_that_do_not_divide_name_the_format() -> None:
    with pytest.raises(QuantizationError, match=r"mxfp4 has groups of 32, which do not divide 48"):
        ActivationQuantizer(MXFP4)(torch.randn(2, 48))
    with pytest.raises(QuantizationError, match=r"nvfp4 has groups of 16, which do not divide 40"):
        WeightQuantizer(NVFP4).quantize(torch.randn(2, 40))


def test_the_registry_knows_its_formats_and_refuses_two_of_one_name() -> None:
    assert {"mxfp4", "nvfp4", "nvfp4_46", "mxfp8", "fp8", "int4g16", "int4g32"} <= set(names())
    assert named("mxfp4") is MXFP4
    assert register(MXFP4) is MXFP4
    with pytest.raises(QuantizationError, match="registered already"):
        register(Format("mxfp4", E2M1, group=16))
    with pytest.raises(QuantizationError, match=r"unknown; there are fp8"):
        named("fp6")
    for bad in ("MXFP4", "4bit", "a-b", ""):
        with pytest.raises(QuantizationError, match="lower-case"):
            register(Format(bad, E2M1))


@pytest.fixture
def sound() -> QTensor:
    return WeightQuantizer(Format("int4g8", Integers(4), group=8, scale=FLOAT16_SCALE), 1.0).quantize(
        torch.randn(4, 16)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q: {"codes": q.codes + 20}, r"codes span .*, the format has -8..7"),
        (lambda q: {"scale": q.scale * 0}, "8 of 8 scale values are NaN, infinite, zero or negative"),
        (lambda q: {"scale": q.scale * torch.nan}, "8 of 8 scale values are NaN"),
        (lambda q: {"scale": -q.scale}, "zero or negative"),
        (lambda q: {"scale": q.scale[:, :1]}, r"scale is float32 \(4, 1\), codes int8 \(4, 16\) need \(4, 2\)"),
        (lambda q: {"codes": q.codes[:, :12]}, "groups of 8 do not divide 12"),
        (lambda q: {"zero": q.scale}, "zero points are given"),
        (lambda q: {"second": torch.ones(())}, "second scale is given"),
        (lambda q: {"packed_features": 30}, "30 packed codes are 15 bytes"),
    ],
)
def test_a_damaged_tensor_names_itself(sound: QTensor, change: object, words: str) -> None:
    from dataclasses import replace

    sound.check("fine")
    broken = replace(sound, **change(sound))  # type: ignore[operator]
    with pytest.raises(QuantizationError, match=rf"layer 3, q_proj is no int4g8 tensor: .*{words}"):
        broken.check("layer 3, q_proj")


def test_a_pattern_of_fp8_that_is_no_number_is_found() -> None:
    found = WeightQuantizer(FP8, 1.0).quantize(torch.randn(2, 8))
    found.codes[0, 0] = 127
    with pytest.raises(QuantizationError, match="some codes stand for no number"):
        found.check("w")
