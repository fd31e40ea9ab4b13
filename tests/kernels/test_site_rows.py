"""The compiled passes of a site on a CPU give the codes of the modules: norm or gate, transform, quantizer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sq.formats.activation import ActivationQuantizer, Clip
from sq.formats.format import integer
from sq.kernels import site_rows
from sq.kernels.coded import Coded
from sq.kernels.int4_matmul import CpuWeight, weight_sums
from sq.kernels.rms_norm import rms_norm
from sq.kernels.rotate_quantize import Norm
from sq.kernels.schemes import Scheme
from sq.kernels.site_rows import RowForm, SiteRows
from sq.kernels.site_rows.decode_step import DecodeStep

SCHEMES: tuple[Scheme, ...] = ("symmetric", "asymmetric", "midrise")


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    before = torch.get_num_threads()
    monkeypatch.setattr(site_rows, "_PART_TOKENS", 1)
    monkeypatch.setattr(site_rows, "_CHUNK", 1000)  # many tokens in several chunks
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def orthogonal(n: int) -> Tensor:
    return torch.linalg.qr(noise(n, n, seed=n).float())[0].to(torch.bfloat16)


def form_of_kind(kind: str, n1: int, n2: int, rank: int = 3) -> RowForm:
    n = n1 * n2
    diagonal = noise(n, seed=5) if kind == "diagonal" else None
    basis, change = (orthogonal(n)[:rank].contiguous(), noise(rank, n, seed=6) / 4) if kind != "none" else (None, None)
    blocks = {"blocks": noise(n1, n2, n2, seed=7) / 4, "kronecker": orthogonal(n2)}.get(kind)
    r1 = None if kind in ("none", "diagonal") else orthogonal(n1)
    return RowForm(diagonal, basis, change, blocks, r1, n1)


def by_modules(x: Tensor, up: Tensor | None, norm: Norm | None, form: RowForm) -> Tensor:
    """bfloat16 after every step, as the modules have it."""
    if norm is not None:
        x = rms_norm(x, norm.gain, norm.eps)
    if up is not None:
        x = torch.nn.functional.silu(x) * up
    if form.diagonal is not None:
        x = x * form.diagonal
    if form.basis is not None and form.change is not None:
        x = x + (x @ form.basis.T) @ form.change
    rows = x.unflatten(-1, (form.n1, -1))
    if form.blocks is not None and form.blocks.dim() == 3:
        rows = torch.einsum("...ik,ikc->...ic", rows, form.blocks)
    elif form.blocks is not None:
        rows = rows @ form.blocks
    if form.r1 is not None:
        rows = form.r1.T @ rows
    return rows.flatten(-2)


def assert_nearly(found: Tensor, expected: Tensor) -> None:
    """Float32 sums in another order: now and then the neighbouring bfloat16, of the larger terms of a sum."""
    differ = found != expected
    assert differ.float().mean() < 5e-3
    torch.testing.assert_close(found.float(), expected.float(), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("kind", ["none", "diagonal", "low rank", "blocks", "kronecker"])
@pytest.mark.parametrize("front", ["nothing", "norm", "gate"])
@pytest.mark.parametrize("tokens", [2, 37])
@pytest.mark.parametrize(("n1", "n2"), [(3, 22), (5, 8)])
def test_values(kind: str, front: str, tokens: int, n1: int, n2: int, threads: int) -> None:
    form, n = form_of_kind(kind, n1, n2), n1 * n2
    x, up = noise(tokens, 2 * n)[:, :n], noise(tokens, n, seed=1) if front == "gate" else None
    norm = Norm(1e-5, noise(n, seed=2)) if front == "norm" else None
    rows = SiteRows(n, norm, form, "symmetric", 4)
    assert_nearly(rows.transformed(x, up), by_modules(x, up, norm, form))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("clip", [1.0, 0.83, (0.9, 0.7)])
@pytest.mark.parametrize("tokens", [2, 37])
def test_codes_are_the_quantizers(scheme: Scheme, clip: Clip, tokens: int, threads: int) -> None:
    """Codes, scales and zeros of what `transformed` gives are the same bits; rows of zeros and of NaN as well."""
    form, n = form_of_kind("blocks", 3, 22), 66
    x = noise(tokens, n) * 3
    x[0] = 0
    ends, factor = (clip, 1.0) if isinstance(clip, tuple) else ((1.0, 1.0), clip)
    assert not isinstance(factor, str)
    rows = SiteRows(n, None, form, scheme, 4, factor, ends)
    expected = ActivationQuantizer(integer(4, scheme), clip).encode(rows.transformed(x))
    found = rows.codes(x)
    planes = expected.codes.to(torch.int8).unflatten(-1, (-1, 2)).transpose(-1, -2)
    assert torch.equal(found.codes, planes)
    assert torch.equal(found.scale, expected.scale)
    assert (found.zero is None) == (expected.zero is None)
    if found.zero is not None and expected.zero is not None:
        assert torch.equal(found.zero, expected.zero)
    x[1, 3] = torch.inf
    scale = rows.codes(x).scale
    assert scale[1].isnan()
    assert not scale[0].isnan()


@pytest.mark.parametrize("x_scheme", SCHEMES)
@pytest.mark.parametrize("w_scheme", SCHEMES)
@pytest.mark.parametrize("bias", [False, True])
def test_one_call_gives_the_bits_of_two(x_scheme: Scheme, w_scheme: Scheme, bias: bool) -> None:
    form, n, d_out = form_of_kind("blocks", 3, 22), 66, 41
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (d_out, n // 2), dtype=torch.uint8, generator=generator)
    zero = torch.full((d_out, 1), 5.0) if w_scheme == "asymmetric" else None
    w = Coded(codes, torch.rand(d_out, 1, generator=generator) + 0.1, zero)
    weight = CpuWeight(w._replace(sums=weight_sums(w, w_scheme)), w_scheme, noise(d_out) if bias else None)
    rows = SiteRows(n, Norm(1e-5, noise(n, seed=2)), form, x_scheme, 4)
    x, before = noise(1, 3, n), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step = DecodeStep(rows, weight, x_scheme)
        assert step.takes(x, None)
        assert torch.equal(step.product(x, None), weight.product(rows.codes(x), x_scheme, torch.bfloat16))
    finally:
        torch.set_num_threads(before)
