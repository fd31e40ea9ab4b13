"""Factor pairs of every supported model."""

from __future__ import annotations

import pytest

from sq.rotation import has_hadamard, kronecker_factors

# hidden and intermediate sizes of the supported models
PAIRS = {
    576: (24, 24), 896: (28, 32), 960: (30, 32), 1024: (32, 32), 1536: (32, 48), 2048: (32, 64), 2560: (40, 64),
    3072: (48, 64), 3584: (56, 64), 4096: (64, 64), 4864: (64, 76), 5120: (64, 80), 5632: (64, 88), 6144: (64, 96),
    8192: (64, 128), 8960: (80, 112), 9728: (76, 128), 11008: (86, 128), 12288: (96, 128), 13824: (108, 128),
    14336: (112, 128), 17408: (128, 136), 18944: (128, 148), 25600: (160, 160), 27648: (144, 192), 28672: (128, 224),
}  # fmt: skip


@pytest.mark.parametrize(("n", "pair"), PAIRS.items())
def test_pair_is_the_one_closest_to_the_square_root(n: int, pair: tuple[int, int]) -> None:
    assert kronecker_factors(n) == pair


def test_pair_for_a_hadamard_on_both_axes() -> None:
    """86 and 30 have no Hadamard matrix; every other pair stays what it is."""
    moved = {960: (24, 40), 11008: (64, 172)}
    for n, pair in PAIRS.items():
        assert kronecker_factors(n, has_hadamard) == moved.get(n, pair)


@pytest.mark.parametrize("n", [-4, 0, 1, 2, 3, 257, 7919])
def test_size_without_a_pair_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"size of {n} has no Kronecker factor pair"):
        kronecker_factors(n)
