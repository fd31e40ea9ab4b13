"""The shared loop: AdamW steps by hand, rates by their formula, and an end of every divergence."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, isnan, pi
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sq.errors import TrainingError
from sq.learn.fit import Group, batches_of, fit
from sq.quantize.training_log import TrainingLog


def log() -> TrainingLog:
    return TrainingLog(None, "someone")


def quadratic(x: Tensor, centres: Tensor) -> Callable[[int], Tensor]:
    return lambda batch: (x - centres[batch]).square().sum()


def test_steps_are_adamw_without_decay_with_a_rate_for_each_group() -> None:
    """Two steps by the formula: m, v with bias correction, x -= lr m / (sqrt(v) + eps)."""
    fast, slow = nn.Parameter(torch.tensor([2.0, -1.0])), nn.Parameter(torch.tensor([5.0]))

    def loss(batch: int) -> Tensor:
        return (batch + 1) * (fast.square().sum() + slow.square().sum())

    expected = []
    for start, lr in (([2.0, -1.0], 0.1), ([5.0], 0.01)):
        x = torch.tensor(start, dtype=torch.float64)
        m, v = torch.zeros_like(x), torch.zeros_like(x)
        for step in (1, 2):
            gradient = 2 * step * x
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient.square()
            x = x - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        expected.append(x.float())
    fit([Group("a", [fast], 0.1), Group("b", [slow], 0.01)], loss, batches=2, epochs=1, log=log(), layer=0)
    torch.testing.assert_close(fast.data, expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(slow.data, expected[1], rtol=1e-6, atol=0)


def test_weight_decay_takes_its_share_of_the_rate_at_each_step() -> None:
    """A parameter without a gradient to follow: x (1 - lr decay)^3."""
    x = nn.Parameter(torch.tensor([2.0]))
    fit([Group("a", [x], 0.1)], lambda _: 0 * x.sum(), batches=3, epochs=1, log=log(), layer=0, weight_decay=0.5)
    assert float(x.detach()) == pytest.approx(2 * 0.95**3)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e6])
def test_relative_steps_do_not_depend_on_the_unit_of_the_loss(unit: float) -> None:
    """AdamW's epsilon of 1e-8 would outweigh gradients of 1e-12; the losses that are kept are in their own unit."""
    ends, centres = [], torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for scale in (1.0, unit):
        x = nn.Parameter(torch.zeros(2))
        loss = quadratic(x, centres)
        fitted = fit(
            [Group("a", [x], 0.1)],
            lambda batch, loss=loss, scale=scale: scale * loss(batch),  # type: ignore[misc]
            batches=2,
            epochs=3,
            log=log(),
            layer=0,
            relative=True,
        )
        assert fitted.initial == pytest.approx(15 * scale)
        ends.append(x.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=0)


def test_a_relative_loss_of_zero_is_no_divergence() -> None:
    x = nn.Parameter(torch.zeros(2))
    fit([Group("a", [x], 0.1)], lambda _: x.square().sum(), batches=1, epochs=2, log=log(), layer=0, relative=True)
    assert torch.equal(x.detach(), torch.zeros(2))


def test_cosine_rates_reach_the_final_one_for_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW) -> None:
        seen.append([group["lr"] for group in self.param_groups])
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    x, y = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [Group("a", [x], 0.5), Group("b", [y], 0.05)]
    arguments = {"batches": 3, "epochs": 2, "log": log(), "layer": 0}
    fit(groups, lambda _: (x * y).sum(), **arguments, schedule="cosine", final_lr=0.01)  # type: ignore[arg-type]
    for column, lr in enumerate((0.5, 0.05)):
        expected = [0.01 + (lr - 0.01) * (1 + cos(pi * t / 6)) / 2 for t in range(6)]
        assert [rates[column] for rates in seen] == pytest.approx(expected)
    seen.clear()
    fit(groups, lambda _: (x * y).sum(), **arguments)  # type: ignore[arg-type]
    assert seen == [[0.5, 0.05]] * 6


