"""task=activations: what is kept is what the quantized layer computes, and the first plane rotation is ART's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.checkpoints import SIZES, save_random
from recipes import folded
from torch import Tensor

from sq.errors import ConfigError
from sq.methods.singlequant import SingleQuant
from sq.methods.yardsticks import RoundToNearest
from sq.models.stream import DecoderStream
from sq.nn.linear import SiteInput
from sq.quantize.pipeline import Pipeline
from sq.quantize.recipe import Recipe
from sq.quantize.stage_record import StageRecord, even_sample
from sq.rotation import art_rotation

LAYER = 1


def staged(**changes: Any) -> SingleQuant:
    return folded(**{"order": ("art", "urt"), "placement": "online", "balance": False, **changes})


def recorded(folder: Path, method: SingleQuant, site: str, tokens: int = 50) -> tuple[dict[str, np.ndarray], Tensor]:
    """The record of one layer, and what the quantized layer's own site gives for all calibration tokens."""
    save_random(folder, "llama")
    stream = DecoderStream(folder, dtype=torch.float32)
    ids = torch.randint(0, SIZES["vocab_size"], (6, 20), generator=torch.Generator().manual_seed(0))
    record = StageRecord(method, LAYER, site, tokens, layers=stream.count)
    recipe = Recipe(propagate="full_precision")
    pipeline = Pipeline(stream, method, recipe, ids, batch=4, watch=record.see)
    pipeline.prepare()
    layers = list(pipeline.layers())
    seen: list[Tensor] = []
    module = layers[LAYER].get_submodule(stream.family.linears[site][0]).inputs
    assert isinstance(module, SiteInput)
    module.observer = lambda turned: seen.append(turned.flatten(0, -2))
    pipeline.stream.assemble(layers, pipeline.embeddings_and_head)(ids)
    record.write(folder / "activations.npz")
    return dict(np.load(folder / "activations.npz")), torch.cat(seen)


def rms_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))


@pytest.mark.parametrize(("site", "changes"), [
    ("qkv", {}), ("o", {"balance": True}), ("gate_up", {"kronecker": False}), ("down", {"placement": "folded"}),
    ("down", {"order": ("orthogonal", "art", "urt")}),
])  # fmt: skip
def test_the_stages_one_by_one_are_the_transform_of_the_quantized_layer(
    tmp_path: Path, site: str, changes: dict[str, Any]
) -> None:
    arrays, turned = recorded(tmp_path, staged(**changes), site, tokens=1000)
    assert arrays["before"].shape == arrays["after_art"].shape == tuple(turned.shape)
    assert {array.dtype for name, array in arrays.items() if name != "givens_channels"} == {np.dtype("float32")}
    assert rms_difference(arrays["after_urt"], turned.numpy()) < 1e-4
    assert rms_difference(arrays["after_art"], turned.numpy()) > 0.05, "URT does something"
    assert rms_difference(arrays["after_art"], arrays["before"]) > 0.05, "ART does something"


@pytest.mark.parametrize("site", ["qkv", "down"])
@pytest.mark.parametrize("changes", [{}, {"mixing": "none", "rank": 0}, {"mixing": "block", "block": 4}])
def test_other_methods_show_the_balance_and_the_rotation_behind_it(
    tmp_path: Path, site: str, changes: dict[str, Any]
) -> None:
    method = SingleQuant(**{"block": 16, "rank": 2, "order": ("orthogonal",), **changes})
    arrays, turned = recorded(tmp_path, method, site, tokens=1000)
    assert rms_difference(arrays["after_rotation"], turned.numpy()) < 1e-4
    assert rms_difference(arrays["after_balance"], arrays["before"]) > 0.05, "the balance does something"
    norms = [np.square(arrays[name]).sum(1) for name in ("after_balance", "after_rotation")]
    np.testing.assert_allclose(*norms, rtol=1e-3, err_msg="what stands behind the balance is orthogonal")


def test_after_art_is_what_art_alone_gives(tmp_path: Path) -> None:
    arrays, _ = recorded(tmp_path, staged(kronecker=False), "down", tokens=1000)
    rotation = art_rotation(torch.from_numpy(arrays["before"]), 8)
    expected = arrays["before"] @ rotation.numpy()
    assert rms_difference(arrays["after_art"], expected) < 1e-5
    assert np.abs(arrays["after_art"]).max() < np.abs(arrays["before"]).max()


def test_the_plane_rotation_is_the_closed_form_on_the_largest_peak(tmp_path: Path) -> None:
    """theta = atan2(b, a) - pi / 4 leaves both entries of the peak's token at sqrt((a^2 + b^2) / 2)."""
    arrays, _ = recorded(tmp_path, staged(), "down", tokens=1000)
    before = arrays["before"]
    token, i = np.unravel_index(np.abs(before).argmax(), before.shape)
    j = np.abs(before).max(0).argmin()
    assert arrays["givens_channels"].tolist() == [i, j]
    a, b = (float(value) for value in before[token, [i, j]])
    assert float(arrays["givens_angle"]) == pytest.approx(math.atan2(b, a) - math.pi / 4, abs=1e-6)
    np.testing.assert_array_equal(arrays["givens_before"], before[:, [i, j]])
    np.testing.assert_allclose(arrays["givens_after"][token], math.hypot(a, b) / math.sqrt(2), rtol=1e-5)
    norms = [np.square(arrays[name]).sum(1) for name in ("givens_before", "givens_after")]
    np.testing.assert_allclose(*norms, rtol=1e-4)


def test_a_few_tokens_hold_the_massive_outlier(tmp_path: Path) -> None:
    x = torch.randn(103, 4, generator=torch.Generator().manual_seed(0))
    x[17, 2] = 90.0
    rows = even_sample(x, 5)
    assert rows.tolist() == [0, 17, 51, 76, 102]
    assert even_sample(x, 1000).tolist() == list(range(103))
    arrays, _ = recorded(tmp_path, staged(), "down", tokens=7)
    assert arrays["before"].shape == arrays["after_urt"].shape == (7, SIZES["intermediate_size"])
    assert arrays["givens_before"].shape == (7, 2)


@pytest.mark.parametrize(
    ("method", "layer", "site", "said"),
    [
        (RoundToNearest(), 0, "qkv", r"'rtn' has no parts.*method=ablation/art_then_urt"),
        (staged(sites=("qkv",)), 0, "down", r"site=down; .* transforms qkv"),
        (staged(), 3, "down", r"layer=3; the model has layers 0 to 2"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_the_way_out(method: Any, layer: int, site: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        StageRecord(method, layer, site, 8, layers=3)


def test_a_rotation_that_is_folded_as_a_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site=qkv has no rotation of its own.*site=down"):
        recorded(tmp_path, staged(placement="folded"), "qkv")
