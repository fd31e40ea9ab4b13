"""RMSNorm, SwiGLU and the low-rank balance in front of the rotation: against float64, and bit for bit as modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from quantizers import activation_quantizer
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import sq.kernels.rotate_quantize as rotate_quantize_module
from sq.formats.activation import clip_candidates
from sq.formats.elements import SCHEMES
from sq.formats.format import integer
from sq.kernels.coded import Coded
from sq.kernels.rotate_quantize import Norm, Residual, rotate_quantize
from sq.kernels.rotate_quantize.front import Front, front_reference
from sq.kernels.rotate_quantize.reference import rotate
from sq.kernels.schemes import Scheme
from sq.kernels.steps import LowRankStep
from sq.rotation.hadamard import random_orthogonal
from sq.rotation.low_rank import LowRank

HALVES = [torch.float16, torch.bfloat16]
ROTATIONS = {"none": (None, None), "both": (12, 20), "r1": (12, None), "r2": (None, 20)}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
every_rotation = pytest.mark.parametrize("sizes", ROTATIONS.values(), ids=ROTATIONS.keys())


def factors(sizes: tuple[int | None, int | None]) -> list[Tensor | None]:
    return [None if size is None else random_orthogonal(size, size).float() for size in sizes]


def low_rank(n: int, rank: int) -> LowRank:
    basis = torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64))[0]
    return LowRank(torch.rand(n, dtype=torch.float64) + 0.5, basis, 2 * torch.eye(rank) + torch.rand(rank, rank))


def balance_of(transform: LowRank) -> LowRankStep:
    diagonal, basis, change = (transform.get_buffer(name) for name in ("diagonal", "basis", "change"))
    return LowRankStep(diagonal.float(), basis.T.float(), change.float())


@every_rotation
@pytest.mark.parametrize("gain", [False, True], ids=["no gain", "gain"])
def test_norm_in_front(run: Any, assert_rounded: Any, sizes: tuple[int | None, int | None], gain: bool) -> None:
    """Five tokens of very different size; one is so small that eps decides."""
    x = torch.randn(5, 240) * torch.tensor([1.0, 1e3, 1e-2, 1e-5, 30.0])[:, None]
    norm = Norm(1e-6, torch.randn(240) if gain else None)
    r1, r2 = factors(sizes)
    h = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    y = rotate(h if norm.gain is None else h * norm.gain.double(), r1, r2, torch.float64)
    assert_rounded(run(rotate_quantize, x, r1, r2, norm=norm, container="int8"), y, "symmetric")


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
@every_scheme
def test_norm_rounds_where_the_module_rounds(run: Any, scheme: Scheme, dtype: torch.dtype) -> None:
    """Bit for bit LlamaRMSNorm and the framework's quantizer. A mean square of 4 makes 1 / rms exact."""
    n = 64
    values = torch.tensor([5, 2, 1, 1, -1, 0, 0, 0]).repeat(n // 8)  # squares sum to 32
    x = torch.stack([values[torch.randperm(n)], -values, values]).to(dtype)
    module = LlamaRMSNorm(n, eps=0.0).to(dtype)
    with torch.no_grad():
        module.weight.copy_(torch.randn(n))
        made = activation_quantizer(4, scheme).encode(module(x))
        codes, scale, zero = made.codes, made.scale, made.zero
    got = run(rotate_quantize, x, None, None, scheme=scheme, norm=Norm(0.0, module.weight.data), container="int8")
    assert torch.equal(got.codes, codes.to(torch.int8))
    assert torch.equal(got.scale, scale)
    assert zero is None or torch.equal(got.zero, zero)


def summed(x: Tensor, residual: Residual, backend: Any, **arguments: Any) -> tuple[Coded, Tensor]:
    """Codes and the sum, for a process that shares no memory with the caller."""
    return rotate_quantize(x, None, None, residual=residual, backend=backend, **arguments), residual.total


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("with_norm", [True, False], ids=["norm", "alone"])
def test_residual_is_added_where_a_decoder_layer_adds_it(run: Any, with_norm: bool, dtype: torch.dtype) -> None:
    """The sum bit for bit as torch adds; codes bit for bit those of the sum, handed in by itself."""
    wide = torch.randn(2, 5, 72)
    x, what = wide[..., :64].to(dtype), (30 * torch.randn(2, 5, 64)).to(dtype)  # rows of a wider tensor
    what[1, 2, 3] = torch.nan
    arguments: dict[str, Any] = {"scheme": "asymmetric", "container": "int8"}
    if with_norm:
        arguments["norm"] = Norm(1e-6, torch.randn(64).to(dtype))
    expected = run(rotate_quantize, x + what, None, None, **arguments)
    found, total = run(summed, x, Residual(what, torch.zeros_like(what)), **arguments)
    torch.testing.assert_close(total, x + what, rtol=0, atol=0, equal_nan=True)
    for got, wanted in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


def test_torch_twin_adds_the_residual_in_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotate_quantize_module, "_CPU_CHUNK", 3 * 16)
    x, what, norm = torch.randn(5, 2, 16), torch.randn(5, 2, 16), Norm(1e-6)
    total = torch.empty_like(x)
    found = rotate_quantize(x, None, None, norm=norm, residual=Residual(what, total))
    expected = rotate_quantize(x + what, None, None, norm=norm)
    assert torch.equal(total, x + what)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scale, expected.scale)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=["fp32", "fp16", "bf16"])
