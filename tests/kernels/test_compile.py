"""The kernels compile for a Hopper GPU, which needs no GPU: what only the compiler refuses fails here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sq.kernels.backend import interpreted, power_of_two_from

SHARED_BYTES = 227 * 1024  # of an H100 or H200 block

pytestmark = [
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

    function = kernel.fn  # below the autotuner
    constants = {**constants, "PROGRAMS_PER_SM": 1}
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
        ((64, 64), "symmetric", 1, 4, {"HAS_NORM": True, "HAS_GAIN": True}),
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

    types = {f"p_{name}": "*bf16" for name in ("x", "up", "gain", "diagonal", "basis", "change", "r1", "r2")}
    types |= {"p_clips": "*fp32", "p_codes": "*i8" if "CONTAINER" in front else "*u8", "p_scale": "*fp32"}
    types |= {"p_zero": "*fp32", "eps": "fp32", "end_low": "fp32", "end_high": "fp32"}
    flags = ("HAS_NORM", "HAS_GAIN", "HAS_UP", "HAS_BALANCE", "HAS_DIAGONAL", "HAS_ENDS")
    constants: dict[str, Any] = dict.fromkeys(flags, False)
    constants |= {"RANK": 0, "HAS_LEFT": True, "HAS_RIGHT": True, "CONTAINER": "int4", **front}
    (n1, n2), (block_1, block_2) = sizes, block_sizes(*sizes, rotates=constants["HAS_LEFT"])
    constants |= {"N1": n1, "N2": n2, "BLOCK_N1": block_1, "BLOCK_N2": block_2}
    constants |= {"SCHEME": scheme, "CANDIDATES": candidates, "COMPUTE": tl.bfloat16}
    compiled = compile_for_hopper(rotate_quantize_kernel, types, constants, warps)
    assert compiled.metadata.shared <= SHARED_BYTES
    if constants["HAS_LEFT"]:
        assert "wgmma" in compiled.asm["ptx"], "products do not use Hopper's wide instructions"


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
