"""Both forms of int4_matmul compile for a Hopper GPU as they are meant to, which needs no GPU."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sass import resources

from sq.kernels.backend import interpreted
from sq.kernels.schemes import Scheme

SHARED_BYTES = 227 * 1024  # of an H100 or H200 block

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("triton") is None or find_spec("triton.backends.nvidia") is None,
        reason="no Triton that compiles for NVIDIA GPUs",
    ),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset"),
]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if interpreted():
        pytest.skip("with TRITON_INTERPRET set in this process there is nothing to compile")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compile_for_hopper(
    kernel: Any,
    block: tuple[int, int, int],
    warps: int,
    stages: int,
    schemes: tuple[Scheme, Scheme],
    capability: int = 90,
    **more: Any,
) -> Any:
    """Of a layer 4096 x 4096; pointers and rows begin at multiples of 16 bytes, as torch's do."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sq.kernels.int4_matmul import launch

    x_scheme, w_scheme = schemes
    constants: dict[str, Any] = dict(zip(("BLOCK_O", "BLOCK_T", "BLOCK_D"), block, strict=True))
    constants |= {"D_IN": 4096, "D_OUT": 4096, "GROUP_B": 2048, "X_PACKED": False, "X_FLIP": 0, "X_ASM": ""}
    if more.get("X_PACKED"):
        constants |= {"X_FLIP": launch._FLIP[x_scheme], "X_ASM": launch._unpacking(x_scheme)}
    constants |= {"W_FLIP": launch._FLIP[w_scheme], "W_ASM": launch._unpacking(w_scheme), "UNIT": 1 / 16}
    constants |= {"HAS_W_ZERO": w_scheme == "asymmetric", "HAS_X_ZERO": x_scheme == "asymmetric", "X_SHIFT": 0.0}
    constants |= {"HAS_BIAS": False, "HAS_RESIDUAL": False, "PROGRAMS_PER_SM": 1, "TILES_PER_BAND": 8, **more}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {
        "p_w": "*i8",
        "p_wide": "*i8",
        "p_x": "*i8",
        "p_bias": "*bf16",
        "p_residual": "*bf16",
        "p_y": "*bf16",
        "p_arrived": "*i32",
    }
    types |= {"p_partial": "*fp32" if constants.get("HAS_W_ZERO") or constants.get("GROUP_B", 2048) < 2048 else "*i32"}
    types |= {name: "*fp32" for name in kernel.arg_names if name.startswith("p_") and name not in types}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name.startswith("p_") or name == "stride_x"
    }
    source = ASTSource(kernel, signature, constants, aligned)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})


def assert_uses(compiled: Any, product: str) -> None:
    """Products take int8, and their first operand, the unpacked weights, from registers."""
    assert compiled.metadata.shared <= SHARED_BYTES
    ptx = compiled.asm["ptx"]
    products = re.findall(rf"{product}\S*\s*\{{[^}}]*\}},\s*(\S)", ptx)
    assert products, f"no {product}"
    assert set(products) == {"{"}, "the unpacked weights go through shared memory"
    assert "cp.async.cg.shared.global" in ptx, "loads of 16 bytes do not run ahead"


@pytest.mark.parametrize(
    ("block", "warps", "schemes", "more"),
    [
        ((128, 256, 64), 8, ("symmetric", "midrise"), {}),
        ((128, 128, 64), 8, ("asymmetric", "asymmetric"), {"HAS_BIAS": True, "HAS_RESIDUAL": True}),
        ((128, 128, 64), 8, ("midrise", "midrise"), {"X_PACKED": True, "GROUP_B": 64}),
    ],
    ids=["per channel", "asymmetric", "packed, groups"],
)
def test_prefill(block: tuple[int, int, int], warps: int, schemes: tuple[Scheme, Scheme], more: dict[str, Any]) -> None:
    from sq.kernels.int4_matmul.triton import prefill_kernel

    assert_uses(compile_for_hopper(prefill_kernel, block, warps, 3, schemes, **more), r"wgmma\S*s32\.s8\.s8")


