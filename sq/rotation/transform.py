"""The interface of every invertible transform T of a site's features, and the transforms that need no structure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sq.finite import all_finite, finite
from sq.kernels.steps import DiagonalStep, Step
from sq.rotation.samples import fitting_threads

Self = TypeVar("Self", bound="Transform")


class Transform(nn.Module, ABC):
    """An invertible T acting on the last axis of x, shape (..., n).

    The invariant of every subclass: forward(x) @ inverse_transpose(w).T == x @ w.T for weights w of shape (d_out, n).

    Factors are float64 buffers, applied in the dtype of x. `.to(device)` moves them; `.to(dtype)`, `.half()` and their
    kin leave them in float64, so that casting a model never degrades a factor. The cast to the dtype of x is made once.

    Attributes:
        n: number of features.
        orthogonal: whether T^-1 = T^T.
    """

    n: int
    orthogonal: bool

    def __init__(self, n: int, *, orthogonal: bool) -> None:
        super().__init__()
        if n < 1:
            raise ValueError(f"{type(self).__name__} got {n} features; at least 1 is needed")
        self.n = n
        self.orthogonal = orthogonal
        # Replaced, not cleared, where factors change: who holds the old one knows by it that they did.
        self._casts: dict[tuple[str, torch.dtype], Tensor] = {}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x T, shape (..., n), dtype of x."""

    @abstractmethod
    def inverse(self, x: Tensor) -> Tensor:
        """x T^-1, shape (..., n), dtype of x."""

    def inverse_transpose(self, w: Tensor) -> Tensor:
        """w T^-T, the weight side of the transform, shape (d_out, n), dtype of w. An orthogonal T has T^-T = T."""
        if not self.orthogonal:
            raise NotImplementedError(f"{type(self).__name__} needs an inverse_transpose of its own")
        return self.forward(w)

    def transpose(self, w: Tensor) -> Tensor:
        """w T^T, what undoes `inverse_transpose`: shape (..., n), dtype of w. An orthogonal T has T^T = T^-1."""
        if not self.orthogonal:
            raise NotImplementedError(f"{type(self).__name__} needs a transpose of its own")
        return self.inverse(w)

    @abstractmethod
    def macs(self) -> int:
        """Multiply-adds per token when T is applied online."""

    def steps(self, x: Tensor) -> Sequence[Step] | None:
        """T as steps that kernels know, factors in the dtype of x; None where it has no such description."""
        return None

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Dense T, shape (n, n): row i is e_i T. On the device of the factors."""
        device = next((buffer.device for buffer in self.buffers()), torch.device("cpu"))
        return self.forward(torch.eye(self.n, dtype=dtype, device=device))

    def extra_repr(self) -> str:
        """Size and kind, for print(model)."""
        return f"n={self.n}, orthogonal={self.orthogonal}"

    def narrow(self: Self, dtype: torch.dtype) -> Self:
        """Hold all factors in a narrower dtype from now on, in place: half the bytes of a checkpoint in float32."""
        for module in self.modules():
            for name, factor in list(module.named_buffers(recurse=False)):
                if factor.is_floating_point():
                    module._buffers[name] = factor.to(dtype)
            if isinstance(module, Transform):
                module._casts = {}
        return self

    def _hold(self, name: str, value: Tensor) -> None:
        """Keep a float64 copy of a factor as a buffer; raises ValueError when it carries NaN or inf."""
        if not all_finite(value):
            raise ValueError(f"{type(self).__name__} got a {name} with NaN or inf; every entry must be finite")
        # A tensor made under inference_mode could not take part in training later.
        with torch.inference_mode(False), torch.no_grad():
            self.register_buffer(name, value.detach().to(torch.float64, copy=True).contiguous())

    def _factor(self, name: str, x: Tensor) -> Tensor:
        return self._cast(name, x.dtype)

    def _cast(self, name: str, dtype: torch.dtype) -> Tensor:
        master: Tensor = self.get_buffer(name)
        if master.dtype == dtype:
            return master
        cast = self._casts.get((name, dtype))
        if cast is None:
            with torch.inference_mode(False), torch.no_grad():
                cast = master.to(dtype)
            self._casts[name, dtype] = cast
        return cast

    def _derived(self, name: str, x: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """What follows from the factors, float64 of `make`, in the dtype of x: kept until they move, never saved."""
        found = self._casts.get((name, x.dtype))
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                exact = self._casts.get((name, torch.float64))
                found = (make() if exact is None else exact).to(x.dtype)
            self._casts[name, x.dtype] = found
        return found

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Module.to and its kin: follow the device, refuse the dtype."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        self._casts = {}
        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._casts = {}
        super()._load_from_state_dict(*args, **kwargs)


class Identity(Transform):
    """T = I."""

    def __init__(self, n: int) -> None:
        super().__init__(n, orthogonal=True)

    def forward(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def inverse(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def macs(self) -> int:
        """Nothing is computed."""
        return 0

    def steps(self, x: Tensor) -> Sequence[Step]:
        """None at all."""
        return ()


class Diagonal(Transform):
    """T = diag(t): x_j times t_j, nonzero, of t (n,)."""

    def __init__(self, t: Tensor) -> None:
        if t.dim() != 1:
            raise ValueError(f"Diagonal got a tensor of shape {tuple(t.shape)}; it needs shape (n,)")
        if bool((t == 0).any()):
            raise ValueError(f"Diagonal got {int((t == 0).sum())} factors that are zero; each must be invertible")
        super().__init__(t.numel(), orthogonal=bool((t.abs() == 1).all()))
        self._hold("t", t)

    def forward(self, x: Tensor) -> Tensor:
        """x * t."""
        return x * self._factor("t", x)

    def inverse(self, x: Tensor) -> Tensor:
        """x / t."""
        return x / self._factor("t", x)

    def inverse_transpose(self, w: Tensor) -> Tensor:
        """w / t."""
        return self.inverse(w)

    def transpose(self, w: Tensor) -> Tensor:
        """w * t."""
        return self.forward(w)

    def macs(self) -> int:
        """One multiplication a feature."""
        return self.n

    def steps(self, x: Tensor) -> Sequence[Step]:
        """One."""
        return (DiagonalStep(self._factor("t", x)),)


class MatrixTransform(Transform):
    """T made of matrices, kept in float64; where T is not orthogonal an inverse is computed when it is first asked for.

    A subclass says in `_multiply` how they act on x.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x T."""
        return self._multiply(x, inverted=False, transposed=False)

    def inverse(self, x: Tensor) -> Tensor:
        """x T^-1."""
        return self._multiply(x, inverted=not self.orthogonal, transposed=self.orthogonal)

    def inverse_transpose(self, w: Tensor) -> Tensor:
        """w T^-T."""
        return self.forward(w) if self.orthogonal else self._multiply(w, inverted=True, transposed=True)

    def transpose(self, w: Tensor) -> Tensor:
        """w T^T."""
        return self._multiply(w, inverted=False, transposed=True)

    @abstractmethod
    def _multiply(self, x: Tensor, inverted: bool, transposed: bool) -> Tensor:
        """x times T, with each matrix replaced by its inverse, its transpose or both."""

    def _hold_matrix(self, name: str, matrix: Tensor) -> None:
        self._hold(name, matrix)
        if self.orthogonal:
            check_orthogonal(type(self).__name__, matrix)
        else:  # a singular matrix is refused here, where it is built
            self._inverse(name, self.get_buffer(name))

    def _inverse(self, name: str, x: Tensor) -> Tensor:
        """The inverse of a factor in the dtype of x."""
        return self._derived(f"{name}_inverse", x, lambda: invert(type(self).__name__, self.get_buffer(name)))

    def _matrix(self, name: str, x: Tensor, inverted: bool, transposed: bool) -> Tensor:
        matrix = self._inverse(name, x) if inverted else self._factor(name, x)
        return matrix.mT if transposed else matrix


class Dense(MatrixTransform):
    """T given as a matrix, shape (n, n)."""

    def __init__(self, matrix: Tensor, orthogonal: bool) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"Dense got a tensor of shape {tuple(matrix.shape)}; it needs (n, n)")
        super().__init__(matrix.shape[0], orthogonal=orthogonal)
        self._hold_matrix("factor", matrix)

    def macs(self) -> int:
        """n^2, one matrix-vector product."""
        return self.n * self.n

    def _multiply(self, x: Tensor, inverted: bool, transposed: bool) -> Tensor:
        return x @ self._matrix("factor", x, inverted, transposed)


class PerHead(MatrixTransform):
    """Block-diagonal T of blocks (H, d, d), n = H d: head h of x, `x[..., h*d:(h+1)*d]`, is multiplied by block h."""

    def __init__(self, blocks: Tensor, orthogonal: bool = True) -> None:
        if blocks.dim() != 3 or blocks.shape[1] != blocks.shape[2]:
            raise ValueError(f"PerHead got a tensor of shape {tuple(blocks.shape)}; it needs (H, d, d)")
        super().__init__(blocks.shape[0] * blocks.shape[1], orthogonal=orthogonal)
        self._hold_matrix("blocks", blocks)

    def macs(self) -> int:
        """n d: each head is a d x d product."""
        return self.n * self.get_buffer("blocks").shape[-1]

    def _multiply(self, x: Tensor, inverted: bool, transposed: bool) -> Tensor:
        blocks = self._matrix("blocks", x, inverted, transposed)
        by_head = x.reshape(-1, *blocks.shape[:2]).transpose(0, 1)  # (H, T, d)
        return torch.bmm(by_head, blocks).transpose(0, 1).reshape(x.shape)


class Compose(Transform):
    """T = T_1 T_2 ... T_k of at least one transform, all of one size: the first of the list is applied first."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        sizes = [transform.n for transform in transforms]
        if not sizes or len(set(sizes)) > 1:
            raise ValueError(f"Compose got transforms of sizes {sizes}; it needs at least one, all of one size")
        super().__init__(sizes[0], orthogonal=all(transform.orthogonal for transform in transforms))
        self.transforms: Sequence[Transform] = nn.ModuleList(transforms)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """x T_1 ... T_k."""
        for transform in self.transforms:
            x = transform.forward(x)
        return x

    def inverse(self, x: Tensor) -> Tensor:
        """x T_k^-1 ... T_1^-1."""
        for transform in reversed(self.transforms):
            x = transform.inverse(x)
        return x

    def inverse_transpose(self, w: Tensor) -> Tensor:
        """w T_1^-T ... T_k^-T."""
        for transform in self.transforms:
            w = transform.inverse_transpose(w)
        return w

    def transpose(self, w: Tensor) -> Tensor:
        """w T_k^T ... T_1^T."""
        for transform in reversed(self.transforms):
            w = transform.transpose(w)
        return w

    def macs(self) -> int:
        """The sum over the parts."""
        return sum(transform.macs() for transform in self.transforms)

    def steps(self, x: Tensor) -> Sequence[Step] | None:
        """Those of the parts, if each has some."""
        steps: list[Step] = []
        for transform in self.transforms:
            if (part := transform.steps(x)) is None:
                return None
            steps += part
        return steps


