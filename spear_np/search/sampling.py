"""Random submatrices → null vectors → sparsity filter: the search of SPEAR.

Any b-1 rows of U on which one input's unit is off determine that input's direction as their null vector. Rows
are drawn at random and the null vectors kept that many further rows agree with. What differs from the published
form changes how soon a direction is seen, not which directions count:

- null vectors come from eliminations in float32, many side by side, instead of an SVD each;
- a few rows are checked before all of them;
- rows of small gradient are preferred, ∝ ‖weight_grad row‖^-α: few inputs activate them. The columns that
  profit least need small α, so exponents are mixed;
- once some columns of ∂L/∂Z are known, what they explain of each row is subtracted first (least squares), so
  that rows are preferred on which the *unknown* inputs are off. At m = 200, b = 16 with 15 columns known this
  raises the hit rate of the last one from below 1e-5 to about 1e-2;
- rows are also drawn only from the zero rows of f directions already known: there the others live in b-f
  dimensions, and each null vector needs f rows fewer.

References
----------
.. [1] Dimitrov, Baader, Müller, Vechev, "SPEAR: Exact Gradient Inversion of Batches in Federated Learning",
   NeurIPS 2024, arXiv:2403.03945, Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .. import theory
from ..arrays import Array, HostArray
from ..backend.algebra import contiguous, orthogonal_complement, triangular_factor
from ..backend.devices import Device
from ..backend.host import to_host
from ..directions.null_vectors import distinct
from ..directions.pool import Pool, covered
from ..factors.row_space import LARGEST_ANGLE, RowSpace
from ..kernels.sampling import Draw, Rows, draw_tables, sample
from ..kernels.splitmix import seed_from
from . import Proposals
from .together import Seat

EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Exponents α of the weighted draws.

Heuristic: the columns that profit least need small ones.
"""
EXPONENT_SHARES = (0.05, 0.15, 0.35, 0.2, 0.15, 0.1)
"""How often each of them is drawn.

Heuristic: 1 to 1.5 is best for most columns.
"""
EXPONENTS_PER_BLOCK = 4
"""Different exponents within one block.

Heuristic: as `EXPONENT_SHARES`.
"""
RESTRICTED_SHARE = 0.25
"""Share of the blocks drawn from the zero rows of known directions.

Heuristic: they find more, but only what is left there.
"""
CHECK_ROWS = 32
"""Rows looked at before all others.

Derived: a direction with half of its rows zero misses all of them with a probability of 2^-32.
"""
MAX_SUBMATRICES = 5000
"""Submatrices of one block, at most.

Measured: what a block finds guides the next, and polish takes longer than drawing. Until a batch is whole, 5,000 take 0.17 s where 2,500
take 0.20 and 10,000 take 0.20 at b = 16, and 0.60 s for 0.64 and 0.48 at b = 20 (m = 200, seeds 51 to 70 and 151 to 170, 51 to 56 and
151 to 158; one thread of a busy machine, time of the processor).
"""
MAX_LAUNCHED = 4_000_000
"""The same on a card.

Heuristic: some 30 ms at the 140 million a second that a research kernel reached on an H100, about what the polish behind it takes.
"""
PLENTY = 2500
"""Submatrices of one block where fewer would already hit as often as candidates are handed on.

Heuristic: they take a millisecond or two.
"""
FEWEST_SUBMATRICES = 64
"""Submatrices of one block, at least.

Heuristic: as `MAX_SUBMATRICES`.
"""
SAMPLED_CANDIDATES = 24
"""Candidates handed on from one block, the sparsest first.

Measured: most are none, and their polish takes longer than all else. Until a batch is whole, 24 take 0.11 s where 64 take 0.17 and 16 take
0.12 at b = 16, and 0.33 s for 0.51 and 0.36 at b = 20 (m = 200, seeds 251 to 270 and 251 to 256; one thread, time of the processor).
"""
LOOKED_AT = 8
"""Vectors that are held against each other, for each candidate handed on.

Heuristic: as `SAMPLED_CANDIDATES`.
"""
SAME_SAMPLE = 1 - 1e-6
"""Cosine from which two null vectors of samples are the same.

Derived: an angle of .0014: b - 1 rows alone amplify noise more than all zero rows do, see `SAME_VECTOR`.
"""
KNOWN_SHARES = (0.5, 0.8, 1.0)
"""Shares of the basis that a fit of the rows relies on, one drawn for each block.

Heuristic: so that a wrong direction does no lasting harm.
"""
LEAST_LEFT = 1e-12
"""Share of the norm of a row that is left of it at least when what known columns explain is subtracted.

Derived: rounding of float64, by some margin.
"""
AMPLIFICATION = 300.0
"""Factor by which a null vector of b - 1 rows may amplify their noise.

Heuristic: as `NEAR_ZERO` of the polish.
"""
NARROWEST = 1e-4
"""Product with a unit row below which it counts as zero, whatever the noise.

Derived: null vectors in float32 are known no better where the rows they annul nearly depend on each other.
"""
WIDEST = 0.02
"""Product with a unit row above which it does not count as zero, whatever the noise.

Heuristic: one false row in fifty then agrees by chance, fewer than are asked for.
"""
MOST_KNOWN = 4
"""Known directions that a block is restricted to, at most.

Heuristic: each halves the rows that are left.
"""
ROWS_TO_SPARE = 8
"""Rows beyond two for each missing direction that a restricted block must have left.

Derived: half of the rows must be zero for a further direction, and some more than determine it.
"""


