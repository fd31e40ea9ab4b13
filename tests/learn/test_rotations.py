"""A file of rotations: what comes back, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sq.errors import CheckpointError
from sq.learn.rotations import Rotations, load_rotations
from sq.models.families import ModelDimensions
from sq.rotation import random_orthogonal

GEOMETRY = ModelDimensions(hidden=8, intermediate=12, heads=2, kv_heads=1, head_dim=4, layers=3)


def rotations() -> Rotations:
    return Rotations(random_orthogonal(8, 0), torch.stack([random_orthogonal(4, seed) for seed in range(3)]))


def test_comes_back_bit_for_bit_with_its_facts(tmp_path: Path) -> None:
    saved = rotations().to(torch.float32).projected()
    saved.save(tmp_path / "r.safetensors", {"trained_on": {"weights": "4"}})
    found, facts = load_rotations(tmp_path / "r.safetensors", GEOMETRY)
    assert torch.equal(found.residual, saved.residual)
    assert torch.equal(found.heads, saved.heads)
    assert facts == {"trained_on": {"weights": "4"}}


def test_projection_gives_the_nearest_orthogonal_matrix_of_an_svd() -> None:
    rough = rotations().to(torch.float32).to(torch.float64)
    rough = Rotations(rough.residual + 1e-4, rough.heads)
    u, _, vh = torch.linalg.svd(rough.residual)
    exact = rough.projected()
    torch.testing.assert_close(exact.residual, u @ vh, rtol=0, atol=1e-12)
    assert exact.error() < 1e-12 < 1e-5 < rough.error()


def test_a_released_file_under_its_own_names_in_float32_is_read(tmp_path: Path) -> None:
    given = rotations().to(torch.float32)
    tensors = {f"model.layers.{index}.self_attn.R2": head.clone() for index, head in enumerate(given.heads)}
    save_file({"R1": given.residual, **tensors}, tmp_path / "r.safetensors")
    found, facts = load_rotations(tmp_path / "r.safetensors", GEOMETRY)
    assert facts == {}
    assert found.error() < 1e-12
    torch.testing.assert_close(found.heads.float(), given.heads, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": 16}, r"of another model: R1 is \(8, 8\), needed is \(16, 16\)"),
        ({"head_dim": 2}, r"layers\.0\.self_attn\.R2 is \(4, 4\), needed is \(2, 2\)"),
        ({"layers": 4}, r"layers\.3\.self_attn\.R2 is missing"),
        ({"layers": 2}, r"layers\.2\.self_attn\.R2 is too much: the model has 2 layers"),
    ],
)
def test_rotations_of_another_model_are_refused(change: dict[str, int], said: str, tmp_path: Path) -> None:
    rotations().save(tmp_path / "r.safetensors", {})
    with pytest.raises(CheckpointError, match=said):
        load_rotations(tmp_path / "r.safetensors", replace(GEOMETRY, **change))


def stretched(path: Path) -> None:
    Rotations(1.01 * rotations().residual, rotations().heads).save(path, {})


def with_nan(path: Path) -> None:
    Rotations(rotations().residual * torch.nan, rotations().heads).save(path, {})


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: None, "no rotations at"),
        (lambda path: path.write_bytes(b"R.bin"), "cannot be read as safetensors"),
        (stretched, r"not orthogonal: \|R\^T R - I\| reaches 2.0e-02"),
        (with_nan, "not orthogonal"),
    ],
)
def test_files_that_hold_no_rotations_are_refused(write: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    write(tmp_path / "r.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load_rotations(tmp_path / "r.safetensors", GEOMETRY)