def test_torch_twin_of_the_norm_is_the_module(dtype: torch.dtype) -> None:
    x, module = (torch.randn(7, 96) * 9).to(dtype), LlamaRMSNorm(96, eps=1e-5).to(dtype)
    with torch.no_grad():
        module.weight.copy_(torch.randn(96))
        expected = module(x)
    assert torch.equal(front_reference(x, Front(Norm(1e-5, module.weight.data))).to(dtype), expected)


@every_scheme
@every_rotation
def test_swiglu_in_front(run: Any, assert_rounded: Any, sizes: tuple[int | None, int | None], scheme: Scheme) -> None:
    """gate and up as a fused projection leaves them: two halves of one row."""
    gate_up = torch.randn(5, 480) * 3
    gate, up = gate_up[:, :240], gate_up[:, 240:]
    r1, r2 = factors(sizes)
    g = gate.double()
    y = rotate(g / (1 + (-g).exp()) * up.double(), r1, r2, torch.float64)
    assert_rounded(run(rotate_quantize, gate, r1, r2, up=up, scheme=scheme, container="int8"), y, scheme)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=["fp32", "fp16", "bf16"])
def test_swiglu_where_exp_overflows_and_where_it_vanishes(run: Any, dtype: torch.dtype) -> None:
    """silu(g) is g for large g and -0 for very negative ones: the codes are those of the exact products."""
    gate = torch.tensor([[120.0, -120.0, 0.0, 64.0, 300.0, -1e4]]).to(dtype)
    up = torch.tensor([[1.5, 3.0, 2.0, -2.0, 0.25, 7.0]]).to(dtype)
    product = torch.tensor([[180.0, 0, 0, -128, 75, 0]])
    got = run(rotate_quantize, gate, None, None, up=up, container="int8")
    made = activation_quantizer(4).encode(product)
    codes, scale = made.codes, made.scale
    assert torch.equal(got.codes, codes)
    assert torch.equal(got.scale, scale)


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
def test_swiglu_rounds_where_the_module_rounds(run: Any, dtype: torch.dtype) -> None:
    """silu, then the product. Where exp differs in its last bit, a value rounds to its neighbour: few tokens may."""
    gate, up = (torch.randn(60, 24) * 2).to(dtype), torch.randn(60, 24).to(dtype)
    made = activation_quantizer(4).encode(torch.nn.functional.silu(gate) * up)
    codes, scale = made.codes, made.scale
    got = run(rotate_quantize, gate, None, None, up=up, container="int8")
    assert int((got.scale != scale).sum()) <= 2, "without a rounding between the two, a third of the peaks differ"
    assert int((got.codes != codes).any(-1).sum()) <= 4