def invert(owner: str, matrix: Tensor) -> Tensor:
    """Float64 inverse of matrix (..., n, n); raises ValueError when it is singular."""
    inverse: Tensor
    # Batches on one thread: MKL's pivots are wrong on two for (64, 172, 172), torch 2.13 on an AMD EPYC.
    with fitting_threads(0 if matrix.dim() > 2 else matrix.numel()):
        inverse, info = torch.linalg.inv_ex(matrix.detach().to(torch.float64))
    if not bool((info == 0).all() & finite(inverse)):
        raise ValueError(f"{owner} got a singular matrix; it must be invertible (add damping where it was built)")
    return inverse


def check_orthogonal(owner: str, matrix: Tensor, tolerance: float = 1e-4) -> None:
    """Raise ValueError unless matrix (..., n, n) keeps probe vectors: p M M^T = p, at O(n^2) cost."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, matrix.shape[-1], generator=generator, dtype=torch.float64).to(matrix.device)
    exact = matrix.detach().to(torch.float64)
    error = float((probe @ exact @ exact.mT - probe).abs().max())
    if error > tolerance:
        raise ValueError(
            f"{owner} got a matrix that is not orthogonal (p M M^T differs from p by {error:.1e}, allowed is "
            f"{tolerance:.0e}); orthonormalize it or pass orthogonal=False"
        )