@dataclass(frozen=True, eq=False)
class _Problem:
    """Rows to sample from and the directions already known, in r coordinates."""

    rows: Array
    """(ℓ', r) unit rows."""
    log_norm: HostArray
    """(ℓ',) natural logarithm of the norms of their weight_grad rows, less what known columns explain."""
    complement: Array
    """(b, r) orthonormal: from these r coordinates to U-coordinates."""
    basis: HostArray
    """(f, r) unit vectors: what is known already."""
    basis_count: HostArray
    """(f,) zero counts among the rows."""
    basis_angle: HostArray
    """(f,) radians."""


@dataclass(frozen=True)
class Sampling:
    """Batched subset sampling; `submatrices` bounds one block."""

    submatrices: int = MAX_SUBMATRICES
    name: str = "sampling"
    seat: Seat | None = None
    """Where subsets are examined beside those of other layers; None where it is for itself."""

    def propose(self, space: RowSpace, pool: Pool, rng: np.random.Generator) -> Proposals:
        """Draw one block of submatrices, at times only among the zero rows of known directions."""
        xp, device = space.xp, space.device
        if space.batch_size == 1:
            return Proposals(xp.ones((1, 1), dtype=xp.float64, device=device.handle), 1, self.name)
        known = _choose_known(space, pool, rng) if rng.random() < RESTRICTED_SHARE else []
        problem = _restrict(space, pool, known, _unexplained(space, pool, rng))
        vectors, zero_count, examined = self._sample(space, problem, rng)
        news = ~covered(vectors, zero_count, problem.basis, problem.basis_count, problem.basis_angle)
        fresh = vectors[news][: LOOKED_AT * SAMPLED_CANDIDATES]
        fresh = fresh[distinct(fresh, SAME_SAMPLE, SAMPLED_CANDIDATES)]
        found = device.float64(fresh) @ problem.complement.T
        if known and found.shape[0]:
            # Any combination with the known directions has the same zeros here: the polish will separate them.
            found = found + device.normal(rng, (found.shape[0], len(known))) @ device.float64(pool.q[known])
        return Proposals(found, examined, self.name)

    def forecast(self, space: RowSpace) -> float | None:
        """Return the number of submatrices the published uniform draw is expected to need."""
        return theory.expected_submatrices(space.U.shape[0], space.batch_size)

    def _sample(
        self, space: RowSpace, problem: _Problem, rng: np.random.Generator
    ) -> tuple[HostArray, HostArray, int]:
        """Null vectors of random subsets of the rows that further rows agree with, sparsest first.

        Returns (vectors (k, r), their zero counts (k,), number of submatrices), all on the host.
        """
        xp, device = space.xp, space.device
        length, r = problem.rows.shape
        count = self._count(device if self.seat is None else self.seat.device, length, r)
        alphas = rng.choice(EXPONENTS, EXPONENTS_PER_BLOCK, replace=False, p=EXPONENT_SHARES)
        tables = draw_tables(-alphas[:, None] * problem.log_norm, r - 1)
        # No coordinate is special: turned at random, the last component of a null vector is never small.
        turn = xp.linalg.qr(device.normal(rng, (r, r))).Q
        typical = float(np.median(to_host(xp.linalg.vector_norm(space.U, axis=1))))
        rows = Rows(
            unit=contiguous(xp, device.float32(problem.rows @ turn)),
            glanced=rng.choice(length, min(CHECK_ROWS, length), replace=False),
            noise=contiguous(xp, device.float32(noise_factor(space, problem.complement @ turn))),
            amplification=AMPLIFICATION / typical,
            narrowest=NARROWEST,
            widest=WIDEST,
        )
        draw = Draw(rows, tables, seed_from(rng), 0, count)
        found = sample(device, [draw])[0] if self.seat is None else self.seat.sample(draw)
        return found.vectors.astype(np.float64) @ to_host(turn).T, found.zeros, count

    def _count(self, device: Device, length: int, r: int) -> int:
        """Return how many of the submatrices of `length` rows one block examines."""
        every = math.comb(length, r - 1)
        # Uniform draws then hit as often as candidates are handed on.
        enough = max(PLENTY, math.ceil(SAMPLED_CANDIDATES * 2.0 ** (r - 1) / r))
        most = self.submatrices if device.launch is None else MAX_LAUNCHED
        return max(FEWEST_SUBMATRICES, min(most, enough, 4 * every))


