"""The Hessian of a linear's squared output error: accumulation, change of basis and the factor that GPTQ walks."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from sq.errors import CalibrationError, QuantizationError
from sq.finite import all_finite
from sq.quantize.gram import add_gram, add_product
from sq.rotation.transform import Transform

logger = logging.getLogger(__name__)

# Up to these sizes float64 is a small part of the whole cost; beyond them float32 comes first.
_FLOAT64_SUM = 1024
_FLOAT64_FACTOR = 2048


class HessianAccumulator:
    """Running H = (2 / N) sum_t x_t^T x_t over N tokens of n features; `tokens` is N so far.

    With a left factor y it is the cross moment (2 / N) sum_t y_t^T x_t instead. Products are float32; their sum over
    updates is float64 for n up to 1024, else float32.
    """

    def __init__(self, n: int, device: torch.device | str | None = None) -> None:
        self.n, self.tokens = n, 0
        self._sum = torch.zeros(n, n, dtype=torch.float64 if n <= _FLOAT64_SUM else torch.float32, device=device)

    @torch.no_grad()
    def update(self, x: Tensor, left: Tensor | None = None) -> None:
        """Add tokens x (..., n), any float dtype; CalibrationError where the last axis is another. left: y, as x."""
        if x.shape[-1] != self.n:
            raise CalibrationError(f"activations have {x.shape[-1]} features; this Hessian was made for {self.n}")
        rows = x.reshape(-1, self.n).to(device=self._sum.device)
        if left is None:
            add_gram(self._sum, rows)
        else:
            add_product(self._sum, left.reshape(-1, self.n).to(rows), rows)
        self.tokens += rows.shape[0]

    @property
    def value(self) -> Tensor:
        """H (n, n), float64 or float32; CalibrationError where no token was added."""
        if self.tokens == 0:
            raise CalibrationError("no token was added to the Hessian; run calibration text through the model first")
        return self._sum * (2 / self.tokens)


def conjugate_hessian(hessian: Tensor, transform: Transform) -> Tensor:
    """T^T H T, the Hessian (n, n) of the transformed activations x T, in the dtype of hessian.

    It is exactly symmetric, and no diagonal entry, a sum of squares, is below 0.
    """
    with torch.no_grad():
        result: Tensor = transform(transform(hessian).T)  # (H T)^T T = T^T H T for symmetric H
        result = (result + result.T).div_(2)
        result.diagonal().clamp_(min=0)
        return result


def without_dead(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of H (n, n) whose zero diagonal entries are the mean of the others (1 if all are zero), and which they
    were, bool (n,)."""
    hessian, dead = hessian.clone(), hessian.diagonal() == 0
    diagonal, alive = hessian.diagonal(), (~dead).sum()
    mean = torch.where(alive > 0, diagonal.sum() / alive.clamp(min=1), 1.0)  # no mask as index: the host would wait
    diagonal.copy_(torch.where(dead, mean, diagonal))
    return hessian, dead


def inverse_factor(hessian: Tensor, damping: float = 0.01, *, retries: int = 2, name: str = "gptq") -> Tensor:
    """Upper triangular U with U^T U = (H + damping * mean(diag H) * I)^-1, float32.

    Reversing rows and columns turns the one Cholesky factor of H into H = V V^T with V upper triangular, so U = V^-1
    costs one factorization and one triangular inverse, where cholesky, cholesky_inverse, cholesky as in the peers
    factors twice, the second time an already rounded inverse.

    H of up to 2048 features is factored in float64; a larger one in float32, then float64 if that fails. If both fail,
    damping goes up tenfold, at most `retries` times (from 0 to 0.01), each with a warning.

    Args:
        hessian: (n, n), symmetric, finite; every diagonal entry positive.
        damping: share of the mean diagonal added to the diagonal, from 0.
        name: what the Hessian belongs to, for messages.

    Raises:
        QuantizationError: no damping makes H positive definite.
    """
    n = hessian.shape[0]
    mean = hessian.diagonal().mean()
    dampings = [damping] + [(damping or 1e-3) * 10**k for k in range(1, retries + 1)]
    for index, share in enumerate(dampings):
        for dtype in (torch.float64,) if n <= _FLOAT64_FACTOR else (torch.float32, torch.float64):
            damped = hessian.to(dtype).flip(0, 1)  # a copy
            damped.diagonal().add_(share * mean)
            lower, info = torch.linalg.cholesky_ex(damped)
            del damped  # 3.3 GB in float32 at a 70B model's `down`, as each of those below
            if int(info) == 0:
                upper = lower.flip(0, 1)
                del lower
                inverse = torch.eye(n, dtype=dtype, device=hessian.device)
                torch.linalg.solve_triangular(upper, inverse, upper=True, out=inverse)  # in the place of the identity
                del upper
                factor = inverse.to(torch.float32)
                if all_finite(factor):
                    if index:
                        logger.warning("%s: the Hessian needed damping %g (the setting is %g)", name, share, damping)
                    return factor
    tried = ", ".join(f"{share:g}" for share in dampings)
    raise QuantizationError(
        f"{name}: the Hessian ({n} x {n}) is not positive definite with damping {tried} "
        "of its mean diagonal; calibrate on more tokens, raise damping, or quantize this weight with rtn"
    )