@pytest.mark.parametrize("rank", [1, 5])
@every_rotation
def test_balance_in_front(run: Any, assert_rounded: Any, sizes: tuple[int | None, int | None], rank: int) -> None:
    x, transform, (r1, r2) = torch.randn(3, 240), low_rank(240, rank), factors(sizes)
    y = rotate(transform(x.double()), r1, r2, torch.float64)
    got = run(rotate_quantize, x, r1, r2, balance=balance_of(transform), container="int8")
    assert_rounded(got, y, "symmetric", precision=1e-3)


def test_a_balance_without_directions_is_its_diagonal(run: Any, assert_rounded: Any) -> None:
    x, d = torch.randn(3, 24), torch.rand(24) + 0.5
    got = run(rotate_quantize, x, None, None, balance=LowRankStep(d, d.new_empty(0, 24), d.new_empty(0, 24)))
    assert torch.equal(got.codes, rotate_quantize(x * d, None, None, backend="torch").codes)
    assert torch.equal(got.scale, rotate_quantize(x * d, None, None, backend="torch").scale)


@every_scheme
def test_everything_together_with_a_search(run: Any, assert_rounded: Any, scheme: Scheme) -> None:
    x, transform, (r1, r2) = torch.randn(3, 240), low_rank(240, 3), factors((12, 20))
    norm, clips = Norm(1e-6, torch.rand(240) + 0.5), clip_candidates(integer(4), 9)
    arguments: dict[str, Any] = {"scheme": scheme, "clip": clips, "norm": norm, "balance": balance_of(transform)}
    h = front_reference(x, Front(norm), torch.float64)
    y = rotate(transform(h), r1, r2, torch.float64)
    expected = rotate_quantize(y, None, None, scheme=scheme, clip=clips)  # which clips win
    full = rotate_quantize(y, None, None, scheme=scheme)
    got = run(rotate_quantize, x, r1, r2, container="int8", **arguments)
    assert_rounded(got, y, scheme, clip=(expected.scale / full.scale).double(), precision=1e-3)


def test_all_zero_tokens_huge_values_and_nan(run: Any) -> None:
    """Zeros stay zeros; squares that overflow make a token zero, in the module as well; NaN poisons its own token."""
    x = torch.randn(6, 24)
    x[0] = 0
    x[1, 3], x[2, 3], x[3, 4] = 1e30, torch.nan, torch.inf
    got = run(rotate_quantize, x, None, None, norm=Norm(1e-6), container="int8")
    assert not got.codes[:4].any()
    assert got.scale.isnan().flatten().tolist() == [False, False, True, True, False, False]
    assert got.scale[:2].tolist() == [[1.0], [1.0]]
    kept = run(rotate_quantize, x[4:], None, None, norm=Norm(1e-6), container="int8")
    assert torch.equal(kept.codes, got.codes[4:])

    up = torch.randn(6, 24)
    up[5, 0] = torch.nan
    got = run(rotate_quantize, x, None, None, up=up)
    assert got.scale.isnan().flatten().tolist() == [False, False, True, True, False, True]


