"""SingleQuant: its options, its errors, and the property each option promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import save_random
from recipes import folded
from torch import Tensor

from sq.errors import QuantizationError
from sq.methods.singlequant import SingleQuant
from sq.models.families import SITES
from sq.models.site_transform import from_heads, over_heads
from sq.models.stream import DecoderStream
from sq.quantize.collect import StackedWeights, collect
from sq.quantize.method import LayerView
from sq.quantize.pass_record import peak_over_rms
from sq.rotation import BlockHadamard, Kronecker, PerHead


def view_of(folder: Path, **overrides: Any) -> LayerView:
    save_random(folder, "llama", **overrides)
    stream = DecoderStream(folder, dtype=torch.float32)
    layer = stream.layer(0)
    hidden = stream.embeddings_and_head().embed(
        torch.randint(0, 97, (8, 32), generator=torch.Generator().manual_seed(0))
    )
    found, _ = collect(
        stream.family,
        layer,
        lambda b: stream.forward(0, layer, b),
        [hidden],
        index=0,
        sites=SITES,
        second_moment=SITES,
        attention=True,
    )
    return LayerView(0, found, StackedWeights(stream.family, layer), stream.dimensions)


def tokens_after(view: LayerView, method: SingleQuant, site: str) -> Tensor:
    return method.layer_transforms(view)[site].tokens(view.statistics[site].tokens, site, view.dimensions)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"order": ("urt", "magic")}, r"stage 'magic' unknown; stages: art, urt, hadamard, orthogonal"),
        ({"sites": ("qkv", "lm_head")}, r"site 'lm_head' unknown.*sites: qkv, o, gate_up, down"),
        ({"placement": "offline"}, r"placement='offline'.*allowed: online, folded"),
        ({"keys": "hadamard"}, r"keys='hadamard'; allowed: balance, rotation, none"),
        ({"urt_target": "round"}, r"target 'round'.*uniform"),
        ({"rank": -1}, "rank=-1"),
        ({"rank": 4, "mixing": "dense"}, "does nothing in front"),
        ({"mixing": "merged", "kronecker": False}, "merges with a Kronecker rotation"),
        ({"brake": 0.0}, "brake=0.0"),
        ({"down": "blocks"}, "down='blocks'; allowed: rotation, hadamard, none"),
    ],
)
def test_options_out_of_range_are_told_before_anything_is_loaded(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        folded(**arguments)


def test_size_without_a_factor_pair_names_layer_site_and_way_out(tmp_path: Path) -> None:
    view = view_of(tmp_path, intermediate_size=83)
    with pytest.raises(QuantizationError, match=r"layer 0, down: a size of 83.*method\.kronecker=false"):
        folded(order=("urt",)).layer_transforms(view)
    assert folded(order=("urt",), kronecker=False).layer_transforms(view)["down"].online is not None


def test_a_hadamard_of_blocks_at_down_leaves_its_signs_to_the_rows_of_up(tmp_path: Path) -> None:
    """Online stands I (x) H_k without signs, k = 4 of 84 = 4 * 21; the signs differ from layer to layer."""
    view = view_of(tmp_path)
    found = folded(down="hadamard").layer_transforms(view)["down"]
    assert isinstance(found.online, BlockHadamard)
    assert found.online.n2 == 4
    assert found.folded is not None
    balance = folded(down="none").layer_transforms(view)["down"]
    assert balance.online is None
    ones = torch.ones(1, 84, dtype=torch.float64)
    signs = found.folded(ones) / balance.folded(ones)  # type: ignore[misc]
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    with pytest.raises(QuantizationError, match=r"layer 0, down: 83 features have no block.*method\.down=none"):
        folded(down="hadamard").layer_transforms(view_of(tmp_path / "odd", intermediate_size=83))


def test_balance_gives_activations_and_weights_equal_rms(tmp_path: Path) -> None:
    """After the diagonal alone rms(x_j) / rms(w_j) is one constant at every site; at o within a KV head's channels."""
    view = view_of(tmp_path)
    transforms = folded(order=(), kronecker=False, placement="online").layer_transforms(view)
    for site in SITES:
        statistics, dimensions = view.statistics[site], view.dimensions
        x = transforms[site].tokens(statistics.tokens, site, dimensions).square().mean(0)
        w = transforms[site].weights(view.weights[site], site, dimensions).square().mean(0)
        if site == "o":
            x, w = over_heads(x, dimensions).mean(0), over_heads(w, dimensions).mean(0)
        ratio = (x / w).sqrt()
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)


@pytest.mark.parametrize("placement", ["online", "folded"])
def test_rotation_lowers_the_peak_at_the_sites_it_serves(placement: str, tmp_path: Path) -> None:
    view = view_of(tmp_path)
    spiked = view.statistics["down"]
    spiked.tokens[:, 3] *= 40
    method = folded(placement=placement, balance=False, order=("orthogonal", "urt"))  # type: ignore[arg-type]
    assert peak_over_rms(tokens_after(view, method, "down")) < 0.5 * peak_over_rms(spiked.tokens)


