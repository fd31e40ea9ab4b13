"""Cayley SGD on the rotations of a whole model: the loop, its log and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sq.errors import TrainingError
from sq.learn.cayley import cayley_step
from sq.learn.rotations import ORTHOGONAL, RESIDUAL, Rotations
from sq.learn.schedule import Decay, decayed
from sq.learn.training_state import TrainingState, TrainingStateFile
from sq.quantize.training_log import TrainingLog
from sq.rotation import orthonormalize

RETRACTION_INTERVAL = 101  # steps; SpinQuant train_utils/optimizer.py retracts by QR with chance 1/101 at each step
HEADS, HELD = "R2", "held."


@dataclass(frozen=True)
class Descent:
    """How rotations are learned: steps of Cayley SGD (0 leaves the start as it is), at rates that fall from lr to 0."""

    steps: int
    lr: float
    decay: Decay


def learn_rotations(
    start: Rotations,
    loss: Callable[[Rotations, int], Tensor],
    descent: Descent,
    *,
    log: TrainingLog,
    checkpoint: TrainingStateFile,
    held: dict[str, Tensor],
) -> Rotations:
    """Lower a loss by Cayley SGD, then take the nearest orthogonal matrices in float64.

    Steps are taken in the dtype of the start. Every 101st goes on from the nearest orthogonal matrices. What the log
    gets is in README.md beside this file.

    Args:
        start: orthogonal.
        loss: (rotations, number of the step) -> scalar, differentiable in both rotations.
        checkpoint: where the state is saved, and where training goes on after an interruption, unless `log.force`.
        held: tensors that the loss keeps from step to step; saved and restored.

    Raises:
        TrainingError: NaN or inf in loss, gradient or rotations, or a result that is not orthogonal to 1e-6.
    """
    rotations, first = start, 0
    saved = None if log.force else checkpoint.load(start.residual.device)
    if saved is not None:
        rotations, first = Rotations(saved.tensors[RESIDUAL], saved.tensors[HEADS]), saved.step
        held |= {name[len(HELD) :]: tensor for name, tensor in saved.tensors.items() if name.startswith(HELD)}
        log.resume(saved.records)
    log.progress("rotations", first, descent.steps)
    for step in range(first, descent.steps):
        rotations = _step(rotations, loss, descent, step, log)
        done = step + 1
        if done % checkpoint.interval == 0 or done == descent.steps:
            tensors = {RESIDUAL: rotations.residual, HEADS: rotations.heads}
            tensors |= {HELD + name: tensor for name, tensor in held.items()}
            checkpoint.save(TrainingState(done, tensors, log.records))
        log.progress("rotations", done, descent.steps)
    learned = rotations.projected()
    log.write(
        step=descent.steps, orthogonality=rotations.to(torch.float64).error(), projected_orthogonality=learned.error()
    )
    if not learned.error() <= ORTHOGONAL:
        raise TrainingError(
            f"the rotations learned in {descent.steps} steps at learning rate {descent.lr} are orthogonal to "
            f"{learned.error():.1e} only, {ORTHOGONAL:.0e} is needed; lower the learning rate"
        )
    return learned


def _step(
    rotations: Rotations, loss: Callable[[Rotations, int], Tensor], descent: Descent, step: int, log: TrainingLog
) -> Rotations:
    if step and step % RETRACTION_INTERVAL == 0:
        heads = torch.stack([orthonormalize(head) for head in rotations.heads])
        rotations = Rotations(orthonormalize(rotations.residual), heads)
    lr = decayed(descent.lr, descent.decay, step, descent.steps)
    leaves = Rotations(rotations.residual.detach().requires_grad_(), rotations.heads.detach().requires_grad_())
    with torch.enable_grad():
        value = loss(leaves, step)
        number = float(value.detach())
        log.check(number, "the loss", step=step, lr=descent.lr)
        residual, heads = torch.autograd.grad(value, (leaves.residual, leaves.heads))
    r1 = cayley_step(leaves.residual.detach(), residual, lr)
    r2 = cayley_step(leaves.heads.detach(), heads, lr)
    after = Rotations(r1.rotation, r2.rotation)
    norms = (float(r1.gradient_norm), float(r2.gradient_norm.square().sum().sqrt()))
    numbers = {"gradient_norm_r1": norms[0], "gradient_norm_r2": norms[1], "orthogonality": after.error()}
    for name, found in numbers.items():
        log.check(found, name, step=step, lr=descent.lr)
    log.write(
        step=step,
        loss=number,
        lr=lr,
        step_r1=float(r1.size),
        step_r2=float(r2.size.mean()),
        bound_r1="norm" if bool(r1.limited) else "lr",
        bound_r2=float(r2.limited.float().mean()),
        **numbers,
    )
    return after
