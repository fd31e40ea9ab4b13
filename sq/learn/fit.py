"""AdamW on the parameters of one decoder layer: the loop that methods trained layer by layer share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sq.learn.schedule import decayed
from sq.quantize.training_log import TrainingLog

Schedule = Literal["none", "cosine"]


@dataclass(frozen=True)
class Group:
    """Parameters with a learning rate of their own; `setting` is the method's option for it, such as "let_lr"."""

    setting: str
    parameters: Sequence[Tensor]
    lr: float


@dataclass(frozen=True)
class Fitted:
    """Mean losses over all batches: before the first step, and of each epoch while its steps were taken."""

    initial: float
    epochs: tuple[float, ...]


def fit(
    groups: Sequence[Group],
    loss: Callable[[int], Tensor],
    *,
    batches: int,
    epochs: int,
    log: TrainingLog,
    layer: int,
    schedule: Schedule = "none",
    final_lr: float = 0.0,
    weight_decay: float = 0.0,
    relative: bool = False,
    generator: torch.Generator | None = None,
) -> Fitted:
    """Lower the mean of loss(0), ..., loss(batches - 1): a step of AdamW on each, every epoch.

    The parameters are left as the last step leaves them. Gradients are on inside, whatever the caller's mode is. The
    log gets one record an epoch: layer, epoch (0 = before the first step), step (taken so far) and loss.

    Args:
        groups: what is fitted, changed in place.
        loss: batch index -> scalar, differentiable in the parameters.
        epochs: passes over all batches; with 0 nothing is evaluated and `initial` is NaN.
        layer: its index, for log and errors.
        schedule: "none", or "cosine": step t of T has final_lr + (lr - final_lr) (1 + cos(pi t / T)) / 2, t from 0.
        weight_decay: of AdamW, times the learning rate.
        relative: take gradients of the loss divided by its own value, so that they have one scale in every layer.
        generator: draws the order of the batches anew in each epoch; None keeps it 0, 1, 2, ...

    Raises:
        TrainingError: NaN or inf in a loss, or in the parameters at the end.
        ValueError: an unknown schedule, or no batch.
    """
    if schedule not in get_args(Schedule) or batches < 1:
        raise ValueError(
            f"schedule={schedule!r}, batches={batches}; allowed: {', '.join(get_args(Schedule))}; at least 1 batch"
        )
    if epochs == 0:
        return Fitted(float("nan"), ())
    rates = {group.setting: group.lr for group in groups}
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters), "lr": group.lr} for group in groups], weight_decay=weight_decay
    )
    means: list[float] = []
    total = epochs * batches

    def close_epoch(epoch: int, losses: Sequence[float]) -> None:
        means.append(sum(losses) / batches)
        log.write(layer=layer, epoch=epoch, step=epoch * batches, loss=means[-1])

    def checked(value: Tensor, step: int) -> float:
        number = float(value.detach())
        log.check(number, "the loss", step=step, layer=layer, **rates)
        return number

    log.progress(f"layer {layer}", 0, total)
    with torch.no_grad():
        close_epoch(0, [checked(loss(batch), 0) for batch in range(batches)])
    with torch.enable_grad():
        for epoch in range(epochs):
            losses = []
            order = range(batches) if generator is None else torch.randperm(batches, generator=generator).tolist()
            for step, batch in enumerate(order, epoch * batches):
                if schedule == "cosine":
                    for group, settings in zip(groups, optimizer.param_groups, strict=True):
                        settings["lr"] = final_lr + decayed(group.lr - final_lr, schedule, step, total)
                optimizer.zero_grad()
                value = loss(batch)
                losses.append(checked(value, step))
                (value / value.detach().clamp_min(torch.finfo(value.dtype).tiny) if relative else value).backward()
                optimizer.step()
                log.progress(f"layer {layer}", step + 1, total)
            close_epoch(epoch + 1, losses)
    for group in groups:
        for parameter in group.parameters:
            log.check(float(parameter.detach().abs().max()), "a parameter", step=total, layer=layer, **rates)
    return Fitted(means[0], tuple(means[1:]))


def batches_of(hidden: Sequence[Tensor], size: int) -> list[Tensor]:
    """Windows (B, S, hidden) of all batches in batches of `size`, in order (the last may have fewer)."""
    if all(len(batch) % size == 0 for batch in hidden[:-1]):
        return [part for batch in hidden for part in batch.split(size)]
    return list(torch.cat(list(hidden)).split(size))
