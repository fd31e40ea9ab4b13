"""J: its closed forms, its invariances and the order of structures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sq.cli.structures import main
from sq.methods.criterion import criterion, least, normalized, structures
from sq.rotation import Dense, Identity, random_orthogonal


def moments(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(4 * n, n, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, n, dtype=torch.float64)
    w = torch.randn(3 * n, n, generator=generator, dtype=torch.float64)
    return normalized(x.T @ x), normalized(w.T @ w)


def test_it_is_the_product_of_traces() -> None:
    c, m = moments(6)
    t = torch.randn(6, 6, dtype=torch.float64) + 3 * torch.eye(6, dtype=torch.float64)
    inverse = torch.linalg.inv(t)
    expected = (t.T @ c @ t).trace() * (inverse @ m @ inverse.T).trace()
    assert criterion(Dense(t, orthogonal=False), c, m) == pytest.approx(float(expected))
    assert criterion(Identity(6), c, m) == pytest.approx((6 * 1.01) ** 2)
    rotation = Dense(random_orthogonal(6, 0), orthogonal=True)
    assert criterion(rotation, c, m) == pytest.approx(criterion(Identity(6), c, m)), "a rotation moves no trace"


@pytest.mark.parametrize("n", [12, 15])
def test_the_dense_balance_attains_the_least(n: int) -> None:
    c, m = moments(n)
    j = {each.name: criterion(each.build(c, m), c, m) / least(c, m) for each in structures(block=4, ranks=(2,))}
    assert j["dense"] == pytest.approx(1)
    assert min(j.values()) >= 1 - 1e-9
    assert j["none"] > j["diagonal"] > j["blocks up to 4"] > j["rank 2, then blocks"] > 1


@pytest.mark.slow
def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["model=tiny", "calibration.tokens=512", "--layers", "0", "--block", "32", "--ranks", "4"]
    assert main(overrides) == 0
    printed = capsys.readouterr().out
    for head in ("structure", "gate_up", "blocks up to 32", "rank 4, then blocks", "dense"):
        assert head in printed
    assert main(["model=nowhere"]) == 2
    assert "allowed" in capsys.readouterr().err