def noise_factor(space: RowSpace, to_q: Array) -> Array:
    """(r, r) upper triangular R with ``|R x| = space.noise_norm(to_q x)`` for every x (r,)."""
    return triangular_factor(space.xp, to_q / space.S[:, None])


def _unexplained(space: RowSpace, pool: Pool, rng: np.random.Generator) -> HostArray:
    """(ℓ,) norms of the live rows of weight_grad after a fit by known columns of ∂L/∂Z.

    All but a random share of the basis is used, so that a wrong direction in it does no lasting harm.
    """
    xp = space.xp
    basis = np.asarray(pool.basis, dtype=np.int64)
    share = rng.choice(KNOWN_SHARES)
    basis = basis[rng.random(len(basis)) < share][: space.batch_size - 1]
    rows = xp.take(space.coordinates, space.live, axis=0)
    norms = xp.linalg.vector_norm(rows, axis=1)
    if len(basis):
        columns = rows @ (space.device.float64(pool.q[basis]) / space.S).T
        size = xp.linalg.vector_norm(columns, axis=0)
        explained = xp.linalg.qr(columns / xp.where(size > 0, size, xp.ones_like(size))).Q
        left = xp.linalg.vector_norm(rows - explained @ (explained.T @ rows), axis=1)
        norms = xp.maximum(left, LEAST_LEFT * norms)
    return to_host(norms)


def _restrict(space: RowSpace, pool: Pool, known: list[int], norms: HostArray) -> _Problem:
    """Return the sampling problem on the common zero rows of the directions `known`, in their complement."""
    xp, device = space.xp, space.device
    chosen = [index for index in pool.trusted if index not in known]
    if known:
        complement = orthogonal_complement(xp, device.float64(pool.q[known]).T)
        mask = np.all(pool.zero_mask[known], axis=0)
    else:
        complement = device.eye(space.batch_size)
        mask = np.ones(space.U.shape[0], dtype=bool)
    live = np.flatnonzero(mask)
    rows = xp.take(space.U, device.integers(live), axis=0) @ complement
    basis = pool.q[chosen] @ to_host(complement)
    length = np.linalg.norm(basis, axis=1, keepdims=True)
    return _Problem(
        rows=rows / xp.linalg.vector_norm(rows, axis=1, keepdims=True),
        log_norm=np.log(norms[live]),
        complement=complement,
        basis=basis / length,
        basis_count=pool.zero_mask[chosen][:, mask].sum(axis=1),
        basis_angle=np.minimum(pool.angle[chosen] / length[:, 0], LARGEST_ANGLE),
    )


def _choose_known(space: RowSpace, pool: Pool, rng: np.random.Generator) -> list[int]:
    """Some directions of the basis whose common zero rows can still determine the others."""
    basis = list(pool.basis)
    rng.shuffle(basis)
    wanted = int(rng.integers(1, MOST_KNOWN + 1))
    known: list[int] = []
    mask = np.ones(space.U.shape[0], dtype=bool)
    for index in basis:
        left = space.batch_size - len(known) - 1
        narrower = mask & pool.zero_mask[index]
        if len(known) == wanted or left < 2:
            break
        # About half of the rows must stay zero for a further direction, and more than left - 1 of them.
        if np.count_nonzero(narrower) >= 2 * (left - 1) + ROWS_TO_SPARE:
            known.append(index)
            mask = narrower
    return known
