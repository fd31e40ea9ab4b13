"""Both forms of the kernel and the torch path against exact integers, float64 and the framework's layers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizers import activation_quantizer, weight_quantizer
from torch import Tensor

from sq.formats.elements import SCHEMES
from sq.formats.packing import pack, unpack
from sq.kernels.coded import Coded
from sq.kernels.int4_matmul import int4_matmul, int4_matmul_reference, int8_planes, weight_sums
from sq.kernels.int4_matmul.tiles import DECODE_TOKENS, Shape, decode_launches, decode_tokens, prefill_launches
from sq.kernels.rotate_quantize import Container, rotate_quantize
from sq.kernels.schemes import Scheme

CONTAINERS = ("int4", "int8", "int8_planes")
every_form = pytest.mark.parametrize("form", ["prefill", "decode"])
every_container = pytest.mark.parametrize("container", CONTAINERS)
every_x = pytest.mark.parametrize("x_scheme", SCHEMES, ids=lambda s: f"x {s}")
every_w = pytest.mark.parametrize("w_scheme", SCHEMES, ids=lambda s: f"w {s}")
SMALLEST = 2.0**-149  # of float32: two all-zero rows of the mid-rise grid multiply to less
# of one rounding; the interpreter truncates to bfloat16 where torch and a GPU round
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}


def activations(tokens: int, d_in: int, scheme: Scheme, container: str = "int4") -> Coded:
    codes = torch.randint(0, 256, (tokens, d_in // 2), dtype=torch.uint8)
    if container != "int4":
        codes = int8_planes(codes, scheme)
    if container == "int8":
        codes = codes.transpose(1, 2).reshape(tokens, d_in)
    zero = torch.randint(0, 16, (tokens, 1)).float() if scheme == "asymmetric" else None
    return Coded(codes, torch.rand(tokens, 1) + 0.1, zero)


def weight(d_out: int, d_in: int, scheme: Scheme, groups: int = 1) -> Coded:
    codes = torch.randint(0, 256, (d_out, d_in // 2), dtype=torch.uint8)
    zero = torch.randint(-30, 40, (d_out, groups)).float() if scheme == "asymmetric" else None
    w = Coded(codes, torch.rand(d_out, groups) + 0.1, zero)
    return w._replace(sums=weight_sums(w, scheme))


def unscaled(packed: Any) -> Any:
    return packed._replace(scale=torch.ones_like(packed.scale))


def levels(codes: Tensor, zero: Tensor | None, scheme: Scheme, n: int) -> Tensor:
    """Twice the levels of codes in any container, int64 (rows, n), by the framework's unpacking."""
    if codes.dtype == torch.uint8:
        codes = unpack(codes, n, signed=scheme != "asymmetric")
    elif codes.dim() == 3:
        codes = codes.transpose(1, 2).flatten(1)
    doubled = 2 * codes.long() + (scheme == "midrise")
    return doubled if zero is None else doubled - 2 * zero.long()


def call(run: Any, x: Coded, w: Coded, **kwargs: Any) -> Tensor:
    kwargs = {name: v.to(run.device) if isinstance(v, Tensor) else v for name, v in kwargs.items()}
    y: Tensor = run(int4_matmul, x, w, **kwargs)
    return y


