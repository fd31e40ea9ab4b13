"""Rotations of many sets against build_rotation of each."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sq.errors import CalibrationError
from sq.rotation import (
    Art,
    RandomHadamard,
    RandomOrthogonal,
    Stage,
    Urt,
    build_rotation,
    kurtosis_rotations,
    set_rotations,
    urt,
)

ORDERS: dict[str, Sequence[Stage]] = {
    "none": [],
    "hadamard": [RandomHadamard()],
    "random": [RandomHadamard(), RandomOrthogonal()],
    "fourth moment": [Urt(sweeps=2)],
    "hadamard then fourth moment": [RandomHadamard(), Urt()],
    "all": [RandomOrthogonal(), Art(steps=3), Urt("flat"), Urt()],
}


def samples(dtype: torch.dtype) -> Tensor:
    x = torch.randn(4, 3, 25, 8, generator=torch.Generator().manual_seed(0)) ** 3
    return x.movedim(2, 0).flatten(1, 2).to(dtype)  # (25, 12, 8), as heads come out of their tokens


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=["fp64", "fp32"])
def test_sets_get_what_each_gets_alone(order: str, dtype: torch.dtype, off: float) -> None:
    x, stages = samples(dtype), ORDERS[order]
    found = set_rotations(x, stages, seed=3)
    expected = torch.stack([build_rotation(tokens, stages, None, 3).matrix() for tokens in x])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=off)
    torch.testing.assert_close(found @ found.mT, torch.eye(8).double().repeat(25, 1, 1), rtol=0, atol=1e-12)


def test_the_fourth_moment_alone_is_the_same_bit_for_bit() -> None:
    x = samples(torch.float32)
    expected = torch.stack([build_rotation(tokens, [Urt()]).matrix() for tokens in x])
    assert torch.equal(set_rotations(x, [Urt()]), expected)


def test_the_fourth_moment_builds_all_sets_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urt, "kurtosis_rotation", None)  # the way of one set
    x = samples(torch.float64)
    unit = x / x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(set_rotations(x, [Urt()]), kurtosis_rotations(unit), rtol=0, atol=1e-9)


def test_bad_samples_name_their_set() -> None:
    x = samples(torch.float32)
    x[7, 2, 1] = torch.nan
    with pytest.raises(CalibrationError, match="layer 3, KV head 7 carry NaN or inf in 1 of 12 tokens"):
        set_rotations(x, [Urt()], name="layer 3, KV head")
    with pytest.raises(ValueError, match=r"shape \(12, 8\)"):
        set_rotations(x[0], [Urt()])
