"""What each operation says it takes, against a table and against what the operations refuse themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch

from sq.kernels import block_product, int4_matmul, kv4_attention, rotate_quantize
from sq.kernels.coded import Coded
from sq.kernels.schemes import Scheme
from sq.kernels.steps import BlockStep, DiagonalStep, HadamardStep, KroneckerStep, LowRankStep, Step


class Kind(NamedTuple):
    """A format."""

    name: str = "int4"
    bits: int = 4
    group: int | None = None
    tensor: bool = False
    second: bool = False
    scheme: Scheme | None = "symmetric"


INT4 = Kind()
MIDRISE, ASYMMETRIC = Kind(scheme="midrise"), Kind(scheme="asymmetric")
MXFP4 = Kind("mxfp4", 4, 32, scheme=None)
INT4_TENSOR = Kind("int4_tensor", tensor=True)


def int4(**other: object) -> Kind:
    return INT4._replace(**other)


@pytest.mark.parametrize(
    ("x", "w", "d_in", "reason"),
    [
        (INT4, INT4, 64, None),
        (MIDRISE, ASYMMETRIC, 64, None),
        (ASYMMETRIC, MIDRISE, 64, None),
        (int4(bits=2), int4(bits=3), 64, None),
        (int4(bits=8), INT4, 64, None),
        (int4(bits=5), INT4, 64, None),
        (INT4, int4(group=32), 64, None),
        (INT4, int4(group=2), 64, None),
        (INT4, INT4, 131_070, None),
        (MXFP4, INT4, 64, "mxfp4 are not an integer grid"),
        (INT4, MXFP4, 64, "mxfp4 are not an integer grid"),
        (INT4_TENSOR, INT4, 64, "one scale for a whole tensor"),
        (INT4, INT4_TENSOR, 64, "one scale for a whole tensor"),
        (int4(group=32), INT4, 64, "a scale for every 32 features"),
        (ASYMMETRIC._replace(bits=8), INT4, 64, "asymmetric activations of 8 bits"),
        (MIDRISE._replace(bits=5), INT4, 64, "midrise activations of 5 bits"),
        (int4(bits=16), INT4, 64, "symmetric activations of 16 bits"),
        (INT4, int4(bits=5), 64, "have 5 bits"),
        (INT4, int4(bits=8), 64, "have 8 bits"),
        (INT4, INT4, 63, "d_in = 63 is odd"),
        (INT4, int4(group=3), 66, "groups of 3 weights"),
        (INT4, int4(group=48), 64, "groups of 48 weights"),
        (INT4, INT4, 131_072, "exact up to 131070"),
    ],
)
def test_formats_of_int4_matmul(x: Kind, w: Kind, d_in: int, reason: str | None) -> None:
    found = int4_matmul.obstacle(x, w, d_in)
    assert (found is None) if reason is None else (found is not None and reason in found), found


@pytest.mark.parametrize(
    ("format", "reason"),
    [
        (INT4, None),
        (MIDRISE, None),
        (ASYMMETRIC, None),
        (MXFP4, "mxfp4 are not an integer grid"),
        (INT4_TENSOR, "one scale for a whole tensor"),
        (Kind("int8", 8), "codes of 8 bits"),
        (Kind("int3", 3), "codes of 3 bits"),
        (int4(group=32), "a scale for every 32 features"),
    ],
)
def test_formats_of_rotate_quantize(format: Kind, reason: str | None) -> None:
    found = rotate_quantize.obstacle(format)
    assert (found is None) if reason is None else (found is not None and reason in found), found


@pytest.mark.parametrize(
    ("keys", "values", "head_dim", "reason"),
    [
        (INT4, INT4, 64, None),
        (MIDRISE, MIDRISE, 64, None),
        (ASYMMETRIC, ASYMMETRIC, 64, None),
        (ASYMMETRIC._replace(group=64), ASYMMETRIC._replace(group=64), 64, None),
        (INT4, INT4, 63, "head_dim is 63"),
        (MXFP4, INT4, 64, "keys: the levels of mxfp4"),
        (INT4, INT4_TENSOR, 64, "values: int4_tensor has one scale"),
        (int4(bits=8), INT4, 64, "keys have 8 bits"),
        (INT4, int4(bits=3), 64, "values have 3 bits"),
        (int4(group=32), int4(group=32), 64, "keys have a scale for every 32"),
        (INT4, MIDRISE, 64, "symmetric, group None, and values of midrise"),
        (ASYMMETRIC, ASYMMETRIC._replace(group=64), 64, "group None, and values of asymmetric, 64"),
    ],
)
def test_formats_of_the_cache(keys: Kind, values: Kind, head_dim: int, reason: str | None) -> None:
    found = kv4_attention.obstacle(keys, values, head_dim)
    assert (found is None) if reason is None else (found is not None and reason in found), found


@pytest.mark.parametrize("d_in", [2, 62, 131_070, 131_072])
@pytest.mark.parametrize("group", [None, 1, 2, 3, 31])
def test_int4_matmul_refuses_what_its_declaration_does(d_in: int, group: int | None) -> None:
    if group is not None and d_in % group:
        pytest.skip("no such tensor")
    x = Coded(torch.zeros(1, d_in // 2, dtype=torch.uint8), torch.ones(1, 1))
    w = Coded(torch.zeros(2, d_in // 2, dtype=torch.uint8), torch.ones(2, 1 if group is None else d_in // group))
    if int4_matmul.obstacle(INT4, int4(group=group), d_in) is None:
        int4_matmul.int4_matmul(x, w, dtype=torch.float32, backend="torch")
    else:
        with pytest.raises(ValueError, match="d_in"):
            int4_matmul.int4_matmul(x, w, dtype=torch.float32, backend="torch")


R1, R2 = torch.eye(2), torch.eye(3)
LOW_RANK = LowRankStep(torch.ones(6), torch.ones(1, 6), torch.ones(1, 6))
KRONECKER, DIAGONAL, HADAMARD = KroneckerStep(R1, R2), DiagonalStep(torch.ones(6)), HadamardStep(torch.ones(1, 1), None)
BLOCKS, UNMIXED = BlockStep(torch.ones(2, 3, 3), R1), BlockStep(torch.ones(2, 3, 3), None)
STRETCH = LowRankStep(None, torch.rand(1, 6), torch.rand(1, 6))


@pytest.mark.parametrize(
    ("steps", "form"),
    [
        (None, None),
        ((), (None, None, None)),
        ([KRONECKER], (R1, R2, None)),
        ([KroneckerStep(None, R2)], (None, R2, None)),
        ([LOW_RANK], (None, None, LOW_RANK)),
        ((LOW_RANK, KRONECKER), (R1, R2, LOW_RANK)),
        ([KRONECKER, LOW_RANK], None),
        ([KRONECKER, KRONECKER], None),
        ([LOW_RANK, LOW_RANK], None),
        ([LOW_RANK, KRONECKER, KRONECKER], None),
        ([DIAGONAL], None),
        ([HADAMARD], None),
        ([LOW_RANK, HADAMARD], None),
        ([DIAGONAL, KRONECKER], None),
        ([BLOCKS], None),
    ],
)
def test_transforms_of_rotate_quantize(steps: Sequence[Step] | None, form: object) -> None:
    assert rotate_quantize.form_of(steps) == form


@pytest.mark.parametrize(
    ("steps", "form"),
    [
        (None, None),
        ((), None),
        ([BLOCKS], (BLOCKS.blocks, R1, None)),
        ((UNMIXED,), (UNMIXED.blocks, None, None)),
        ([LOW_RANK, BLOCKS], None),
        ([BLOCKS, STRETCH], None),
        ([STRETCH], None),
        ([STRETCH, STRETCH, BLOCKS], None),
        ([BLOCKS, BLOCKS], None),
        ([KRONECKER], None),
        ([KRONECKER, BLOCKS], None),
        ([DIAGONAL, BLOCKS], None),
        ([HADAMARD, BLOCKS], None),
    ],
)
def test_transforms_of_block_product(steps: Sequence[Step] | None, form: object) -> None:
    assert block_product.form_of(steps) == form


def test_block_product_by_its_form_is_the_steps() -> None:
    x = torch.randn(3, 6)
    form = block_product.form_of([STRETCH, BLOCKS])
    assert form is not None
    stretched = x + x @ STRETCH.basis.T @ STRETCH.change
    expected = torch.einsum("ij,til->tjl", R1, torch.einsum("tik,ikl->til", stretched.view(3, 2, 3), BLOCKS.blocks))
    torch.testing.assert_close(block_product.block_product(x, *form), expected.reshape(3, 6))
