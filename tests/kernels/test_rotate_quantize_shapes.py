"""Factor sizes of known models, token counts, containers and both ends' clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantizers import activation_quantizer

from sq.formats.elements import SCHEMES
from sq.formats.packing import unpack
from sq.kernels.rotate_quantize import rotate_quantize
from sq.kernels.rotate_quantize.reference import rotate
from sq.kernels.schemes import Scheme
from sq.rotation.hadamard import hadamard_matrix, random_orthogonal

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@pytest.mark.parametrize("sizes", [(64, 80), (86, 128), (108, 128), (112, 128), (128, 224)], ids=str)
def test_factor_sizes_that_are_no_powers_of_two(run: Any, assert_rounded: Any, sizes: tuple[int, int]) -> None:
    r1, r2 = (random_orthogonal(size, size).bfloat16() for size in sizes)
    x = torch.randn(3, sizes[0] * sizes[1]).bfloat16()
    got = run(rotate_quantize, x, r1, r2, container="int8")
    y = rotate(x, r1, r2, torch.float64)
    assert_rounded(got, y, "symmetric", precision=1e-4 if run.device == "cpu" else 0.05)


@pytest.mark.parametrize("blocks", [1, 3, 32])
@every_scheme
def test_blocks_of_128_by_a_dense_hadamard(run: Any, blocks: int, scheme: Scheme) -> None:
    """Integers below 8 and +-1/8: sums are exact in every precision, so the codes are those of the exact transform."""
    x = torch.zeros(3, 128 * blocks)
    for row in x:
        row[torch.randperm(128 * blocks)[: 4 * blocks]] = torch.randint(1, 8, (4 * blocks,)).float()
    h = hadamard_matrix(128).float() / 8
    y = (x.unflatten(-1, (-1, 128)) @ h).flatten(-2)
    got = run(rotate_quantize, x.bfloat16(), None, h.bfloat16(), scheme=scheme, container="int8")
    made = activation_quantizer(4, scheme).encode(y)
    codes, scale, zero = made.codes, made.scale, made.zero
    assert torch.equal(got.codes, codes.to(torch.int8))
    assert torch.equal(got.scale, scale)
    assert zero is None or torch.equal(got.zero, zero)


@pytest.mark.parametrize("tokens", [1, 2, 129, 32768])
def test_token_counts(run: Any, tokens: int) -> None:
    """One, fewer than programs, odd and more than a program each; small integers, so that every code is exact."""
    if tokens > 1000 and run.device == "cpu":
        pytest.skip("one program after another, the interpreter takes minutes for them")
    x, h = torch.randint(-8, 9, (tokens, 32)).bfloat16(), hadamard_matrix(2).bfloat16()
    got = run(rotate_quantize, x, h, None)
    expected = rotate_quantize(x.float(), h.float(), None, backend="torch")
    assert torch.equal(got.codes, expected.codes)
    assert torch.equal(got.scale, expected.scale)


def test_torch_takes_many_tokens_in_parts_that_agree_with_each_token_alone() -> None:
    x, up = torch.randn(2, 16384, 24), torch.randn(2, 16384, 24)
    got = rotate_quantize(x, None, None, up=up, scheme="asymmetric")
    for i_t in ((0, 0), (0, 10921), (0, 10922), (0, 10923), (1, 16383)):  # around 2^18 / 24 and at both ends
        one = rotate_quantize(x[i_t], None, None, up=up[i_t], scheme="asymmetric")
        assert torch.equal(one.codes, got.codes[i_t])
        assert torch.equal(one.scale, got.scale[i_t])


@every_scheme
@pytest.mark.parametrize("rotated", [False, True], ids=["no rotation", "rotation"])
def test_containers_hold_the_same_codes(run: Any, scheme: Scheme, rotated: bool) -> None:
    x = torch.randn(2, 3, 60)
    r1, r2 = (torch.randn(6, 6), torch.randn(10, 10)) if rotated else (None, None)
    packed, flat, planes = (
        run(rotate_quantize, x, r1, r2, scheme=scheme, container=container)
        for container in ("int4", "int8", "int8_planes")
    )
    assert (flat.codes.shape, planes.codes.shape) == ((2, 3, 60), (2, 3, 2, 30))
    assert flat.codes.dtype == planes.codes.dtype == torch.int8
    assert torch.equal(flat.codes, unpack(packed.codes, 60, signed=scheme != "asymmetric"))
    assert torch.equal(planes.codes, torch.stack((flat.codes[..., 0::2], flat.codes[..., 1::2]), -2))
    assert torch.equal(flat.scale, packed.scale)


def test_an_odd_token_has_an_int8_container_and_no_planes() -> None:
    x = torch.randn(2, 7)
    got = rotate_quantize(x, None, None, container="int8")
    assert torch.equal(got.codes, unpack(rotate_quantize(x, None, None).codes, 7, signed=True))
    with pytest.raises(ValueError, match="7 features are odd"):
        rotate_quantize(x, None, None, container="int8_planes")


@every_scheme
@pytest.mark.parametrize("ends", [(0.9, 0.5), (0.25, 1.0)], ids=str)
def test_a_clip_for_either_end_of_the_range(run: Any, scheme: Scheme, ends: tuple[float, float]) -> None:
    """Bit for bit the framework's quantizer; tokens on one side of zero among them."""
    x = torch.randn(5, 36)
    x[1], x[2], x[3] = x[1].abs() + 1, -x[2].abs() - 1, 0
    made = activation_quantizer(4, scheme, ends).encode(x)
    codes, scale, zero = made.codes, made.scale, made.zero
    got = run(rotate_quantize, x, None, None, scheme=scheme, ends=ends, container="int8")
    assert torch.equal(got.codes, codes.to(torch.int8))
    assert torch.equal(got.scale, scale)
    assert zero is None or torch.equal(got.zero, zero)
