"""The fused kernel against all levels tried in float64, and bit for bit against the framework's quantizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
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
from sq.kernels.nibbles import pack_nibbles
from sq.kernels.rotate_quantize import rotate_quantize
from sq.kernels.rotate_quantize.reference import rotate
from sq.kernels.rotate_quantize.tiles import tile_obstacle
from sq.kernels.schemes import Scheme
from sq.rotation.hadamard import hadamard_matrix, random_orthogonal
from sq.rotation.kronecker import Kronecker

SEARCH = clip_candidates(integer(4), 9)
CLIPS = {"no clip": 1.0, "clip 0.8": 0.8, "search": SEARCH}
STEPS = {"symmetric": 7, "asymmetric": 15, "midrise": 7.5}
SIZES = [(1, 2), (3, 6), (16, 32), (43, 10), (28, 18)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
every_clip = pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS.keys())


def codes_of(packed: Coded, n: int, scheme: Scheme) -> Tensor:
    return unpack(packed.codes, n, signed=scheme != "asymmetric")


def decode(packed: Coded, n: int, scheme: Scheme) -> Tensor:
    """Values of the codes, float64."""
    q, s = codes_of(packed, n, scheme).double(), packed.scale.double()
    if packed.zero is not None:
        return (q - packed.zero.double()) * s
    return (2 * q + 1) * s / 2 if scheme == "midrise" else q * s


def assert_quantizes(packed: Coded, y: Tensor, scheme: Scheme, clips: Sequence[float]) -> None:
    """Every code is a nearest one of the 16 levels of its token, the scale is that of a candidate, and of the best."""
    n = y.shape[-1]
    low, high = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
    full = (high.clamp_min(0) - low.clamp_max(0)) if scheme == "asymmetric" else torch.maximum(-low, high)
    scales = full * torch.tensor(clips, dtype=torch.float64) / STEPS[scheme]  # (T, candidates)
    near = (packed.scale.double() / scales - 1).abs()
    assert float(near.amin(-1).max()) < 1e-5, "a scale is that of no candidate"

    k = torch.arange(16, dtype=torch.float64)
    zero = packed.zero.double() if packed.zero is not None else (7.5 if scheme == "midrise" else 8.0)
    levels = ((k - zero) * packed.scale.double())[..., None, :]  # (T, 1, 16)
    best = (y[..., None] - levels).abs().amin(-1)
    excess = ((decode(packed, n, scheme) - y).abs() - best) / packed.scale.double()
    assert float(excess.max()) < 1e-4, f"a code is {float(excess.max()):.3g} steps farther than the nearest level"

    costs = []
    for scale in scales.unbind(-1):
        s = scale[:, None]
        z = torch.round(-low.clamp_max(0) * (s * STEPS[scheme] / full) / s) if scheme == "asymmetric" else zero
        costs.append((y[..., None] - ((k - z) * s)[..., None, :]).abs().amin(-1).square().sum(-1))
    chosen = torch.stack(costs, -1).gather(-1, near.argmin(-1, keepdim=True))
    assert float((chosen.squeeze(-1) / torch.stack(costs, -1).amin(-1)).max()) < 1 + 1e-4, "a better clip exists"


@every_clip
@every_scheme
def test_codes_without_rotation_are_bit_for_bit_those_of_the_framework(
    run: Any, scheme: Scheme, clip: float | list[float]
) -> None:
    x = torch.randn(5, 36)
    x[1] = 0
    x[2, 7] = 1e30  # one huge value takes the whole range
    x[3] = 2.5
    x[4] *= 1e-30
    made = activation_quantizer(4, scheme, clip if isinstance(clip, float) else "search").encode(x)
    codes, scale, zero = made.codes, made.scale, made.zero
    got = run(rotate_quantize, x, None, None, scheme=scheme, clip=clip)
    assert torch.equal(codes_of(got, 36, scheme), codes.to(torch.int8))
    assert torch.equal(got.scale, scale)
    assert (got.zero is None) == (zero is None)
    assert got.zero is None or zero is None or torch.equal(got.zero, zero)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@every_scheme
def test_rotation_by_any_matrices(run: Any, scheme: Scheme, sizes: tuple[int, int]) -> None:
    """Neither orthogonal nor symmetric factors, sizes that are no powers of two, an odd number of tokens."""
    n1, n2 = sizes
    x, r1, r2 = torch.randn(5, n1 * n2), torch.randn(n1, n1), torch.randn(n2, n2)
    dense = torch.kron(r1.double(), r2.double())
    got = run(rotate_quantize, x, r1, r2, scheme=scheme)
    assert_quantizes(got, x.double() @ dense, scheme, [1.0])


@every_scheme
def test_clip_search_behind_a_rotation(run: Any, scheme: Scheme) -> None:
    """A tile with padding, which must not weigh in a search: 12 x 20 features are computed as 16 x 32."""
    x = torch.randn(5, 240)
    x[1] = torch.rand(240) - 0.4
    r1, r2 = random_orthogonal(12, 1).float(), random_orthogonal(20, 2).float()
    y = Kronecker(r1, r2)(x.double())
    assert_quantizes(run(rotate_quantize, x, r1, r2, scheme=scheme, clip=SEARCH), y, scheme, SEARCH)


@pytest.mark.parametrize("clips", [[1.0, 0.875], [0.875, 1.0]], ids=str)
def test_of_equal_candidates_the_first_is_taken(run: Any, clips: list[float]) -> None:
    """-7 is code -7 of steps of 1 and code -8 of steps of 7/8: no error with either."""
    x = torch.tensor([[-7.0, 0.0]])
    got = run(rotate_quantize, x, None, None, clip=clips)
    assert float(got.scale) == clips[0]
    assert torch.equal(decode(got, 2, "symmetric"), x.double())


@pytest.mark.parametrize("present", ["r1", "r2"])
@every_scheme
def test_one_factor_alone(run: Any, scheme: Scheme, present: str) -> None:
    x, r = torch.randn(3, 96), torch.randn(12, 12)
    r1, r2 = (r, None) if present == "r1" else (None, r)
    y = rotate(x, r1, r2, torch.float64)
    identity = torch.eye(8, dtype=torch.float64)
    dense = torch.kron(r.double(), identity) if present == "r1" else torch.kron(identity, r.double())
    torch.testing.assert_close(y, x.double() @ dense)
    assert_quantizes(run(rotate_quantize, x, r1, r2, scheme=scheme, clip=0.9), y, scheme, [0.9])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_inputs_with_exact_sums(run: Any, dtype: torch.dtype) -> None:
    """Small integers and factors +-1: every sum is an integer below 2^8, so even a GPU's half products are exact.

    The codes are those of rational arithmetic, 7 y / max|y| to the nearest, wherever that is no tie.
    """
    x = torch.zeros(5, 256)
    for row in x:
        row[torch.randperm(256)[:12]] = torch.randint(-9, 10, (12,)).float()
    h = hadamard_matrix(16)
    y = x.double() @ torch.kron(h, h)
    got = run(rotate_quantize, x.to(dtype), h.to(dtype), h.to(dtype))
    codes = codes_of(got, 256, "symmetric")
    peaks = y.abs().amax(-1)
    assert torch.equal(got.scale.squeeze(-1), (peaks.float() / 7))
    for row, code, peak in zip(y.tolist(), codes.tolist(), peaks.tolist(), strict=True):
        exact = [Fraction(int(v)) * 7 / int(peak) for v in row]
        ties = [q.denominator == 2 for q in exact]
        assert [c for c, t in zip(code, ties, strict=True) if not t] == [
            round(q) for q, t in zip(exact, ties, strict=True) if not t
        ]


@pytest.mark.parametrize("step", [2.0**-20, 3.0, 2.0**90], ids=["2^-20", "3", "2^90"])
def test_ties_go_to_the_even_code_and_upward_on_the_midrise_grid(run: Any, step: float) -> None:
    values = [7, 0.5, 1.5, 2.5, 6.5, -0.5, -1.5, -2.5, -6.5, -7]
    got = run(rotate_quantize, torch.tensor([values]) * step, None, None)
    assert float(got.scale) == step
    assert codes_of(got, 10, "symmetric").tolist() == [[7, 0, 2, 2, 6, 0, -2, -2, -6, -7]]

    got = run(rotate_quantize, torch.tensor([[7.5, 1, 2, -1, -2, -7.5]]) * step, None, None, scheme="midrise")
    assert float(got.scale) == step
    assert codes_of(got, 6, "midrise").tolist() == [[7, 1, 2, -1, -2, -8]]

    values = [0, 0.5, 1.5, 2.5, 15, -0.5]
    got = run(rotate_quantize, torch.tensor([[*values[:-1], 0]]) * step, None, None, scheme="asymmetric")
    assert (float(got.scale), float(got.zero)) == (step, 0)
    assert codes_of(got, 6, "asymmetric").tolist() == [[0, 0, 2, 2, 15, 0]]


@every_clip
@every_scheme
def test_nan_and_inf_poison_the_scale_of_their_token_alone(run: Any, scheme: Scheme, clip: float | list[float]) -> None:
    """Their codes are those of an all-zero token; a range that overflows float32 counts as inf."""
    x = torch.randn(6, 24)
    x[1, 3], x[2, 3], x[3, 3] = torch.nan, torch.inf, -torch.inf
    x[5, 0], x[5, 1] = 3e38, -3e38
    clean = torch.where(torch.isfinite(x).all(-1, keepdim=True), x, 0)
    got = run(rotate_quantize, x, None, None, scheme=scheme, clip=clip)
    expected = rotate_quantize(clean, None, None, scheme=scheme, clip=clip, backend="torch")
    overflows = scheme == "asymmetric"
    bad = torch.tensor([False, True, True, True, False, overflows])
    assert torch.equal(got.scale.isnan().squeeze(-1), bad)
    assert torch.equal(got.scale[~bad], expected.scale[~bad])
    assert torch.equal(got.codes[:5], expected.codes[:5])
    assert torch.equal(got.codes[5], expected.codes[1 if overflows else 5])
    for g, e in zip(got, rotate_quantize(x, None, None, scheme=scheme, clip=clip, backend="torch"), strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=0, equal_nan=True)


def test_nan_stays_in_its_token_behind_a_rotation(run: Any) -> None:
    x, r1, r2 = torch.randn(3, 60), torch.randn(6, 6), torch.randn(10, 10)
    x[1, 5] = torch.nan
    got = run(rotate_quantize, x, r1, r2)
    assert got.scale.isnan().flatten().tolist() == [False, True, False]
    assert not got.codes[1].any()
    kept = Coded(got.codes[::2], got.scale[::2], None)
    assert_quantizes(kept, rotate(x[::2], r1, r2, torch.float64), "symmetric", [1.0])


@pytest.mark.parametrize("factors", ["none", "r1", "both"])
@pytest.mark.parametrize("scheme", ["asymmetric", "midrise"])
def test_kernel_writes_within_its_outputs_and_reads_within_its_inputs(
    run: Any, guarded: Callable[..., Any], scheme: Scheme, factors: str
) -> None:
    """Bands of NaN around what is read, of 77 around what is written; sizes that fill no block."""
    n1, n2, tokens = 11, 18, 3
    n = n1 * n2
    values = {"x": torch.randn(tokens, n), "r1": torch.randn(n1, n1), "r2": torch.randn(n2, n2)}
    given_ = {name: guarded(tuple(value.shape), torch.float32, torch.nan) for name, value in values.items()}
    for name, value in values.items():
        given_[name].inside.copy_(value)
    out = {
        "codes": guarded((tokens, n // 2), torch.uint8, 77),
        "scale": guarded((tokens, 1), torch.float32, 77.0),
        "zero": guarded((tokens, 1), torch.float32, 77.0),
    }
    target = Coded(out["codes"].inside, out["scale"].inside, out["zero"].inside if scheme == "asymmetric" else None)
    r1 = given_["r1"].inside if factors != "none" else None
    r2 = given_["r2"].inside if factors == "both" else None
    run(rotate_quantize, given_["x"].inside, r1, r2, scheme=scheme, clip=SEARCH, out=target)
    for name, buffer in out.items():
        buffer.assert_untouched(name)
    y = rotate(values["x"], None if r1 is None else values["r1"], None if r2 is None else values["r2"], torch.float64)
    cpu = Coded(target.codes.cpu(), target.scale.cpu(), None if target.zero is None else target.zero.cpu())
    assert_quantizes(cpu, y, scheme, SEARCH)


def test_strided_rows_transposed_factors_and_leading_shapes(run: Any) -> None:
    wide = torch.randn(2, 3, 70)
    x, r1, r2 = wide[..., 3:63], torch.randn(6, 6).T, torch.randn(10, 20)[:, ::2]
    got = run(rotate_quantize, x, r1, r2)
    assert got.codes.shape == (2, 3, 30)
    assert got.scale.shape == (2, 3, 1)
    flat = Coded(got.codes.flatten(0, 1), got.scale.flatten(0, 1), None)
    assert_quantizes(flat, rotate(x, r1, r2, torch.float64).flatten(0, 1), "symmetric", [1.0])


@every_scheme
def test_no_tokens(run: Any, scheme: Scheme) -> None:
    got = run(rotate_quantize, torch.empty(0, 60), torch.eye(6), None, scheme=scheme)
    assert got.codes.shape == (0, 30)
    assert got.scale.shape == (0, 1)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 5),
    n=st.integers(1, 40),
    scheme=st.sampled_from(SCHEMES),
    clip=st.sampled_from(list(CLIPS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_torch_twin_is_the_framework_quantizer_for_any_size(
    tokens: int, n: int, scheme: Scheme, clip: str, dtype: torch.dtype, seed: int
) -> None:
    x = (torch.randn(tokens, n, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)
    quantizer = activation_quantizer(4, scheme, "search" if clip == "search" else float(str(CLIPS[clip])))
    made = quantizer.encode(x)
    codes, scale, zero = made.codes, made.scale, made.zero
    got = rotate_quantize(x, None, None, scheme=scheme, clip=CLIPS[clip])  # type: ignore[arg-type]
    assert torch.equal(got.codes, pack(codes, signed=scheme != "asymmetric"))
    assert torch.equal(got.scale, scale)
    assert (got.zero is None) == (zero is None)
    assert got.zero is None or zero is None or torch.equal(got.zero, zero)


@settings(max_examples=40, deadline=None)
@given(codes=st.lists(st.integers(-8, 15), min_size=1, max_size=9))
def test_nibbles_are_packed_as_the_framework_packs_them(codes: list[int]) -> None:
    unsigned, signed = torch.tensor(codes).abs(), torch.tensor(codes).clamp(-8, 7)
    assert torch.equal(pack_nibbles(unsigned), pack(unsigned, signed=False))
    assert torch.equal(pack_nibbles(signed), pack(signed, signed=True))
    assert torch.equal(unpack(pack_nibbles(signed.float()), len(codes), signed=True), signed.to(torch.int8))


@pytest.mark.parametrize(
    "sizes", [(64, 64), (64, 80), (64, 128), (86, 128), (108, 128), (112, 128), (128, 224), (28, 32), (64, 76)], ids=str
)
def test_factors_of_known_models_fit_the_kernel(sizes: tuple[int, int]) -> None:
    assert tile_obstacle(*sizes, has_r1=True, has_r2=True, itemsize=2) is None


def test_shapes_that_the_kernel_does_not_take_are_refused_when_forced_and_work_in_torch(run: Any) -> None:
    x, r1, r2 = torch.randn(3, 36), torch.randn(4, 4), torch.randn(9, 9)
    with pytest.raises(ValueError, match="n2 = 9 being odd"):
        run(rotate_quantize, x, r1, r2)
    assert_quantizes(rotate_quantize(x, r1, r2), rotate(x, r1, r2, torch.float64), "symmetric", [1.0])
    with pytest.raises(ValueError, match="do not fit an SM"):
        run(rotate_quantize, torch.ones(1, 512 * 512), None, torch.eye(512))


X, R = torch.ones(2, 12), torch.eye(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r1": torch.eye(5)}, "factors of size 5 do not fit 12 features"),
        ({"r1": R, "r2": R}, "factors of size 4 and 4 do not fit 12"),
        ({"r1": torch.ones(3, 4)}, r"r1 is torch.float32 \(3, 4\)"),
        ({"r2": torch.eye(4, dtype=torch.int32)}, "r2 is torch.int32"),
        ({"x": torch.ones(2, 12, dtype=torch.int8)}, "floating-point"),
        ({"x": torch.ones(2, 0)}, "n > 0"),
        ({"scheme": "ternary"}, "use one of symmetric, asymmetric, midrise"),
        ({"clip": 0.0}, r"number in \(0, 1\]"),
        ({"clip": [1.0, 1.5]}, r"number in \(0, 1\]"),
        ({"clip": []}, "non-empty list"),
        ({"out": Coded(torch.empty(2, 6), torch.empty(2, 1), None)}, "out.codes is torch.float32"),
        (
            {"scheme": "asymmetric", "out": Coded(torch.empty(2, 6).byte(), torch.empty(2, 1), None)},
            "out.zero must be a tensor",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    x, r1, r2 = (arguments.pop(name, default) for name, default in (("x", X), ("r1", None), ("r2", None)))
    with pytest.raises(ValueError, match=message):
        rotate_quantize(x, r1, r2, **arguments)
