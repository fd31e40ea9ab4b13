"""The workspace form of int4_matmul: the bits of the torch path, what it takes, and who chooses it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sq.formats.packing import pack
from sq.kernels.coded import Coded
from sq.kernels.int4_matmul import int4_matmul, int4_matmul_reference, int8_planes, tiles, weight_sums
from sq.kernels.int4_matmul.tiles import Shape, workspace_launches
from sq.kernels.schemes import Scheme


def activations(tokens: int, d_in: int, scheme: Scheme, container: str = "int8_planes") -> Coded:
    codes = int8_planes(torch.randint(0, 256, (tokens, d_in // 2), dtype=torch.uint8), scheme)
    if container == "int8":
        codes = codes.transpose(1, 2).reshape(tokens, d_in)
    zero = torch.randint(0, 16, (tokens, 1)).float() if scheme == "asymmetric" else None
    return Coded(codes, torch.rand(tokens, 1) + 0.1, zero)


def weight(d_out: int, d_in: int, scheme: Scheme) -> Coded:
    w = Coded(torch.randint(0, 256, (d_out, d_in // 2), dtype=torch.uint8), torch.rand(d_out, 1) + 0.1, None)
    return w._replace(sums=weight_sums(w, scheme))


@pytest.mark.parametrize("container", ["int8", "int8_planes"])
@pytest.mark.parametrize("x_scheme", ["symmetric", "asymmetric", "midrise"])
@pytest.mark.parametrize("w_scheme", ["symmetric", "midrise"])
@pytest.mark.parametrize(("tokens", "d_out", "d_in"), [(5, 37, 214), (18, 64, 128), (1, 33, 66)], ids=str)
def test_it_has_the_bits_of_the_torch_path(
    run: Any, tokens: int, d_out: int, d_in: int, w_scheme: Scheme, x_scheme: Scheme, container: str
) -> None:
    """Sizes below, at and beyond the blocks; no bias, so that all but two products by scales is exact."""
    x, w = activations(tokens, d_in, x_scheme, container), weight(d_out, d_in, w_scheme)
    schemes: dict[str, Any] = {"x_scheme": x_scheme, "w_scheme": w_scheme}
    y = run(int4_matmul, x, w, form="workspace", dtype=torch.float32, **schemes)
    assert torch.equal(y, int4_matmul(x, w, dtype=torch.float32, backend="torch", **schemes))
    expected = int4_matmul_reference(x, w, **schemes)
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_epilogue(run: Any, dtype: torch.dtype) -> None:
    x, w = activations(7, 320, "midrise"), weight(40, 320, "midrise")
    added = {"bias": (10 * torch.randn(40)).to(dtype), "residual": (10 * torch.randn(7, 40)).to(dtype)}
    schemes: dict[str, Any] = {"x_scheme": "midrise", "w_scheme": "midrise"}
    on_device = {name: value.to(run.device) for name, value in added.items()}
    y = run(int4_matmul, x, w, form="workspace", dtype=dtype, **schemes, **on_device)
    expected = int4_matmul_reference(x, w, **schemes, **added)
    assert y.dtype == dtype
    unit = {torch.float32: 1e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}[dtype]  # the interpreter truncates
    torch.testing.assert_close(y.double(), expected, rtol=unit, atol=1e-5 * float(expected.abs().max()))


def test_extreme_codes_do_not_overflow(run: Any) -> None:
    """-8 everywhere: 16 times a level is -128, the least byte."""
    codes = torch.full((33, 256), -8)
    w = Coded(pack(codes, signed=True), torch.ones(33, 1), None)
    x = Coded(torch.full((17, 2, 128), -128, dtype=torch.int8), torch.ones(17, 1), None)
    y = run(int4_matmul, x, w, form="workspace", dtype=torch.float32)
    assert torch.equal(y, torch.full((17, 33), 256.0 * 8 * 128))


def test_what_it_does_not_take_is_refused() -> None:
    x, w = activations(3, 64, "symmetric"), weight(8, 64, "symmetric")
    packed = Coded(torch.zeros(3, 32, dtype=torch.uint8), x.scale, None)
    with pytest.raises(ValueError, match="activations are packed"):
        int4_matmul(packed, w, form="workspace")
    with pytest.raises(ValueError, match="2 groups a row"):
        int4_matmul(x, w._replace(scale=torch.ones(8, 2)), form="workspace")
    with pytest.raises(ValueError, match="weights have zeros"):
        int4_matmul(x, w._replace(zero=torch.ones(8, 1)), w_scheme="asymmetric", form="workspace")


@pytest.mark.parametrize(
    ("count", "takes", "expected"), [(64, True, "decode"), (65, False, "prefill"), (65, True, "2")]
)
def test_auto_asks_the_clock_where_both_forms_can_run(
    monkeypatch: pytest.MonkeyPatch, count: int, takes: bool, expected: str
) -> None:
    pytest.importorskip("triton")
    from sq.kernels.int4_matmul import launch

    asked: list[Any] = []

    def slower_first(name: str, key: dict[str, Any], calls: list[Any]) -> int:
        asked.append((name, key, [call.args[0] for call in calls]))
        return 1

    monkeypatch.setattr(launch, "fastest", slower_first)
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    meta = {"T": count, "T_BUCKET": 128, "D_IN": 64, "D_OUT": 8}
    meta |= dict.fromkeys(("HAS_X_ZERO", "HAS_BIAS", "HAS_RESIDUAL"), False)
    found = launch._form([torch.empty(count, 8)], meta, takes)
    assert found == ("workspace" if expected == "2" else expected)
    assert [(name, forms) for name, _, forms in asked] == [("int4_matmul form", ["prefill", "workspace"])] * bool(asked)
    assert bool(asked) == (expected == "2")
    assert not asked or ("T" not in asked[0][1] and asked[0][1]["T_BUCKET"] == 128)


@pytest.mark.parametrize("shape", [(4096, 4096), (22016, 4096), (4096, 11008), (57344, 8192), (64, 96)], ids=str)
@pytest.mark.parametrize("tokens", [128, 4096])
def test_launches_fit_an_sm(shape: tuple[int, int], tokens: int) -> None:
    """Threads, accumulators and shared memory by hand; no mask where 64 divides a row."""
    d_out, d_in = shape
    launches = workspace_launches(Shape(d_out, d_in // 2, d_in // 2, tokens, False, False), 132)
    assert launches
    assert set(launches) <= set(tiles.WORKSPACE)
    for item in launches:
        assert d_in % item.block_d == 0 or d_in % 64
        assert item.block_o * item.block_t / (32 * item.warps) <= 128
        staged = item.stages * item.block_d * (item.block_o + item.block_t)
        assert item.programs_per_sm * max(staged, 4 * item.block_o * item.block_t) <= 227 * 1024