@pytest.mark.parametrize(
    ("block", "warps", "product", "more", "programs", "barriers"),
    [
        ((64, 16, 256), 4, r"wgmma\S*s32\.s8\.s8", {"SPLIT": 4}, 4, 12),
        ((128, 64, 128), 8, r"wgmma\S*s32\.s8\.s8", {"SPLIT": 8, "HAS_BIAS": True}, 1, 14),
        ((16, 16, 256), 2, r"mma\.sync\S*s8\.s8", {"SPLIT": 1}, 8, 6),
    ],
    ids=["1 token", "64 tokens", "without a split"],
)
def test_decode(
    tmp_path: Path,
    block: tuple[int, int, int],
    warps: int,
    product: str,
    more: dict[str, Any],
    programs: int,
    barriers: int,
) -> None:
    """Registers, too: small tiles are there to keep that many programs of an SM reading while others wait, which a
    spill or a register more would undo. Barriers are those around stages, products and the sum of the parts: they are
    counted so that one more in the loop, which every block of a row would pay, is seen."""
    from sq.kernels.int4_matmul.triton import decode_kernel

    schemes: tuple[Scheme, Scheme] = ("midrise", "midrise")
    compiled = compile_for_hopper(decode_kernel, block, warps, 3, schemes, X_PACKED=True, **more)
    assert_uses(compiled, product)
    counted = "atom.global.gpu.acq_rel.add" in compiled.asm["ptx"]
    assert counted == (more["SPLIT"] > 1)
    used = resources(compiled, tmp_path)
    assert used.spilled == 0
    assert used.programs(warps) >= programs
    assert used.barriers <= barriers


@pytest.mark.parametrize(
    ("block", "warps", "stages"), [((128, 256, 128), 8, 3), ((128, 128, 128), 8, 4), ((64, 64, 64), 4, 4)], ids=str
)
def test_workspace(tmp_path: Path, block: tuple[int, int, int], warps: int, stages: int) -> None:
    """Both operands lie in shared memory and nothing is unpacked between copies and products."""
    from sq.kernels.int4_matmul.triton_workspace import workspace_kernel

    schemes: tuple[Scheme, Scheme] = ("midrise", "midrise")
    compiled = compile_for_hopper(workspace_kernel, block, warps, stages, schemes, HAS_BIAS=True)
    assert compiled.metadata.shared <= SHARED_BYTES
    ptx = compiled.asm["ptx"]
    products = re.findall(r"wgmma\S*s32\.s8\.s8\s*\{[^}]*\},\s*(\S)", ptx)
    assert products
    assert set(products) == {"%"}, "an operand goes through registers"
    assert "cp.async.cg.shared.global" in ptx, "loads of 16 bytes do not run ahead"
    assert "lop3" not in ptx.partition("wgmma.fence")[2].partition("wgmma.wait_group")[0]
    assert resources(compiled, tmp_path).spilled == 0


def test_workspace_on_blackwell() -> None:
    """Its products of int8 are asynchronous, with sums in tensor memory."""
    from sq.kernels.int4_matmul.triton_workspace import workspace_kernel

    schemes: tuple[Scheme, Scheme] = ("midrise", "symmetric")
    compiled = compile_for_hopper(workspace_kernel, (128, 256, 128), 8, 3, schemes, capability=100)
    assert compiled.metadata.shared <= SHARED_BYTES
    assert re.search(r"tcgen05\.mma\S*kind::i8", compiled.asm["ptx"])


@pytest.mark.parametrize("capability", [90, 100])
def test_weights_are_widened_sixteen_bytes_at_a_time(capability: int) -> None:
    from sq.kernels.int4_matmul.triton_workspace import widen_kernel

    schemes: tuple[Scheme, Scheme] = ("symmetric", "midrise")
    compiled = compile_for_hopper(widen_kernel, (1, 1, 2048), 4, 1, schemes, capability, D_B=2048)
    assert "ld.global.v4.b32" in compiled.asm["ptx"]
    assert compiled.asm["ptx"].count("st.global.v4.b32") == 2
