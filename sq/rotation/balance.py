"""Balance: transforms in closed form that give activations and weights the same second moment.

The derivation is in README.md beside this file. C and M are the second moments of activations and weights,
C = X^T X / T and M = W^T W / d_out, up to scale: every function divides by the trace first. Each is a matrix (n, n) or
a SecondMoment (second_moment.py). damping is added to the diagonals of C and M, as a share of their mean; it bounds the
stretch. CalibrationError is raised for moments with NaN, inf or a zero trace, or that are not positive definite after
damping.

brake, l in (0, 1], holds a balance back: t becomes t S^((1 - l)/2), which leaves S^(2 - l) to the activations and S^l
to the weights (KBBQ's T(l)). l = 1 is the full balance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sq.errors import CalibrationError
from sq.rotation.low_rank import LowRank
from sq.rotation.samples import fitting_threads
from sq.rotation.second_moment import Normalized, SecondMoment, as_moment
from sq.rotation.transform import Dense, PerHead

Moment = Tensor | SecondMoment
FLOOR = 1e-5  # of the largest rms; a quieter channel is treated as this loud, so that s stays within float16
DIRECT = 256  # largest matrix whose eigenvectors are all computed
PASSES = 4  # over the entries of a moment that a product with 16 vectors takes as long as: it may have so many threads
LANCZOS = 6  # blocks of vectors; the criterion J of SmolLM2's sites is 0.05% above that of exact eigenvectors with 5


def diagonal_balance(activation_rms: Tensor, weight_rms: Tensor, strength: float = 0.5) -> Tensor:
    """s_j = rms(x_j)^strength / rms(w_j)^(1 - strength): x / s and w s have equal rms in every channel at strength 1/2.

    s (n,), float64, is divided by its geometric mean: folding it neither overflows nor loses bits in bfloat16. A
    channel whose activations or weights are all zero gets s = 1: unseen inputs are not amplified.

    Args:
        activation_rms: rms of each channel over tokens, shape (n,).
        weight_rms: rms of each weight column over rows of all linears that share the input, shape (n,).
        strength: 0 balances weights alone, 1 activations alone.

    Raises:
        CalibrationError: NaN, inf or negative entries.
        ValueError: shapes that differ, or a strength outside [0, 1].
    """
    if activation_rms.shape != weight_rms.shape or activation_rms.dim() != 1 or not 0 <= strength <= 1:
        raise ValueError(
            f"diagonal balance got rms of shapes {tuple(activation_rms.shape)} and {tuple(weight_rms.shape)}, strength "
            f"{strength}; it needs two of shape (n,) and a strength in [0, 1]"
        )
    logs = []
    alive = torch.ones_like(activation_rms, dtype=torch.bool)
    for name, rms in (("activation", activation_rms), ("weight", weight_rms)):
        if not bool((torch.isfinite(rms) & (rms >= 0)).all()):
            raise CalibrationError(f"the {name} rms carries NaN, inf or negative values; every entry must be 0 or more")
        alive &= rms > 0
        exact = rms.detach().to(torch.float64)
        logs.append(exact.clamp(min=FLOOR * exact.max().clamp(min=torch.finfo(torch.float32).tiny)).log())
    log_s = strength * logs[0] - (1 - strength) * logs[1]
    # Sums over all channels, the dead as zeros: a mask as index would make the host wait for the device.
    log_s -= torch.where(alive, log_s, 0.0).sum() / alive.sum().clamp(min=1)
    return torch.where(alive, log_s, 0.0).exp()


def low_rank_balance(
    c: Moment, m: Moment, rank: int, divisor: Tensor | None = None, damping: float = 1e-2, brake: float = 1.0
) -> LowRank:
    """T = D (I + U (P - I) U^T) that balances the `rank` directions in which activations and weights differ most.

    With D = diag(1 / divisor), C and M after D and with equal trace, U the eigenvectors of C - M with the largest
    |eigenvalue|, c = U^T C U, m = U^T M U: P is the symmetric positive matrix with P c P = P^-1 m P^-1.

    Args:
        c: C, second moment of the activations before D, shape (n, n).
        m: M, second moment of the weights before D, shape (n, n).
        rank: r, 1 to n.
        divisor: s of diagonal_balance; None for D = I.

    ValueError is raised for a rank outside 1 to n.
    """
    n = len(c) if isinstance(c, Tensor) else c.n
    if not 1 <= rank <= n:
        raise ValueError(f"low-rank balance got rank {rank} for {n} features; 1 to {n} are allowed")
    diagonal = None if divisor is None else 1 / divisor.detach().to(torch.float64)
    if diagonal is not None:
        c = as_moment(c).dense() * diagonal * diagonal[:, None]
        m = as_moment(m).dense() / diagonal / diagonal[:, None]
    left, right = _normalize(c, m, damping)
    with fitting_threads(left.entries * PASSES):
        basis, of_c, of_m = _leading_eigenvectors(left, right, rank)
        t = _balancer(_symmetric(basis.T @ of_c), _symmetric(basis.T @ of_m), brake)
        values, vectors = torch.linalg.eigh(t @ t.T)
    return LowRank(diagonal, basis, vectors * values.pow(0.5) @ vectors.T)


def block_balance(c: Moment, m: Moment, block: int, damping: float = 1e-2, brake: float = 1.0) -> PerHead:
    """Block-diagonal T, not orthogonal, that balances C and M inside each run of `block` channels.

    It costs n block multiply-adds online. ValueError is raised for a block that does not divide n.
    """
    left, right = _normalize(c, m, damping)
    if block < 1 or left.n % block:
        raise ValueError(f"block balance got blocks of {block} for {left.n} features; the block must divide {left.n}")
    with fitting_threads(left.entries * PASSES):
        return PerHead(_balancer(left.blocks(block), right.blocks(block), brake), orthogonal=False)


def dense_balance(c: Moment, m: Moment, damping: float = 1e-2, brake: float = 1.0) -> Dense:
    """T = B^-1 V S^(1/2), not orthogonal, with T^T C T = T^-1 M T^-T = S diagonal.

    C = B^T B, B M B^T = V S^2 V^T. With a Hadamard behind it this is the transform of WUSH (arXiv 2512.00956). It costs
    n^2 multiply-adds online: a bound on what balance can give, not a recipe.
    """
    left, right = _normalize(c, m, damping)
    with fitting_threads(left.n**2):
        return Dense(_balancer(left.dense(), right.dense(), brake), orthogonal=False)


def _balancer(c: Tensor, m: Tensor, brake: float = 1.0) -> Tensor:
    """t with t^T c t = S^(2 - brake), t^-1 m t^-T = S^brake, S diagonal, for c, m (..., r, r) positive definite."""
    if not 0 < brake <= 1:
        raise ValueError(f"a balance got brake {brake}; above 0, and 1 for the full balance")
    lower, info = torch.linalg.cholesky_ex(c)
    if bool((info != 0).any()):
        raise CalibrationError(
            "the activations' second moment is not positive definite; use more tokens or more damping"
        )
    upper = lower.mT  # c = B^T B with B upper
    squared, v = torch.linalg.eigh(upper @ m @ upper.mT)
    if bool((squared <= 0).any()):
        raise CalibrationError("the weights' second moment is not positive definite; use more damping")
    balancer: Tensor = torch.linalg.solve_triangular(upper, v * squared.pow(0.5 - brake / 4).unsqueeze(-2), upper=True)
    return balancer


def _normalize(c: Moment, m: Moment, damping: float) -> tuple[Normalized, Normalized]:
    """Both with mean diagonal 1, then damped; the host waits for the device once."""
    sides = {"activation": as_moment(c, "activation"), "weight": as_moment(m, "weight")}
    means = {name: found.mean() for name, found in sides.items()}
    good = {name: found.is_finite() & (means[name] > 0) for name, found in sides.items()}
    if not bool(torch.stack(list(good.values())).all()):
        name = next(name for name, fine in good.items() if not bool(fine))
        raise CalibrationError(
            f"the {name} second moment has mean diagonal {float(means[name]):.3g} or carries NaN or inf; "
            "it must be finite and not zero"
        )
    left, right = (Normalized(found, means[name], damping) for name, found in sides.items())
    return left, right


def _symmetric(matrix: Tensor) -> Tensor:
    """What rounding left unequal, averaged."""
    return (matrix + matrix.T) / 2


def _leading_eigenvectors(c: SecondMoment, m: SecondMoment, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, C U and M U, with U orthonormal eigenvectors of the largest |eigenvalue| of C - M; (n, rank), float64.

    Above DIRECT rows by block Lanczos with full orthogonalization, whose products are float32: any directions close to
    the leading ones serve.
    """
    n = c.n
    if n <= DIRECT or LANCZOS * rank > n:
        first, second = c.dense(), m.dense()
        vectors = _largest(first - second, rank)
        return vectors, first @ vectors, second @ vectors

    def products(v: Tensor) -> tuple[Tensor, Tensor]:
        single = v.to(torch.float32)
        return c.times(single).to(torch.float64), m.times(single).to(torch.float64)

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n, rank, generator=generator, dtype=torch.float64).to(c.device)
    basis: Tensor = torch.linalg.qr(start).Q
    of_c, of_m = products(basis)
    for _ in range(LANCZOS - 1):
        block = of_c[:, -rank:] - of_m[:, -rank:]
        for _ in range(2):  # the second pass takes out what rounding left of the first
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        made = products(block)
        basis, of_c, of_m = (torch.cat(parts, 1) for parts in zip((basis, of_c, of_m), (block, *made), strict=True))
    mixing = _largest(_symmetric(basis.T @ (of_c - of_m)), rank)
    return basis @ mixing, of_c @ mixing, of_m @ mixing


def _largest(matrix: Tensor, rank: int) -> Tensor:
    """Its eigenvectors of the largest |eigenvalue|, one a column."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.index_select(vectors, 1, values.abs().argsort(descending=True)[:rank])