def test_folded_placement_leaves_only_down_online(tmp_path: Path) -> None:
    transforms = folded(placement="folded", order=("orthogonal", "urt")).layer_transforms(view_of(tmp_path))
    assert [site for site in SITES if transforms[site].online is not None] == ["down"]
    assert isinstance(transforms["down"].online, Kronecker)


def test_folded_head_rotation_is_one_block_a_kv_head(tmp_path: Path) -> None:
    view = view_of(tmp_path)
    found = folded(placement="folded", balance=False, order=("orthogonal",)).layer_transforms(view)["o"].folded
    assert isinstance(found, PerHead)
    assert found.n == view.dimensions.kv_heads * view.dimensions.head_dim


def test_heads_view_shows_each_query_head_its_kv_head(tmp_path: Path) -> None:
    """Channel c of query head h is at group h % group, KV head h // group, channel c; and back."""
    dimensions = view_of(tmp_path).dimensions
    x = torch.arange(dimensions.heads * dimensions.head_dim).float()
    spread = over_heads(x, dimensions).reshape(-1, dimensions.kv_heads, dimensions.head_dim)
    group = dimensions.heads // dimensions.kv_heads
    for head in range(dimensions.heads):
        expected = x[head * dimensions.head_dim : (head + 1) * dimensions.head_dim]
        torch.testing.assert_close(spread[head % group, head // group], expected)
    torch.testing.assert_close(from_heads(over_heads(x, dimensions), dimensions), x)


def by_kv_head(view: LayerView, name: str) -> Tensor:
    """Captured keys or queries (T', kv_heads, head_dim): all query heads of a group are samples of their KV head."""
    dimensions, tokens = view.dimensions, view.statistics[name].tokens
    if name == "keys":
        return tokens.unflatten(-1, (dimensions.kv_heads, dimensions.head_dim))
    grouped = tokens.unflatten(-1, (dimensions.kv_heads, -1, dimensions.head_dim))  # (T, kv_heads, group, head_dim)
    return grouped.transpose(1, 2).flatten(0, 1)


def test_balanced_keys_and_their_queries_have_one_second_moment(tmp_path: Path) -> None:
    """k T and q T^-T of every KV head end with proportional second moments, whatever rotation follows."""
    view = view_of(tmp_path)
    transform = folded(order=("orthogonal", "urt")).key_transform(view)
    assert isinstance(transform, PerHead)
    keys, queries = by_kv_head(view, "keys").double(), by_kv_head(view, "queries").double()
    turned_keys = transform(keys.flatten(-2)).view_as(keys)
    turned_queries = transform.inverse_transpose(queries.flatten(-2)).view_as(queries)
    for head in range(view.dimensions.kv_heads):
        moments = [x[:, head].T @ x[:, head] for x in (turned_keys, turned_queries)]
        first, second = (moment / moment.trace() for moment in moments)
        torch.testing.assert_close(first, second, rtol=0, atol=0.03 * float(first.max()))  # damping of the balance
        before = keys[:, head].T @ keys[:, head]
        assert not torch.allclose(before / before.trace(), first, atol=0.03 * float(first.max()))


def test_rotated_keys_are_flatter_than_captured_ones(tmp_path: Path) -> None:
    view = view_of(tmp_path)
    view.statistics["keys"].tokens[:, 3] *= 40
    transform = folded(order=("orthogonal", "urt"), keys="rotation").key_transform(view)
    assert isinstance(transform, PerHead)
    assert transform.orthogonal
    keys = by_kv_head(view, "keys")
    turned = transform(keys.flatten(-2)).view_as(keys)
    assert peak_over_rms(turned[:, 0]) < 0.8 * peak_over_rms(keys[:, 0])
    assert folded(keys="none").key_transform(view) is None


def test_same_seed_gives_the_same_transforms_and_another_does_not(tmp_path: Path) -> None:
    view = view_of(tmp_path)
    first, again, other = (
        tokens_after(view, folded(order=("orthogonal",), placement="online", seed=s), "qkv") for s in (1, 1, 2)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert float((first - other).abs().max()) > 0.1


def test_blocks_are_balanced_on_the_sample_and_a_dense_balance_on_all_tokens(tmp_path: Path) -> None:
    """Behind the transform both sides of each block have one second moment, up to damping and one factor for all."""
    blocks = folded(order=(), placement="online", mixing="block", block=7, sites=("down",))
    assert blocks.second_moments == ()
    assert tuple(folded(placement="online", mixing="dense").second_moments) == SITES
    view = view_of(tmp_path)
    transform = blocks.layer_transforms(view)["down"]
    x, w = tokens_after(view, blocks, "down"), transform.weights(view.weights["down"], "down", view.dimensions)
    moments = [(part.T @ part).unflatten(0, (-1, 7)).unflatten(2, (-1, 7)).diagonal(dim1=0, dim2=2) for part in (x, w)]
    first, second = (moment / moment.diagonal().sum() for moment in moments)
    torch.testing.assert_close(first, second, rtol=0, atol=0.03 * float(first.max()))