def assert_within(y: Tensor, x: Coded, w: Coded, x_scheme: Scheme, w_scheme: Scheme, **more: Any) -> None:
    """|y - float64| <= rounding of the output + 2^-24 (adds + 6) of the sum of all magnitudes that are added up.

    Within a group all is integer and exact; there are at most d_in / 64 + 1 float32 additions, and six more operations.
    An asymmetric code may count up to 15, whatever it is: the kernel shifts it and its zero.
    """
    expected = int4_matmul_reference(x, w, x_scheme=x_scheme, w_scheme=w_scheme, **more)
    d_in = 2 * w.codes.shape[-1]

    def magnitudes(packed: Any, scheme: Scheme) -> Tensor:
        rows, scale = len(packed.codes), packed.scale.double()
        size = levels(packed.codes, None, scheme, d_in).abs().double().view(rows, scale.shape[1], -1) / 2
        if packed.zero is not None:
            size = 15 + packed.zero.double().abs().unsqueeze(-1).expand_as(size)
        sizes: Tensor = size * scale.unsqueeze(-1)
        return sizes.flatten(1)

    total = magnitudes(x, x_scheme) @ magnitudes(w, w_scheme).T
    for name in ("bias", "residual"):
        total = total + (0 if more.get(name) is None else more[name].double().abs())
    bound = (d_in / 64 + 7) * 2.0**-24 * total + SMALLEST
    if y.dtype != torch.float32:
        bound += UNIT[y.dtype] * expected.abs()
    excess = (y.double() - expected).abs() - bound
    assert not bool(torch.isnan(excess).any()), "NaN"
    assert float(excess.max()) <= 0, f"{int((excess > 0).sum())} of {excess.numel()} beyond the bound"


@every_container
@every_x
@every_w
@every_form
def test_sums_are_exact_integers(run: Any, form: str, w_scheme: Scheme, x_scheme: Scheme, container: str) -> None:
    """Scales of 1: four times the result is an integer below 2^24. Sizes fill no block; rows are split in decode."""
    x, w = unscaled(activations(5, 214, x_scheme, container)), unscaled(weight(37, 214, w_scheme))
    w = w._replace(zero=None if w.zero is None else w.zero.clamp(0, 15))
    w = w._replace(sums=weight_sums(w, w_scheme))
    exact = levels(x.codes, x.zero, x_scheme, 214) @ levels(w.codes, w.zero, w_scheme, 214).T
    y = call(run, x, w, x_scheme=x_scheme, w_scheme=w_scheme, form=form, dtype=torch.float32)
    assert torch.equal((4 * y.double()).long(), exact)
    twin = int4_matmul(x, w, x_scheme=x_scheme, w_scheme=w_scheme, dtype=torch.float32, backend="torch")
    assert torch.equal((4 * twin.double()).long(), exact)


@pytest.mark.parametrize(
    ("tokens", "d_out", "d_in", "form"),
    [
        (1, 1, 2, "auto"),
        (1, 65, 192, "decode"),
        (17, 32, 66, "decode"),
        (64, 33, 640, "decode"),
        (33, 31, 62, "prefill"),
        (65, 70, 130, "auto"),
        (150, 70, 34, "prefill"),
        (1, 96, 64, "prefill"),
    ],
)
def test_any_size(run: Any, tokens: int, d_out: int, d_in: int, form: str) -> None:
    """The torch path has the same bits: every operation but two products by scales is exact."""
    x, w = activations(tokens, d_in, "asymmetric"), weight(d_out, d_in, "midrise")
    schemes: dict[str, Any] = {"x_scheme": "asymmetric", "w_scheme": "midrise"}
    y = call(run, x, w, form=form, dtype=torch.float32, **schemes)
    assert_within(y, x, w, **schemes)
    assert torch.equal(y, int4_matmul(x, w, dtype=torch.float32, backend="torch", **schemes))


