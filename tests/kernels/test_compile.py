"""The kernels compile for a Hopper GPU, which needs no GPU: what only the compiler refuses fails here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sass import resources

from sq.kernels.backend import interpreted, power_of_two_from

SHARED_BYTES = 227 * 1024  # of an H100 or H200 block
PARTS = ("codes", "scale", "zero")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("triton") is None or find_spec("triton.backends.nvidia") is None,
        reason="no Triton that compiles for NVIDIA GPUs",
    ),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset"),
]


def compile_for_hopper(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = kernel.fn if hasattr(kernel, "configs") else kernel  # below the autotuner
    constants = {
        name: value for name, value in {**constants, "PROGRAMS_PER_SM": 1}.items() if name in function.arg_names
    }
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in function.arg_names}
    source = ASTSource(function, signature, constants)
    options = {"num_warps": warps, "num_stages": 2 if warps < 16 else 1}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if interpreted():
        pytest.skip("with TRITON_INTERPRET set in this process there is nothing to compile")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("sizes", "scheme", "candidates", "warps", "front"),
    [
        ((64, 64), "symmetric", 1, 4, {"HAS_RESIDUAL": True, "HAS_NORM": True, "HAS_GAIN": True}),
        ((86, 128), "midrise", 9, 8, {"HAS_UP": True, "CONTAINER": "int8"}),
        ((128, 224), "asymmetric", 1, 16, {"HAS_UP": True, "HAS_ENDS": True}),
        ((1, 4096), "symmetric", 1, 4, {"HAS_NORM": True, "HAS_LEFT": False, "HAS_RIGHT": False}),
        (
            (64, 80),
            "symmetric",
            1,
            4,
            {"HAS_BALANCE": True, "HAS_DIAGONAL": True, "RANK": 8, "CONTAINER": "int8_planes"},
        ),
    ],
    ids=["norm", "swiglu", "swiglu 28672", "norm alone", "balance"],
)
def test_rotate_quantize(
    sizes: tuple[int, int], scheme: str, candidates: int, warps: int, front: dict[str, Any]
) -> None:
    import triton.language as tl

    from sq.kernels.rotate_quantize.tiles import block_sizes
    from sq.kernels.rotate_quantize.triton import rotate_quantize_kernel

    types = {
        f"p_{name}": "*bf16"
        for name in ("x", "residual", "total", "up", "gain", "diagonal", "basis", "change", "r1", "r2")
    }
    types |= {"p_clips": "*fp32", "p_codes": "*i8" if "CONTAINER" in front else "*u8", "p_scale": "*fp32"}
    types |= {"p_zero": "*fp32", "eps": "fp32", "end_low": "fp32", "end_high": "fp32"}
    flags = ("HAS_RESIDUAL", "HAS_NORM", "HAS_GAIN", "HAS_UP", "HAS_BALANCE", "HAS_DIAGONAL", "HAS_ENDS")
    constants: dict[str, Any] = dict.fromkeys(flags, False)
    constants |= {"RANK": 0, "HAS_LEFT": True, "HAS_RIGHT": True, "CONTAINER": "int4", **front}
    (n1, n2), (block_1, block_2) = sizes, block_sizes(*sizes, rotates=constants["HAS_LEFT"])
    constants |= {"N1": n1, "N2": n2, "BLOCK_N1": block_1, "BLOCK_N2": block_2}
    constants |= {"SCHEME": scheme, "CANDIDATES": candidates, "COMPUTE": tl.bfloat16}
    compiled = compile_for_hopper(rotate_quantize_kernel, types, constants, warps)
    assert compiled.metadata.shared <= SHARED_BYTES
    if constants["HAS_LEFT"]:
        assert "wgmma" in compiled.asm["ptx"], "products do not use Hopper's wide instructions"


@pytest.mark.parametrize(("block", "warps"), [(2048, 8), (2048, 16), (128, 1)], ids=str)
def test_fourth_moment(tmp_path: Path, block: int, warps: int) -> None:
    """Three barriers, around the two sums that all warps must have before a row is written; one warp needs none."""
    from sq.kernels.fourth_moment.triton import turn_pairs_kernel

    types = {"p_rows": "*fp32", "p_turned": "*fp64", "p_pairs": "*i32"}
    compiled = compile_for_hopper(turn_pairs_kernel, types, {"BLOCK_T": block, "BLOCK_M": 128 * warps}, warps)
    assert compiled.metadata.shared <= SHARED_BYTES
    assert "fma.rn.f64" in compiled.asm["ptx"], "sums are not in float64"
    used = resources(compiled, tmp_path)
    assert used.spilled == 0
    assert used.programs(warps) * warps >= 16, "too few warps an SM to keep reads in flight"
    assert used.barriers <= (3 if warps > 1 else 0)


@pytest.mark.parametrize(("k", "powers", "warps"), [(1, 128, 4), (172, 64, 16)], ids=["128", "11008"])
def test_hadamard(k: int, powers: int, warps: int) -> None:
    import triton.language as tl

    from sq.kernels.hadamard import triton as kernels
    from sq.kernels.hadamard.tiles import tile_shape

    shape = tile_shape(k, powers, itemsize=2)
    assert shape is not None
    n1, n2 = shape
    types = {"p_x": "*bf16", "p_base": "*fp32", "p_y": "*bf16"}
    constants: dict[str, Any] = {"K": k, "BLOCK_N2": power_of_two_from(n2), "HAS_RIGHT": True, "COMPUTE": tl.bfloat16}
    if n1 == 1:
        constants |= {"N": n2, "BLOCK_N1": 64, "SCALE": n2**-0.5, "HAS_LEFT": False}
        compiled = compile_for_hopper(kernels.hadamard_dense_kernel, types, constants, warps)
    else:
        constants |= {"N1": n1, "N2": n2, "BLOCK_N1": power_of_two_from(n1), "HAS_LEFT": True}
        constants |= {"SCALE_1": n1**-0.5, "SCALE_2": n2**-0.5}
        compiled = compile_for_hopper(kernels.hadamard_tile_kernel, types, constants, warps)
    assert compiled.metadata.shared <= SHARED_BYTES
    assert "wgmma" in compiled.asm["ptx"], "products do not use Hopper's wide instructions"


@pytest.mark.parametrize(
    ("group", "head_dim", "nibbles", "zero"),
    [(4, 128, "bf16", True), (1, 64, "fp16", False), (8, 32, "fp32", True)],
    ids=["bf16", "fp16", "fp32"],
)
def test_kv4_attention(tmp_path: Path, group: int, head_dim: int, nibbles: str, zero: bool) -> None:
    """Positions are split for four programs an SM (partials.py), so registers must hold four; barriers are those around
    the two products and the two sums over positions of a block, and the first loads."""
    import triton.language as tl

    from sq.kernels.kv4_attention.triton import kv4_attention_kernel

    types = dict.fromkeys(("p_k", "p_v", "p_k_zero", "p_v_zero"), "*u8")
    types |= dict.fromkeys(("p_k_scale", "p_v_scale", "p_o", "p_lse"), "*fp32")
    types |= {"p_q": f"*{nibbles}", "p_starts": "*i64", "p_lengths": "*i32", "softmax_scale": "fp32"}
    half = nibbles != "fp32"
    compute = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}[nibbles]
    constants: dict[str, Any] = {"KV_HEADS": 8, "GROUP": group, "BLOCK_G": 16, "D": head_dim, "SPLITS": 3}
    constants |= {"ZERO": 0.0 if zero else 7.5, "HAS_ZERO": zero, "HAS_STARTS": zero, "NIBBLES": nibbles, "ASM": half}
    constants |= {"COMPUTE": compute, "COMPUTE_V": tl.bfloat16 if half else tl.float32, "BLOCK_S": 64}
    compiled = compile_for_hopper(kv4_attention_kernel, types, constants, warps=4)
    assert compiled.metadata.shared <= SHARED_BYTES
    assert ("prmt.b32" in compiled.asm["ptx"] and "mma.sync" in compiled.asm["ptx"]) or not half
    used = resources(compiled, tmp_path)
    assert used.spilled <= 8
    assert used.programs(warps=4) >= 4
    assert used.barriers <= 24


def test_kv4_cache_and_second_pass(tmp_path: Path) -> None:
    """A program of one warp waits for no other one, and the token's features stay in registers."""
    import triton.language as tl

    from sq.kernels.kv4_attention.triton import kv4_combine_kernel
    from sq.kernels.kv4_attention.triton_append import kv4_append_kernel
    from sq.kernels.kv4_attention.triton_rope import kv4_rope_append_kernel

    types = {"p_k": "*bf16", "p_v": "*bf16", "p_positions": "*i64", "p_clips": "*fp32", "p_part": "*fp32"}
    types |= {f"p_{side}_{part}": "*fp32" if part == "scale" else "*u8" for side in "kv" for part in PARTS}
    types |= {"p_lse": "*fp32", "p_o": "*bf16"}
    constants: dict[str, Any] = {"KV_HEADS": 8, "D": 128, "BLOCK_H": 64, "SCHEME": "asymmetric", "CANDIDATES": 2}
    compiled = [compile_for_hopper(kv4_append_kernel, types, constants | {"INCLUDE_ZERO": True}, warps=1)]
    wide = types | {"p_k_zero": "*i16", "p_v_zero": "*i16"}
    compiled.append(compile_for_hopper(kv4_append_kernel, wide, constants | {"INCLUDE_ZERO": False}, warps=1))
    wide |= dict.fromkeys(("p_q", "p_cos", "p_sin", "p_y"), "*bf16")
    turned = constants | {"INCLUDE_ZERO": False, "HEADS": 32, "COMPUTE": tl.bfloat16}
    compiled.append(compile_for_hopper(kv4_rope_append_kernel, wide, turned, warps=1))
    for used in (resources(kernel, tmp_path) for kernel in compiled):
        assert used.barriers == used.spilled == 0
        assert used.registers <= 64, "32 warps an SM, as many as it starts blocks"
    constants = {"SPLITS": 5, "BLOCK_SPLITS": 8, "D": 128, "BLOCK_D": 128}
    compile_for_hopper(kv4_combine_kernel, types, constants, warps=4)