def test_loss_falls_and_means_are_told_and_logged() -> None:
    x, centres = nn.Parameter(torch.zeros(3)), torch.randn(4, 3)
    records, shown = TrainingLog(None, "someone", lambda *told: shown.append(told)), []  # type: ignore[var-annotated]
    with torch.no_grad():  # as in the pipeline
        fitted = fit([Group("lr", [x], 0.05)], quadratic(x, centres), batches=4, epochs=60, log=records, layer=7)
    assert fitted.initial == pytest.approx(float(centres.square().sum(1).mean()))
    assert fitted.epochs[-1] < 0.9 * fitted.initial
    torch.testing.assert_close(x.data, centres.mean(0), rtol=0, atol=0.1)
    assert [record["epoch"] for record in records.records] == list(range(61))
    assert records.records[2] == {"layer": 7, "epoch": 2, "step": 8, "loss": fitted.epochs[1]}
    assert shown[-1] == ("layer 7", 240, 240)


def test_order_of_batches_follows_the_generator_and_is_kept_without_one() -> None:
    def visited(generator: torch.Generator | None) -> list[int]:
        order: list[int] = []
        x = nn.Parameter(torch.ones(1))

        def loss(batch: int) -> Tensor:
            if torch.is_grad_enabled():
                order.append(batch)
            return x.square().sum()

        fit([Group("lr", [x], 0.1)], loss, batches=5, epochs=3, log=log(), layer=0, generator=generator)
        return order

    def seeded(seed: int) -> list[int]:
        return visited(torch.Generator().manual_seed(seed))

    assert visited(None) == [0, 1, 2, 3, 4] * 3
    assert seeded(1) == seeded(1) != seeded(2)
    assert all(sorted(seeded(1)[start : start + 5]) == [0, 1, 2, 3, 4] for start in (0, 5, 10))


def test_no_epoch_evaluates_nothing() -> None:
    x = nn.Parameter(torch.ones(1))
    fitted = fit([Group("lr", [x], 0.1)], pytest.fail, batches=2, epochs=0, log=log(), layer=0)  # type: ignore[arg-type]
    assert isnan(fitted.initial)
    assert fitted.epochs == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_it_with_step_layer_and_rates(bad: float, tmp_path: Path) -> None:
    x, seen = nn.Parameter(torch.ones(1)), 0

    def loss(batch: int) -> Tensor:
        nonlocal seen
        seen += torch.is_grad_enabled()
        return x.sum() * (bad if seen == 6 else 1.0)

    groups = [Group("let_lr", [x], 0.005), Group("lwc_lr", [nn.Parameter(torch.ones(1))], 0.01)]
    said = rf"someone diverged: the loss is {bad} at step 5 of layer 3 with method.let_lr=0.005, method.lwc_lr=0.01"
    with pytest.raises(TrainingError, match=said):
        fit(groups, loss, batches=4, epochs=2, log=log(), layer=3)


def test_parameters_ruined_by_the_last_step_are_told() -> None:
    """The loss 0 has the derivative 0 / 0 there: every loss is finite, the step is not."""
    x = nn.Parameter(torch.zeros(2))
    with pytest.raises(TrainingError, match=r"a parameter is nan at step 1 of layer 0 with method\.lr=0\.1"):
        fit(
            [Group("lr", [x], 0.1)],
            lambda _: x.norm() * 0 + x.square().sum().sqrt(),
            batches=1,
            epochs=1,
            log=log(),
            layer=0,
        )


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(ValueError, match="schedule='linear', batches=0; allowed: none, cosine"):
        fit([], lambda _: torch.ones(()), batches=0, epochs=1, log=log(), layer=0, schedule="linear")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
def test_windows_are_dealt_in_order_whatever_the_size(size: int) -> None:
    hidden = [torch.randn(count, 3, 2) for count in (4, 4, 3)]
    dealt = batches_of(hidden, size)
    assert torch.equal(torch.cat(dealt), torch.cat(hidden))
    assert {len(batch) for batch in dealt[:-1]} <= {size}
    shared = dealt[0].untyped_storage().data_ptr() == hidden[0].untyped_storage().data_ptr()
    assert shared == (size in (1, 2, 4))
