"""QuaRot: its rotations against Hadamard matrices written out, and sizes that have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sq.baselines.quarot import QuaRot
from sq.errors import QuantizationError
from sq.models.families import ModelDimensions
from sq.quantize.method import LayerView
from sq.rotation import Hadamard, Transform


def blind(dimensions: ModelDimensions, index: int = 0) -> LayerView:
    """A layer without statistics or weights: QuaRot must not read any."""
    return LayerView(index, {}, {}, dimensions)


def sylvester(n: int) -> Tensor:
    """Entry (i, j) is (-1)^(number of ones in i AND j), over sqrt(n)."""
    signs = [[(-1.0) ** bin(i & j).count("1") for j in range(n)] for i in range(n)]
    return torch.tensor(signs, dtype=torch.float64) / n**0.5


def dense(method: QuaRot, site: str, dimensions: ModelDimensions) -> Tensor:
    eye = torch.eye(dimensions.width(site), dtype=torch.float64)
    return method.layer_transforms(blind(dimensions))[site].tokens(eye, site, dimensions)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 8), (8, 8, 4), (2, 1, 16), (1, 1, 8)], ids=str)
def test_o_gets_the_full_hadamard_over_all_heads(
    heads: int, kv_heads: int, head_dim: int, dimensions_of: Callable[..., ModelDimensions]
) -> None:
    dimensions = dimensions_of(heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    torch.testing.assert_close(dense(QuaRot(), "o", dimensions), sylvester(heads * head_dim), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("heads", "head_dim"), [(12, 8), (20, 4), (28, 4), (40, 4)], ids=str)
def test_o_gets_some_hadamard_over_all_heads_where_the_count_is_no_power_of_two(
    heads: int, head_dim: int, dimensions_of: Callable[..., ModelDimensions]
) -> None:
    dimensions = dimensions_of(heads=heads, kv_heads=heads // 4, head_dim=head_dim)
    total = dense(QuaRot(), "o", dimensions)
    torch.testing.assert_close(total.abs(), torch.full_like(total, total.shape[0] ** -0.5), rtol=0, atol=1e-12)
    torch.testing.assert_close(total @ total.T, torch.eye(len(total), dtype=torch.float64), rtol=0, atol=1e-12)


def test_without_cross_head_each_head_keeps_its_own_hadamard(dimensions_of: Callable[..., ModelDimensions]) -> None:
    dimensions = dimensions_of(heads=6, kv_heads=2, head_dim=8)
    expected = torch.block_diag(*[sylvester(8)] * 6)
    torch.testing.assert_close(dense(QuaRot(cross_head="none"), "o", dimensions), expected, rtol=0, atol=1e-12)


def test_only_o_and_down_are_online_and_counted_as_fast_transforms(
    dimensions_of: Callable[..., ModelDimensions],
) -> None:
    dimensions = dimensions_of(heads=8, head_dim=4, intermediate=64)
    transforms = QuaRot().layer_transforms(blind(dimensions))
    assert set(transforms) == {"o", "down"}
    o, down = transforms["o"].online, transforms["down"].online
    assert o is not None
    assert down is not None
    assert transforms["down"].folded is None
    assert o.macs() == 32 * 3
    assert down.macs() == 64 * 6
    torch.testing.assert_close(down.matrix(), sylvester(64), rtol=0, atol=1e-12)


def residual(method: QuaRot, dimensions: ModelDimensions) -> Transform | None:
    return method.residual_rotation({}, dimensions)


def test_residual_rotation_is_signs_then_hadamard_and_follows_the_seed(
    dimensions_of: Callable[..., ModelDimensions],
) -> None:
    dimensions = dimensions_of(hidden=32)
    first, again, other = (residual(QuaRot(seed=seed), dimensions) for seed in (1, 1, 2))
    assert isinstance(first, Hadamard)
    assert isinstance(again, Hadamard)
    assert isinstance(other, Hadamard)
    signs = first.matrix()[:, 0].sign()  # column 0 of H is all +1
    torch.testing.assert_close(first.matrix(), signs[:, None] * sylvester(32), rtol=0, atol=1e-12)
    assert signs.abs().sum() > signs.sum().abs()
    assert torch.equal(first.matrix(), again.matrix())
    assert not torch.equal(first.matrix(), other.matrix())


def test_every_rotation_can_be_left_out(dimensions_of: Callable[..., ModelDimensions]) -> None:
    method = QuaRot(residual="none", head="none", cross_head="none", down="none", keys="none")
    assert method.residual_rotation({}, dimensions_of()) is None
    assert method.key_transform(blind(dimensions_of())) is None
    for transform in method.layer_transforms(blind(dimensions_of())).values():
        assert transform.folded is None
        assert transform.online is None


@pytest.mark.parametrize("heads", [3, 6, 9, 14, 15])
def test_head_counts_without_a_hadamard_name_the_option_that_works(
    heads: int, dimensions_of: Callable[..., ModelDimensions]
) -> None:
    dimensions = dimensions_of(heads=heads, kv_heads=1)
    with pytest.raises(QuantizationError, match=rf"layer 3, o: .*query heads of {heads} has no.*method\.cross_head"):
        QuaRot(cross_head="hadamard").layer_transforms(blind(dimensions, index=3))
    assert QuaRot().layer_transforms(blind(dimensions))["o"].online is None
    for kind in ("orthogonal", "none"):
        total = dense(QuaRot(cross_head=kind), "o", dimensions)  # type: ignore[arg-type]
        torch.testing.assert_close(total @ total.T, torch.eye(len(total), dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"hidden": 30}, r"hidden size of 30 .*method\.residual=orthogonal.*method\.residual=none"),
        ({"head_dim": 6}, r"layer 0, o: a head_dim of 6 .*method\.head=orthogonal"),
        ({"intermediate": 50}, r"layer 0, down: an intermediate size of 50 .*method\.down=none"),
    ],
)
def test_other_sizes_without_a_hadamard_name_their_option(
    sizes: dict[str, int], said: str, dimensions_of: Callable[..., ModelDimensions]
) -> None:
    dimensions = dimensions_of(**sizes)

    def build() -> None:
        residual(QuaRot(), dimensions)
        QuaRot().layer_transforms(blind(dimensions))

    with pytest.raises(QuantizationError, match=said):
        build()


@pytest.mark.parametrize("wrong", [{"cross_head": "partial"}, {"residual": None}, {"down": True}])
def test_unknown_rotations_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"allowed: hadamard, orthogonal, none"):
        QuaRot(**wrong)


@pytest.mark.parametrize(
    ("heads", "kind", "expected"), [(9, "auto", {"cross_head": "none"}), (8, "auto", {}), (9, "none", {})]
)
def test_the_row_says_where_heads_have_no_hadamard(
    heads: int, kind: str, expected: dict[str, str], dimensions_of: Callable[..., ModelDimensions]
) -> None:
    dimensions = dimensions_of(heads=heads, kv_heads=1)
    assert QuaRot(cross_head=kind).resolved(dimensions) == expected  # type: ignore[arg-type]