@pytest.mark.parametrize(("group", "head_dim"), [(1, 32), (4, 128), (16, 256), (128, 128)], ids=str)
def test_pruned_launches_of_attention_fit_an_sm(group: int, head_dim: int) -> None:
    """Sums and scores in registers, two packed tiles a stage in shared memory, by hand."""
    from sq.kernels.kv4_attention.triton import configs, prune

    block_g = power_of_two_from(group, 16)
    kept = prune(configs(), {}, BLOCK_G=block_g, D=head_dim)
    assert kept
    for config in kept:
        block, threads = config.kwargs["BLOCK_S"], 32 * config.num_warps
        assert block_g * (head_dim + block) / threads <= 128 or len(kept) == 1
        assert 2 * config.num_stages * block * head_dim / 2 <= SHARED_BYTES


def test_a_new_token_count_of_the_same_bucket_needs_no_tuning() -> None:
    from sq.kernels.rotate_quantize.triton import rotate_quantize_kernel
    from sq.kernels.tuning import token_bucket

    assert "T_BUCKET" in rotate_quantize_kernel.keys
    assert "T" not in rotate_quantize_kernel.keys
    assert [token_bucket(tokens) for tokens in (1, 16, 17, 2048)] == [16, 16, 32, 2048]


@pytest.mark.parametrize("tile", [(16, 16), (64, 64), (128, 128), (128, 256), (1, 32768)], ids=str)
def test_pruned_launches_fit_an_sm(tile: tuple[int, int]) -> None:
    """Threads times programs, registers for the accumulators and shared memory, by hand."""
    import torch

    from sq.kernels.tuning import configs, prune

    block_1, block_2 = tile
    rotates = block_1 > 1
    x = torch.empty(1, dtype=torch.bfloat16)
    meta = {"BLOCK_N1": block_1, "BLOCK_N2": block_2, "HAS_LEFT": rotates, "HAS_RIGHT": rotates}
    kept = prune(configs(), {"p_x": x}, **meta)
    assert kept
    for config in kept:
        programs = config.kwargs["PROGRAMS_PER_SM"]
        shared = 2 * (rotates * (block_1**2 + block_2**2) + config.num_stages * block_1 * block_2)
        assert programs * 32 * config.num_warps <= 2048
        assert block_1 * block_2 / (32 * config.num_warps) <= 128
        assert programs * shared <= SHARED_BYTES


