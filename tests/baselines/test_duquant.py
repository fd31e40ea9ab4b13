"""DuQuant: the greedy step by its closed form, the search against one over everything, zigzag by brute force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sq.baselines.duquant import FIRST_ROWS, DuQuant, base_rotation, greedy_rotation, greedy_step, zigzag
from sq.errors import CalibrationError, QuantizationError
from sq.models.families import SITES, ModelDimensions
from sq.quantize.method import LayerView, SiteStatistics
from sq.rotation import Compose, Diagonal, Kronecker
from sq.rotation.permutation import Permutation


@pytest.mark.parametrize("block", [2, 3, 8, 128])
def test_base_rotation_is_orthogonal_and_keeps_one_over_sqrt_n_in_its_corner(block: int) -> None:
    base = base_rotation(block, seed=1)
    torch.testing.assert_close(base @ base.T, torch.eye(block, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(base[0, 0]) == pytest.approx(block**-0.5)
    # diag(1, Q) keeps the first column of the Givens chain, whose first row is flat.
    assert float(base[0, 1:].norm()) == pytest.approx((1 - 1 / block) ** 0.5)


@pytest.mark.parametrize("coordinate", [0, 5, 31])
def test_a_step_flattens_the_coordinate_of_the_outlier_and_spreads_the_rest_like_noise(coordinate: int) -> None:
    """A lone outlier M at c leaves exactly M/sqrt(n) at c; the rest goes in a random direction: no entry near M."""
    x = torch.zeros(1, 32, dtype=torch.float64)
    x[0, coordinate] = 100
    turned = x @ greedy_step(base_rotation(32, seed=0), coordinate)
    assert float(turned[0, coordinate]) == pytest.approx(100 / 32**0.5)
    assert float(turned.norm()) == pytest.approx(100)
    assert float(turned.abs().max()) < 0.6 * 100


def greedy_over_everything(x: Tensor, base: Tensor, steps: int) -> Tensor:
    """The search as the paper words it, on all rows at every step."""
    rotation, prefixes = torch.eye(x.shape[1], dtype=torch.float64), []
    for _ in range(steps + 1):
        y = x @ rotation
        prefixes.append((float(y.max() - y.min()), rotation))
        row, column = divmod(int(y.abs().argmax()), x.shape[1])
        assert y[row, column].abs() == y.abs().max()
        rotation = rotation @ greedy_step(base, column)
    return min(prefixes, key=lambda pair: pair[0])[1]


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 4 * FIRST_ROWS), steps=st.integers(0, 12), seed=st.integers(0, 1000))
def test_search_by_row_norm_finds_what_a_search_over_all_rows_finds(rows: int, steps: int, seed: int) -> None:
    """Row scales spread over three orders of magnitude, so that some searches need few rows and some need all."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 8, generator=generator).double() * 10 ** (3 * torch.rand(rows, 1, generator=generator))
    base = base_rotation(8, seed)
    found = greedy_rotation(x, base, steps)
    torch.testing.assert_close(found, greedy_over_everything(x, base, steps), rtol=0, atol=1e-9)


def test_search_lowers_a_planted_outlier_and_its_column_and_not_its_row_is_what_is_flattened() -> None:
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    x[7, 40] = 80.0  # row 7: the coordinate that the released code would take
    base = base_rotation(64, seed=3)
    once = greedy_rotation(x, base, steps=1)
    torch.testing.assert_close(once, greedy_step(base, 40), rtol=0, atol=0)
    rotated = x @ greedy_rotation(x, base, steps=64).float()
    assert float(rotated.abs().max()) < 0.35 * 80
    assert float(rotated.norm()) == pytest.approx(float(x.norm()), rel=1e-5)


def test_already_flat_tokens_are_left_as_they_are() -> None:
    x = torch.ones(5, 4)
    torch.testing.assert_close(greedy_rotation(x, base_rotation(4, 0), 10), torch.eye(4).double(), rtol=0, atol=0)


def test_zigzag_deals_there_and_back() -> None:
    """By hand: peaks 9 8 7 6 5 4 3 2 to two blocks of four: 9 6 5 2 and 8 7 4 3."""
    peaks = torch.tensor([2.0, 9.0, 4.0, 7.0, 5.0, 8.0, 3.0, 6.0])
    assert peaks[zigzag(peaks, 4)].tolist() == [9, 6, 5, 2, 8, 7, 4, 3]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 100, width=32), min_size=6, max_size=6))
def test_zigzag_gives_blocks_the_most_equal_peaks_of_all_permutations(values: list[float]) -> None:
    """Three blocks of two: nothing spreads the three largest better, and sums differ by the range at most."""
    peaks = torch.tensor(values)
    blocks = peaks[zigzag(peaks, 2)].reshape(3, 2)
    best = max(min(max(order[i : i + 2]) for i in (0, 2, 4)) for order in permutations(values))
    assert float(blocks.amax(1).min()) == best
    gaps = peaks.sort().values.diff()
    assert float(blocks.sum(1).max() - blocks.sum(1).min()) <= float(gaps.sum()) + 1e-4
    assert sorted(blocks.flatten().tolist()) == sorted(peaks.tolist())


def test_sequence_at_each_site_and_its_cost(
    dimensions_of: Callable[..., ModelDimensions], view_of: Callable[..., LayerView]
) -> None:
    dimensions = dimensions_of(heads=4, kv_heads=2)
    method = DuQuant(block=8, rotation_steps=6)
    transforms = method.layer_transforms(view_of(dimensions))
    for site in SITES:
        online = transforms[site].online
        assert isinstance(online, Compose)
        kinds = [type(part) for part in online.transforms]
        smoothed_online = [Diagonal] if site == "o" else []  # grouped KV heads
        assert kinds == [*smoothed_online, Kronecker, Permutation, Kronecker]
        n = dimensions.width(site)
        assert online.macs() == n * (2 * 8 + len(smoothed_online))
        assert (transforms[site].folded is None) == (site == "o")


