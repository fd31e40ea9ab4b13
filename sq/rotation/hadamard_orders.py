"""Which orders have a Hadamard matrix here, and the matrices of the orders K that are not powers of two.

Every order is K 2^m. The K come from Paley's two constructions and Williamson's array (Hedayat and Wallis, Hadamard
matrices and their applications, Annals of Statistics, 1978). hadamard_orders.json holds what cannot be derived, and the
first 16 hex digits of sha256 over the rows of each matrix, written as lines of + and -.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from math import isqrt
from typing import Any

import torch
from torch import Tensor


def hadamard_split(order: int) -> tuple[int, int]:
    """(K, 2^m) with order = K 2^m: a tabulated order is its own K, any other takes the smallest K that can be built.

    ValueError is raised where no Hadamard matrix of this order exists or is known here.
    """
    split = find_split(order)
    if split is None:
        exists = order > 2 and order % 4 == 0
        why = "none is known here" if exists else "no Hadamard matrix of this order exists"
        raise ValueError(
            f"a Hadamard matrix of order {order} cannot be built: {why} (orders are 1, 2 and K*2^m for K in "
            f"{sorted(map(int, _facts()))} and others by Paley's constructions); use random_orthogonal({order}, seed) "
            "(stage RandomOrthogonal), or other Kronecker factors"
        )
    return split


@cache
def _facts() -> dict[str, dict[str, Any]]:
    text = files("sq.rotation").joinpath("hadamard_orders.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


@cache
def find_split(order: int) -> tuple[int, int] | None:
    """hadamard_split(order), or None where it raises."""
    if order < 1:
        return None
    if str(order) in _facts():
        return order, 1
    powers = order & -order
    while powers >= 1:
        if order // powers == 1 or _construction(order // powers) is not None:
            return order // powers, powers
        powers //= 2
    return None


def _construction(k: int) -> dict[str, Any] | None:
    """The table's entry for order k, or Paley's construction over a prime field; None if neither applies."""
    if str(k) in _facts():
        return _facts()[str(k)]
    if k % 4:
        return None
    if _is_prime(k - 1):
        return {"construction": "paley1", "p": k - 1, "power": 1}
    if _is_prime(k // 2 - 1) and (k // 2 - 1) % 4 == 1:
        return {"construction": "paley2", "p": k // 2 - 1, "power": 1}
    return None


@cache
def base_matrix(k: int) -> Tensor:
    """H_K, shape (K, K), float64; shared between calls, so not to be changed in place."""
    if k == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    fact = _construction(k)
    if fact is None:
        raise ValueError(f"order {k} has no construction; see has_hadamard({k})")
    kind = fact["construction"]
    if kind == "double":
        return torch.kron(sylvester(2), base_matrix(fact["of"]))
    if kind == "williamson":
        return _williamson([torch.tensor([1.0 if c == "+" else -1.0 for c in row]).double() for row in fact["rows"]])
    q = _residues(fact["p"], fact["power"])
    return _paley1(q) if kind == "paley1" else _paley2(q)


def sylvester(powers: int) -> Tensor:
    """H of order 2^m: entry (i, j) is (-1)^popcount(i & j)."""
    h = torch.ones(1, 1, dtype=torch.float64)
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while h.shape[0] < powers:
        h = torch.kron(two, h)
    return h


def _paley1(q: Tensor) -> Tensor:
    """I + S, S = [[0, 1], [-1, Q]]: order q + 1, for q = 3 mod 4."""
    size = q.shape[0] + 1
    s = torch.zeros(size, size, dtype=torch.float64)
    s[0, 1:], s[1:, 0], s[1:, 1:] = 1, -1, q
    return torch.eye(size, dtype=torch.float64) + s


def _paley2(q: Tensor) -> Tensor:
    """S (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]], S = [[0, 1], [1, Q]]: order 2 (q + 1), for q = 1 mod 4."""
    size = q.shape[0] + 1
    s = torch.zeros(size, size, dtype=torch.float64)
    s[0, 1:], s[1:, 0], s[1:, 1:] = 1, 1, q
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(s, one) + torch.kron(torch.eye(size, dtype=torch.float64), other)


def _williamson(rows: list[Tensor]) -> Tensor:
    """[[A, B, C, D], [-B, A, -D, C], [-C, D, A, -B], [-D, -C, B, A]] with A..D the circulants of the rows."""
    a, b, c, d = (torch.stack([row.roll(i) for i in range(row.numel())]) for row in rows)
    grid = [[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]]
    return torch.cat([torch.cat(line, dim=1) for line in grid])


def _residues(p: int, power: int) -> Tensor:
    """Q[i, j] = chi(i - j) over GF(p^power), power 1 or 2.

    For power 2 the modulus is x^2 + 1 (p = 3 mod 4) and element a + b x has index a p + b.
    """
    if power == 1:
        square = torch.full((p,), -1.0, dtype=torch.float64)
        square[torch.arange(1, p) ** 2 % p] = 1
        square[0] = 0
        index = torch.arange(p)
        return square[(index[:, None] - index[None, :]) % p]
    a, b = torch.arange(p * p) // p, torch.arange(p * p) % p
    square = torch.full((p, p), -1.0, dtype=torch.float64)
    square[(a * a - b * b) % p, 2 * a * b % p] = 1
    square[0, 0] = 0
    return square[(a[:, None] - a[None, :]) % p, (b[:, None] - b[None, :]) % p]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))