@pytest.mark.parametrize(
    ("sizes", "rank", "first", "launch", "dtype"),
    [
        ((32, 128), 16, True, (32, 32, 8, 2), "bf16"),
        ((9, 64), 0, True, (64, 32, 8, 2), "fp16"),
        ((8, 72), 0, False, (64, 128, 4, 3), "bf16"),
        ((12, 96), 3, True, (32, 32, 8, 1), "fp32"),
    ],
    ids=["4096", "576", "no R1", "fp32"],
)
def test_block_product(
    sizes: tuple[int, int], rank: int, first: bool, launch: tuple[int, int, int, int], dtype: str
) -> None:
    import triton.language as tl

    from sq.kernels.block_product import tiles
    from sq.kernels.block_product.triton import block_product_kernel, directions_kernel, mix_kernel

    (n1, n2), (block_t, block_l, warps, _) = sizes, launch
    shape = tiles.Shape(tiles.block_n1(n1, first), n2, tiles.block_r(rank), 4 if dtype == "fp32" else 2, 4096)
    assert launch in tiles.launches(shape), "no launch that tuning would try"
    types = {f"p_{name}": f"*{dtype}" for name in ("x", "blocks", "first", "u", "v", "z")} | {"p_c": "*fp32"}
    constants: dict[str, Any] = {"N1": n1, "N2": n2, "BLOCK_N1": shape.block_n1, "BLOCK_K": tiles.piece(n2)}
    constants |= {"RANK": rank, "BLOCK_R": shape.block_r, "HAS_FIRST": first, "BLOCK_T": block_t, "BLOCK_L": block_l}
    constants |= {"COMPUTE": {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}[dtype]}
    compile_for_hopper(mix_kernel, types, constants | {"BLOCK_N1": 64, "BLOCK_N2": 128}, warps)
    for kernel in (block_product_kernel, directions_kernel)[: 2 if rank else 1]:
        compiled = compile_for_hopper(kernel, types, constants, warps)
        assert compiled.metadata.shared <= SHARED_BYTES
        wide = "wgmma" if block_t >= 64 else "mma.sync"
        assert wide in compiled.asm["ptx"] or dtype == "fp32", "products do not use tensor cores"