@pytest.mark.parametrize("dtype", list(UNIT), ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("groups", [1, 5])
@every_form
def test_epilogue_in_every_output_dtype(run: Any, form: str, groups: int, dtype: torch.dtype) -> None:
    x, w = activations(7, 320, "midrise"), weight(40, 320, "midrise", groups)
    bias, residual = (10 * torch.randn(40)).to(dtype), (10 * torch.randn(7, 40)).to(dtype)
    y = call(run, x, w, x_scheme="midrise", w_scheme="midrise", bias=bias, residual=residual, dtype=dtype, form=form)
    assert y.dtype == dtype
    assert_within(y, x, w, "midrise", "midrise", bias=bias, residual=residual)


@pytest.mark.parametrize("size", [2, 30, 64, 96])
@pytest.mark.parametrize("schemes", [*((s, s) for s in SCHEMES), ("asymmetric", "midrise")], ids="/".join)
def test_groups(run: Any, schemes: tuple[Scheme, Scheme], size: int) -> None:
    """Sizes below, at and between the depths of a block."""
    x_scheme, w_scheme = schemes
    x, w = activations(3, 6 * size, x_scheme, "int8_planes"), weight(35, 6 * size, w_scheme, 6)
    w = w._replace(scale=w.scale.half())
    w = w._replace(sums=weight_sums(w, w_scheme))
    y = call(run, x, w, x_scheme=x_scheme, w_scheme=w_scheme, dtype=torch.float32)
    assert_within(y, x, w, x_scheme, w_scheme)


@every_container
@every_x
@every_w
def test_layers_of_the_framework(run: Any, w_scheme: Scheme, x_scheme: Scheme, container: Container) -> None:
    """What rotate_quantize and the weight quantizer write, with an all-zero row and one huge value in each."""
    x, matrix = torch.randn(6, 96), torch.randn(48, 96)
    x[1], matrix[3] = 0, 0
    x[2, 5], matrix[4, 6] = 1e20, 1e10
    quantized = weight_quantizer(4, w_scheme, group_size=48, clip=1.0).quantize(matrix)
    w = Coded(pack(quantized.codes, signed=w_scheme != "asymmetric"), quantized.scale, quantized.zero)
    w = w._replace(sums=weight_sums(w, w_scheme))
    packed = rotate_quantize(x, None, None, scheme=x_scheme, container=container)
    expected = activation_quantizer(4, x_scheme)(x).double() @ quantized.dequantize().double().T
    y = call(run, packed, w, x_scheme=x_scheme, w_scheme=w_scheme, dtype=torch.float32)
    assert_within(y, packed, w, x_scheme, w_scheme)
    unit = packed.scale.double() * (quantized.scale.double().sum(1) * 48)
    assert bool(((y.double() - expected).abs() <= 1e-5 * 15 * 15 * unit + SMALLEST).all())
    assert x_scheme != "symmetric" or not y[1].any()
    assert w_scheme != "symmetric" or x_scheme == "asymmetric" or not y[:, 3].any()


@every_form
def test_nan_stays_in_its_token_and_its_output_feature(run: Any, form: str) -> None:
    x, w = activations(5, 128, "symmetric"), weight(34, 128, "symmetric")
    x.scale[2], w.scale[7] = torch.nan, torch.inf
    clean = int4_matmul(x, w, dtype=torch.float32, backend="torch")
    y = call(run, x, w, dtype=torch.float32, form=form)
    assert y[2].isnan().all()
    assert not y[[0, 1, 3, 4], 7].isfinite().any()
    keep = [i for i in range(34) if i != 7]
    assert y[[0, 1, 3, 4]][:, keep].isfinite().all()
    torch.testing.assert_close(y, clean, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("container", ["int4", "int8_planes"])
@pytest.mark.parametrize("groups", [1, 3])
@every_form
def test_kernel_writes_within_its_output_and_reads_within_its_inputs(
    run: Any, guarded: Callable[..., Any], form: str, groups: int, container: str
) -> None:
    """Bands of NaN, or of codes that would change sums, around what is read; of 7 around what is written."""
    tokens, d_out, d_in = 3, 35, 198
    x, w = activations(tokens, d_in, "asymmetric", container), weight(d_out, d_in, "asymmetric", groups)
    parts = [(f"{operand}.{k}", v) for operand, coded in (("x", x), ("w", w)) for k, v in coded._asdict().items()]
    tensors = {name: value for name, value in parts if value is not None}
    tensors |= {"bias": torch.randn(d_out), "residual": torch.randn(tokens, d_out)}
    buffers = {}
    for name, value in tensors.items():
        buffers[name] = guarded(tuple(value.shape), value.dtype, torch.nan if value.is_floating_point() else 119)
        buffers[name].inside.copy_(value)
    out = guarded((tokens, d_out), torch.float32, 7.0)
    inside = {name: buffer.inside for name, buffer in buffers.items()}
    run(
        int4_matmul,
        Coded(inside["x.codes"], inside["x.scale"], inside["x.zero"]),
        Coded(*(inside[f"w.{name}"] for name in w._fields)),
        x_scheme="asymmetric",
        w_scheme="asymmetric",
        bias=inside["bias"],
        residual=inside["residual"],
        out=out.inside,
        form=form,
    )
    out.assert_untouched("out")
    for name, buffer in buffers.items():
        if not tensors[name].is_floating_point():  # NaN is not equal to itself
            buffer.assert_untouched(name)
    more = {"bias": tensors["bias"], "residual": tensors["residual"]}
    assert_within(out.inside.cpu(), x, w, "asymmetric", "asymmetric", **more)


def test_strided_rows_and_leading_shapes(run: Any) -> None:
    x, w = activations(6, 128, "symmetric"), weight(33, 128, "symmetric")
    wide = torch.full((6, 80), 119, dtype=torch.uint8)
    wide[:, 8:72] = x.codes
    shaped = Coded(wide.view(2, 3, 80)[..., 8:72], x.scale.view(2, 3, 1), None)
    residual = torch.randn(33, 6).T
    y = call(run, shaped, w, residual=residual.reshape(2, 3, 33), dtype=torch.float32)
    assert y.shape == (2, 3, 33)
    assert_within(y.flatten(0, 1), x, w, "symmetric", "symmetric", residual=residual)


def test_a_second_decode_call_finds_what_the_first_left(run: Any) -> None:
    x, w = activations(4, 640, "symmetric"), weight(64, 640, "symmetric")
    first, second = (call(run, x, w, form="decode", dtype=torch.float32) for _ in range(2))
    assert torch.equal(first, second)


@every_container
def test_no_tokens(run: Any, container: str) -> None:
    assert call(run, activations(0, 64, "symmetric", container), weight(8, 64, "symmetric")).shape == (0, 8)


@every_w
def test_weights_that_are_unpacked_already(w_scheme: Scheme) -> None:
    """On the torch path."""
    x, w = activations(5, 96, "asymmetric"), weight(37, 96, w_scheme, 2)
    planes = w._replace(codes=int8_planes(w.codes, w_scheme))
    assert torch.equal(planes.codes.transpose(1, 2).flatten(1), unpack(w.codes, 96, signed=w_scheme != "asymmetric"))
    assert torch.equal(weight_sums(planes, w_scheme), w.sums if w.sums is not None else torch.empty(0))
    for weights in (w, planes):
        y = int4_matmul(x, weights, x_scheme="asymmetric", w_scheme=w_scheme, dtype=torch.float32)
        assert_within(y, x, weights, "asymmetric", w_scheme)


def test_symmetric_activations_of_eight_bits(run: Any) -> None:
    x, w = activations(5, 512, "symmetric", "int8_planes"), unscaled(weight(40, 512, "symmetric"))
    x = unscaled(x._replace(codes=torch.randint(-128, 128, x.codes.shape, dtype=torch.int8)))
    exact = levels(x.codes, None, "symmetric", 512) @ levels(w.codes, None, "symmetric", 512).T
    assert torch.equal(4 * call(run, x, w, dtype=torch.float32).long(), exact)
    assert torch.equal(4 * int4_matmul(x, w, dtype=torch.float32, backend="torch").long(), exact)


def test_largest_sums_stay_in_int32(run: Any) -> None:
    """Every product is 2^14 in the units of the sum: 8192 of them are 2^27."""
    x = Coded(torch.full((1, 4096), 0x88, dtype=torch.uint8), torch.ones(1, 1), None)
    w = Coded(torch.full((2, 4096), 0x88, dtype=torch.uint8), torch.ones(2, 1))
    assert torch.equal(call(run, x, w, dtype=torch.float32), torch.full((1, 2), 64.0 * 8192))
    assert torch.equal(int4_matmul(x, w, dtype=torch.float32, backend="torch"), torch.full((1, 2), 64.0 * 8192))


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    d_out=st.integers(1, 70),
    groups=st.integers(1, 4),
    half=st.integers(1, 20),
    x_scheme=st.sampled_from(SCHEMES),
    w_scheme=st.sampled_from(SCHEMES),
    container=st.sampled_from(CONTAINERS),
    dtype=st.sampled_from(list(UNIT)),
    adds=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_torch_path_for_any_size(
    tokens: int,
    d_out: int,
    groups: int,
    half: int,
    x_scheme: Scheme,
    w_scheme: Scheme,
    container: str,
    dtype: torch.dtype,
    adds: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    d_in = 2 * half * groups
    x, w = activations(tokens, d_in, x_scheme, container), weight(d_out, d_in, w_scheme, groups)
    more: dict[str, Any] = {"bias": torch.randn(d_out), "residual": torch.randn(tokens, d_out)} if adds else {}
    y = int4_matmul(x, w, x_scheme=x_scheme, w_scheme=w_scheme, dtype=dtype, backend="torch", **more)
    assert_within(y, x, w, x_scheme, w_scheme, **more)


def test_torch_path_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from sq.kernels.int4_matmul import blocked

    monkeypatch.setattr(blocked, "_CPU_BLOCK", 1)
    monkeypatch.setattr(blocked, "_CPU_SUMS", 1)
    x, w = activations(150, 64, "asymmetric"), weight(200, 64, "asymmetric", 2)
    bias, residual = torch.randn(200), torch.randn(150, 200)
    y = int4_matmul(
        x, w, x_scheme="asymmetric", w_scheme="asymmetric", bias=bias, residual=residual, dtype=torch.float32
    )
    assert_within(y, x, w, "asymmetric", "asymmetric", bias=bias, residual=residual)


@pytest.mark.parametrize("shape", [(4096, 4096), (22016, 4096), (4096, 11008), (57344, 8192), (64, 96)], ids=str)
@pytest.mark.parametrize("group", [None, 32, 96, 128])
@pytest.mark.parametrize("tokens", [1, 16, 64, 100, 4096])
def test_launches_fit_an_sm(shape: tuple[int, int], group: int | None, tokens: int) -> None:
    """Threads, accumulators and shared memory by hand; no mask where the least depth divides a group."""
    d_out, d_in = shape
    group = d_in if group is None or d_in % group else group
    decode = tokens <= DECODE_TOKENS
    sizes = (decode_tokens(tokens), True) if decode else (1 << (tokens - 1).bit_length(), False)
    launches = (decode_launches if decode else prefill_launches)(
        Shape(d_out, d_in // 2, group // 2, *sizes, group < d_in), 132
    )
    assert launches
    for item in launches:
        stage = item.block_d * (item.block_o + item.block_t * (1 if decode else 2))
        assert (group // 2) % 32 or (group // 2) % item.block_d == 0
        assert item.block_o * item.block_t / (32 * item.warps) <= 128
        assert item.programs_per_sm * item.stages * stage <= 227 * 1024
        assert item.block_t >= tokens or not decode


X, W = activations(3, 12, "symmetric"), weight(4, 12, "symmetric")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w": W._replace(codes=W.codes.to(torch.int32))}, r"w.codes is torch.int32 \(4, 6\); it must be uint8"),
        ({"w": W._replace(codes=torch.ones(4, 13, dtype=torch.int8))}, "with an even d_in > 0"),
        (
            {"x": X._replace(codes=torch.ones(3, 13, dtype=torch.int8))},
            r"d_in = 12 .* int8 \(3, 12\) or \(3, 2, 6\)",
        ),
        ({"x": X._replace(codes=X.codes[:, :5])}, r"x.codes is torch.uint8 \(3, 5\)"),
        ({"x": X._replace(scale=torch.ones(3))}, r"x.scale is torch.float32 \(3,\); it must be floating-point"),
        ({"x": X._replace(scale=torch.ones(2, 1))}, r"a scale of \(2, 1\)"),
        ({"w": W._replace(scale=torch.ones(4, 5))}, "even number d_in / G"),
        ({"w": W._replace(scale=torch.ones(4, 4))}, "even number d_in / G"),
        ({"w": W._replace(scale=torch.ones(3, 1))}, r"w.scale is \(3, 1\); it must be \(4, G\)"),
        ({"w": W._replace(sums=torch.ones(3))}, r"w.sums is torch.float32 \(3,\)"),
        ({"w_scheme": "asymmetric"}, "w.zero is None for w_scheme='asymmetric'"),
        ({"x": X._replace(zero=X.scale)}, "x.zero is given for x_scheme='symmetric'"),
        ({"x": X._replace(zero=torch.ones(3)), "x_scheme": "asymmetric"}, r"x.zero is \(3,\)"),
        (
            {"x": X._replace(zero=X.scale), "x_scheme": "asymmetric", "w": W._replace(sums=None)},
            r"compute weight_sums\(w, w_scheme\) once",
        ),
        ({"x_scheme": "ternary"}, "x_scheme is 'ternary'; use one of symmetric, asymmetric, midrise"),
        ({"w_scheme": "ternary"}, "w_scheme is 'ternary'"),
        ({"form": "wide"}, "use one of auto, prefill, decode"),
        ({"dtype": torch.float64}, "the output is torch.float64; use one of torch.bfloat16"),
        ({"bias": torch.ones(3)}, r"bias is torch.float32 \(3,\)"),
        ({"residual": torch.ones(3, 4, dtype=torch.int8)}, "residual is torch.int8"),
        ({"out": torch.ones(4, 3)}, r"it must be torch.float32 \(3, 4\)"),
        ({"out": torch.ones(4, 3).T}, "contiguous: False"),
        ({"backend": "triton"}, "interpreter is off"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if "interpreter" in message:
        pytest.importorskip("triton")
    with pytest.raises(ValueError, match=message):
        int4_matmul(**{"x": X, "w": W, **arguments})


def test_what_only_some_forms_and_backends_take(run: Any) -> None:
    with pytest.raises(ValueError, match="got 65 tokens; it takes up to 64"):
        int4_matmul(activations(65, 12, "symmetric"), W, form="decode")
    both = torch.ones(3, 4)
    with pytest.raises(ValueError, match="out is the residual"):
        int4_matmul(X, W, residual=both, out=both)
    huge = Coded(torch.zeros(1, 2**16, dtype=torch.uint8), torch.ones(1, 1))
    with pytest.raises(ValueError, match="exact up to 131070: split the features"):
        int4_matmul(activations(1, 2**17, "symmetric"), huge)
    midrise = activations(3, 12, "midrise", "int8")
    with pytest.raises(ValueError, match="mid-rise activations in int8 need the sums"):
        call(run, midrise, W._replace(sums=None), x_scheme="midrise")
    with pytest.raises(ValueError, match="packed weights, not int8"):
        call(run, X, W._replace(codes=int8_planes(W.codes, "symmetric")))


def test_any_kind_of_quantized_tensor_is_taken() -> None:
    """One with codes, scale and zero, and more that the operation does not look at."""
    x, w = activations(3, 64, "asymmetric"), weight(5, 64, "symmetric")
    own = SimpleNamespace(codes=x.codes, scale=x.scale, zero=x.zero, format="int4")
    schemes: dict[str, Any] = {"x_scheme": "asymmetric", "w_scheme": "symmetric"}
    assert torch.equal(int4_matmul(own, w, **schemes), int4_matmul(x, w, **schemes))
    other = SimpleNamespace(codes=w.codes, scale=w.scale, zero=w.zero)
    assert torch.equal(weight_sums(other, "symmetric"), weight_sums(w, "symmetric"))
    assert torch.equal(int4_matmul_reference(own, other, **schemes), int4_matmul_reference(x, w, **schemes))
