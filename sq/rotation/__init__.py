"""Invertible transforms of a site's features and the closed forms that build them."""

from __future__ import annotations

from sq.kernels.fourth_moment import fourth_moment_angle
from sq.rotation.art import Partner, Statistic, art_angle, art_rotation, art_step
from sq.rotation.balance import block_balance, dense_balance, diagonal_balance, low_rank_balance
from sq.rotation.block_hadamard import BlockHadamard, largest_power
from sq.rotation.block_kronecker import BlockKronecker, absorb, block_factors, largest_block
from sq.rotation.givens import givens_chain, plane_rotation
from sq.rotation.hadamard import (
    Hadamard,
    blind_rotation,
    hadamard_matrix,
    has_hadamard,
    random_orthogonal,
    random_signs,
)
from sq.rotation.kronecker import Kronecker, kronecker_factors
from sq.rotation.kurtosis import kurtosis_rotation, kurtosis_rotations
from sq.rotation.low_rank import LowRank
from sq.rotation.permutation import Permutation
from sq.rotation.second_moment import OfMatrix, OfRows, SecondMoment, Stretched, as_moment
from sq.rotation.set_rotations import set_rotations
from sq.rotation.stages import (
    Art,
    RandomHadamard,
    RandomOrthogonal,
    Stage,
    Urt,
    build_rotation,
    orthonormalize,
    reads_samples,
)
from sq.rotation.transform import Compose, Dense, Diagonal, Identity, PerHead, Transform
from sq.rotation.urt import Target, urt_rotation