def test_heads_that_are_not_grouped_fold_the_smoothing_of_o_into_v(
    dimensions_of: Callable[..., ModelDimensions], view_of: Callable[..., LayerView]
) -> None:
    transforms = DuQuant(block=8, rotation_steps=2).layer_transforms(view_of(dimensions_of(heads=4, kv_heads=4)))
    assert isinstance(transforms["o"].folded, Diagonal)


def test_planted_channel_is_gone_after_the_whole_sequence(
    dimensions_of: Callable[..., ModelDimensions],
    statistics_of: Callable[[Tensor], SiteStatistics],
    view_of: Callable[..., LayerView],
) -> None:
    view = view_of(dimensions_of(hidden=64), tokens=200)
    view.statistics["qkv"].tokens[:, 9] *= 50
    spiked = LayerView(
        0, {**view.statistics, "qkv": statistics_of(view.statistics["qkv"].tokens)}, view.weights, view.dimensions
    )
    method = DuQuant(alpha=0.0, block=8, rotation_steps=32)
    x = method.layer_transforms(spiked)["qkv"].tokens(spiked.statistics["qkv"].tokens, "qkv", view.dimensions)
    before = spiked.statistics["qkv"].tokens.abs().amax(0)
    assert float(before.max() / before.median()) > 50
    after = x.abs().amax(0)
    assert float(after.max() / after.median()) < 4


def test_same_seed_same_transforms_and_layers_differ(
    dimensions_of: Callable[..., ModelDimensions], view_of: Callable[..., LayerView]
) -> None:
    dimensions = dimensions_of()

    def matrix(seed: int, index: int = 0) -> Tensor:
        view = view_of(dimensions)
        view = LayerView(index, view.statistics, view.weights, dimensions)
        online = DuQuant(block=8, rotation_steps=4, seed=seed).layer_transforms(view)["down"].online
        assert online is not None
        return online.matrix()

    assert torch.equal(matrix(0), matrix(0))
    assert not torch.equal(matrix(0), matrix(1))
    assert not torch.equal(matrix(0), matrix(0, index=1))


def test_a_site_has_blocks_of_the_largest_divisor(
    dimensions_of: Callable[..., ModelDimensions], view_of: Callable[..., LayerView]
) -> None:
    """48 = 3 x 16, 24 = 2 x 12, 35 = 5 x 7: the cost of a site is two passes of such blocks."""
    dimensions = dimensions_of(hidden=48, intermediate=35, heads=4, head_dim=6)
    found = DuQuant(block=16, rotation_steps=1).layer_transforms(view_of(dimensions))
    for site, cost in (("qkv", 48 * 16), ("gate_up", 48 * 16), ("o", 24 * 12), ("down", 35 * 7)):
        online = found[site].online
        assert online is not None
        assert online.macs() == 2 * cost + (24 if site == "o" else 0)
    assert DuQuant(block=16).resolved(dimensions) == {"block": "7/12/16"}
    assert DuQuant(block=4).resolved(dimensions_of(hidden=48, intermediate=32, heads=4, head_dim=6)) == {}
    with pytest.raises(QuantizationError, match=r"down: a size of 37 has no block of 2 to 16"):
        DuQuant(block=16).layer_transforms(view_of(dimensions_of(hidden=48, intermediate=37, heads=4, head_dim=6)))


def test_keys_can_have_a_hadamard_of_each_block_whatever_calibration_saw(
    dimensions_of: Callable[..., ModelDimensions], view_of: Callable[..., LayerView], statistics_of: Callable[..., Any]
) -> None:
    """Sylvester's of order 4 by hand, twice in a head of 8, for blocks of gcd(12, 8) features."""
    hand = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64) / 2
    for seed in (0, 1):
        view = view_of(dimensions_of(head_dim=8))
        keys = torch.randn(64, 16, generator=torch.Generator().manual_seed(seed))
        view = replace(view, statistics={**view.statistics, "keys": statistics_of(keys)})
        found = DuQuant(block=12, keys="hadamard").key_transform(view)
        assert found is not None
        torch.testing.assert_close(found.matrix(), torch.block_diag(hand, hand))
        assert found.macs() == 8 * 4
    with pytest.raises(QuantizationError, match=r"heads of 9 features into blocks of 3.*method\.keys=greedy"):
        DuQuant(block=12, keys="hadamard").key_transform(replace(view, dimensions=dimensions_of(head_dim=9)))


def test_nan_in_calibration_names_layer_and_site(
    dimensions_of: Callable[..., ModelDimensions], view_of: Callable[..., LayerView]
) -> None:
    view = view_of(dimensions_of(), index=5)
    view.statistics["down"].tokens[2, 3] = torch.nan
    with pytest.raises(CalibrationError, match="layer 5, down"):
        DuQuant(block=8, rotation_steps=1).layer_transforms(view)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"block": 1}, r"block=1 \(at least 2\)"),
        ({"alpha": 1.2}, r"alpha=1.2"),
        ({"rotation_steps": -1, "search_tokens": 0}, r"rotation_steps=-1 .*search_tokens=0"),
        ({"permutations": -1}, "permutations=-1"),
        ({"keys": "none"}, r"keys='none' \(greedy or hadamard\)"),
    ],
)
def test_options_out_of_range_are_all_told(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DuQuant(**arguments)