@pytest.mark.parametrize("container", ["int4", "int8", "int8_planes"])
@pytest.mark.parametrize("rotated", [False, True], ids=["no rotation", "rotation"])
def test_kernel_stays_within_its_tensors(run: Any, guarded: Callable[..., Any], container: str, rotated: bool) -> None:
    """Bands of NaN around everything read, of 77 around everything written; sizes that fill no block."""
    tokens, n1, n2 = 3, 11, 18
    n = n1 * n2
    shapes = {"x": (tokens, n), "up": (tokens, n), "diagonal": (n,), "basis": (2, n), "change": (2, n)}
    shapes |= {"residual": (tokens, n)}
    shapes |= {"r1": (n1, n1), "r2": (n2, n2), "gain": (n,)}
    read = {name: guarded(shape, torch.float32, torch.nan) for name, shape in shapes.items()}
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    for name, buffer in read.items():
        buffer.inside.copy_(values[name])
    codes = {"int4": (tokens, n // 2), "int8": (tokens, n), "int8_planes": (tokens, 2, n // 2)}[container]
    written = {
        "total": guarded((tokens, n), torch.float32, 77.0),
        "codes": guarded(codes, torch.uint8 if container == "int4" else torch.int8, 77),
        "scale": guarded((tokens, 1), torch.float32, 77.0),
        "zero": guarded((tokens, 1), torch.float32, 77.0),
    }
    total, *parts = (buffer.inside for buffer in written.values())
    target = Coded(*parts)

    def arguments(source: Callable[[str], Tensor], step: str) -> dict[str, Any]:
        balance = LowRankStep(source("diagonal"), source("basis"), source("change"))
        front: dict[str, Any] = {"up": source("up")}
        if step == "norm":
            sums = total if source("x") is read["x"].inside else torch.empty(tokens, n)
            front = {"norm": Norm(1e-6, source("gain")), "residual": Residual(source("residual"), sums)}
        return {"scheme": "asymmetric", "container": container, "balance": balance, **front}

    for step in ("norm", "swiglu"):
        r1, r2 = (read["r1"].inside, read["r2"].inside) if rotated else (None, None)
        run(rotate_quantize, read["x"].inside, r1, r2, out=target, **arguments(lambda name: read[name].inside, step))
        for name, buffer in written.items():
            buffer.assert_untouched(name)
        clean = (values["r1"], values["r2"]) if rotated else (None, None)
        expected = rotate_quantize(values["x"], *clean, backend="torch", **arguments(values.__getitem__, step))
        torch.testing.assert_close(target.scale.cpu(), expected.scale, rtol=1e-3, atol=0)
        differing = (target.codes.cpu() != expected.codes).double().mean()
        assert float(differing) < 0.02, "float32 sums in another order move few codes across a rounding edge"


X = torch.ones(2, 12)


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ({"norm": Norm(1e-6), "up": X}, "not both"),
        ({"norm": Norm(-1.0)}, "norm.eps is -1.0"),
        ({"residual": Residual(X, torch.empty(2, 12)), "up": X}, "residual and up are both given"),
        ({"residual": Residual(torch.ones(2, 11), torch.empty(2, 12))}, r"residual.what is torch.float32 \(2, 11\)"),
        ({"residual": Residual(X.half(), torch.empty(2, 12))}, "residual.what is torch.float16"),
        ({"residual": Residual(X, torch.empty(12, 2).T)}, "contiguous"),
        ({"residual": Residual(torch.ones(2, 12), X)}, "residual.total is x or residual.what"),
        ({"norm": Norm(1e-6, torch.ones(11))}, r"norm.gain is torch.float32 \(11,\).*\(12,\)"),
        ({"up": torch.ones(2, 11)}, r"up is torch.float32 \(2, 11\)"),
        ({"up": X.half()}, "up is torch.float16 and the gate x is torch.float32"),
        ({"balance": LowRankStep(None, torch.ones(3, 12), X)}, r"balance.change is torch.float32 \(2, 12\)"),
        ({"balance": LowRankStep(torch.ones(3), X, X)}, r"balance.diagonal is torch.float32 \(3,\)"),
        ({"balance": LowRankStep(None, torch.ones(12), X)}, r"balance.basis is torch.float32 \(12,\)"),
        ({"norm": Norm(1e-6, torch.ones(12, device="meta"))}, "move norm.gain to x's device"),
        ({"container": "int2"}, "container is 'int2'; use one of int4, int8, int8_planes"),
        ({"ends": (1.0, 0.0)}, "pair of numbers"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(front: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rotate_quantize(X, None, None, **front)
