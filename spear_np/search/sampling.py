"""Random submatrices → null vectors → sparsity filter: the search of SPEAR.

Any b-1 rows of U on which one input's unit is off determine that input's direction as their null vector. Rows
are drawn at random and the null vectors kept that many further rows agree with. What differs from the published
form changes how soon a direction is seen, not which directions count:

- the null vector comes from one batched LU solve instead of an SVD;
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
from typing import Any

import numpy as np

from .. import theory
from ..backend import Array, HostArray, block_length, orthogonal_complement, to_host
from ..directions.null_vectors import distinct, draw_subsets, null_vectors_of_rows
from ..directions.pool import Pool, covered
from ..factors.row_space import RowSpace
from . import Proposals

EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
EXPONENT_SHARES = (0.05, 0.15, 0.35, 0.2, 0.15, 0.1)
EXPONENTS_PER_BLOCK = 4
"""Different exponents within one block."""
RESTRICTED_SHARE = 0.25
"""Share of the blocks drawn from the zero rows of known directions."""
CHECK_ROWS = 16
"""Rows looked at before all others."""
MAX_SUBMATRICES = 2500
MAX_CANDIDATES = 64
"""Candidates handed on from one block, the sparsest first."""
PARALLEL = 1 - 1e-6
"""Cosine from which two null vectors are the same."""


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

    def propose(self, space: RowSpace, pool: Pool, rng: np.random.Generator) -> Proposals:
        """Draw one block of submatrices, at times only among the zero rows of known directions."""
        xp, device = space.xp, space.device
        if space.batch_size == 1:
            return Proposals(xp.ones((1, 1), dtype=xp.float64, device=device.handle), 1, self.name)
        known = _choose_known(space, pool, rng) if rng.random() < RESTRICTED_SHARE else []
        problem = _restrict(space, pool, known, _unexplained(space, pool, rng))
        vectors, zero_count, examined = self._sample(space, problem, rng)
        news = ~covered(vectors, zero_count, problem.basis, problem.basis_count, problem.basis_angle)
        fresh = vectors[news][: 8 * MAX_CANDIDATES]
        fresh = fresh[distinct(fresh, PARALLEL, MAX_CANDIDATES)]
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

        Returns (vectors (k, r), their zero counts (k,), number of submatrices), the arrays on the host.
        """
        xp, device, rows = space.xp, space.device, problem.rows
        count, r = rows.shape
        every = math.comb(count, r - 1)
        k = max(64, min(self.submatrices, 4 * every, block_length(r * max(r, 16))))
        alphas = rng.choice(EXPONENTS, EXPONENTS_PER_BLOCK, replace=False, p=EXPONENT_SHARES)
        share = -(-k // EXPONENTS_PER_BLOCK)
        drawn = [draw_subsets(-alpha * problem.log_norm, r - 1, share, rng) for alpha in alphas]
        subsets = np.concatenate(drawn)
        vectors = null_vectors_of_rows(device, rows, device.integers(subsets), rng)
        tolerance = _tolerance(space, vectors @ problem.complement.T)
        check = device.integers(rng.choice(count, min(CHECK_ROWS, count), replace=False))
        first = _count_zeros(xp, vectors, xp.take(rows, check, axis=0), tolerance)
        solved = xp.linalg.vector_norm(vectors, axis=1) > 0.5
        keep = xp.nonzero(solved & (first >= min(1, count - r)))[0]
        vectors, tolerance = xp.take(vectors, keep, axis=0), xp.take(tolerance, keep)
        zeros = to_host(_count_zeros(xp, vectors, rows, tolerance))
        # By chance a false vector agrees with some further rows; ask for more than that.
        chance = to_host(tolerance) * (count - r)
        enough = np.flatnonzero(zeros >= (r - 1) + 1 + np.ceil(chance + 4 * np.sqrt(chance)))
        order = enough[np.argsort(-zeros[enough], kind="stable")]
        return to_host(xp.take(vectors, device.integers(order), axis=0)), zeros[order], len(subsets)


def _count_zeros(xp: Any, vectors: Array, rows: Array, tolerance: Array) -> Array:
    """(k,): how many of `rows` (ℓ, r) each of `vectors` (k, r) annuls within its `tolerance` (k,)."""
    return xp.sum(xp.astype(xp.abs(vectors @ rows.T) < tolerance[:, None], xp.int64), axis=1)


def _unexplained(space: RowSpace, pool: Pool, rng: np.random.Generator) -> HostArray:
    """(ℓ,) norms of the live rows of weight_grad after a fit by known columns of ∂L/∂Z.

    All but a random share of the basis is used, so that a wrong direction in it does no lasting harm.
    """
    xp = space.xp
    basis = np.asarray(pool.basis, dtype=np.int64)
    share = rng.choice([0.5, 0.8, 1.0])
    basis = basis[rng.random(len(basis)) < share][: space.batch_size - 1]
    rows = xp.take(space.coordinates, space.live, axis=0)
    norms = xp.linalg.vector_norm(rows, axis=1)
    if len(basis):
        columns = rows @ (space.device.float64(pool.q[basis]) / space.S).T
        size = xp.linalg.vector_norm(columns, axis=0)
        explained = xp.linalg.qr(columns / xp.where(size > 0, size, xp.ones_like(size))).Q
        left = xp.linalg.vector_norm(rows - explained @ (explained.T @ rows), axis=1)
        norms = xp.maximum(left, 1e-12 * norms)
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
        basis_angle=np.minimum(pool.angle[chosen] / length[:, 0], 0.1),
    )


def _tolerance(space: RowSpace, q: Array) -> Array:
    """(k,): below which a product with a unit row counts as zero, before any polish.

    A null vector of b-1 rows amplifies their noise, here allowed for by a factor of some hundred.
    """
    xp = space.xp
    typical = float(np.median(to_host(xp.linalg.vector_norm(space.U, axis=1))))
    return xp.clip(300 * space.noise_norm(q) / typical, 1e-6, 0.02)


def _choose_known(space: RowSpace, pool: Pool, rng: np.random.Generator) -> list[int]:
    """Some directions of the basis whose common zero rows can still determine the others."""
    basis = list(pool.basis)
    rng.shuffle(basis)
    wanted = int(rng.integers(1, 5))
    known: list[int] = []
    mask = np.ones(space.U.shape[0], dtype=bool)
    for index in basis:
        left = space.batch_size - len(known) - 1
        narrower = mask & pool.zero_mask[index]
        if len(known) == wanted or left < 2:
            break
        # About half of the rows must stay zero for a further direction, and more than left - 1 of them.
        if np.count_nonzero(narrower) >= 2 * (left - 1) + 8:
            known.append(index)
            mask = narrower
    return known
