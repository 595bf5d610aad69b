"""The last few columns, by enumeration of what the layer can do.

Every input satisfies ``c · y_j = 0`` for the directions y_j of the others and ``c · ȳ = 1`` with
``weight_grad V ȳ = bias_grad``. With d directions missing, the coordinates c of a missing input lie in an affine space
of dimension d - 1, which the layer cuts into cells of one on/off pattern each: some ℓ^(d-1) of them, and the units that
are off in the right cell have the missing direction for a null vector. No sparsity beyond b zeros is needed, where the
ℓ1 norm may have no minimum at a direction with few zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import Array, HostArray
from ..backend.algebra import smallest
from ..backend.host import to_host
from ..backend.work import block_length, blocks, one_by_one
from ..directions.disaggregate import bias_direction
from ..directions.null_vectors import SAME_VECTOR, distinct, null_vectors_of_rows, solved
from ..directions.polish import NEAR_ZERO
from ..directions.pool import Pool
from ..directions.uniqueness import SPARE
from ..factors.factorize import Factors
from ..factors.layer import depth
from ..factors.row_space import RowSpace
from ..factors.signs import SignModel, missing_inputs
from . import Proposals

MOST_GUESSED = 12
"""Missing directions up to which guesses of an input are likely to fall into the right cell.

Heuristic: the cells multiply by the units with each further one.
"""
GUESSES = 3000
"""Guesses of one block, at most.

Heuristic: it bounds the time of a turn.
"""
FEWEST_GUESSES = 64
"""Guesses of one block, at least.

Heuristic: as `GUESSES`.
"""
SPREADS = (0.5, 1.0, 1.5, 2.5)
"""Multiples of the prior deviation with which inputs are guessed; one is drawn for each block.

Heuristic: the prior is rough.
"""
GUESSED_CANDIDATES = 48
"""Candidates handed on from one block, those with most rows near zero first.

Heuristic: it bounds the time of their polish.
"""
DOUBTED = 0.5
"""Share of the blocks that do without the known direction that has the fewest zeros.

Heuristic: one that is wrong, and that nothing speaks against, has fewer than those that are right, and leaves no cell to the missing
ones; without a right one, guesses are a little less sharp.
"""


@dataclass(frozen=True, eq=False)
class Completion:
    """Guess missing inputs from the prior of `signs.smoother` and what is known; take the units that they leave off."""

    model: SignModel
    total: HostArray
    """(b,): ȳ."""
    name: str = "completion"

    @classmethod
    def prepare(cls, factors: Factors, model: SignModel | None) -> Completion | None:
        """None where W or bias_grad is missing, or where bias_grad contradicts weight_grad."""
        total = None if model is None else bias_direction(factors)
        return None if model is None or total is None else cls(model, total)

    def suits(self, pool: Pool) -> bool:
        """Whether few enough directions are missing."""
        return 1 <= int(pool.q.shape[1]) - len(pool.trusted) <= MOST_GUESSED

    def propose(self, space: RowSpace, pool: Pool, rng: np.random.Generator) -> Proposals:
        """Return the null vectors that further rows agree with, of one block of guesses."""
        xp, device, b = space.xp, space.device, space.batch_size
        known = pool.trusted
        if len(known) > 1 and rng.random() < DOUBTED:
            known.remove(min(known, key=pool.zero_count.__getitem__))
        mean, root = missing_inputs(space, self.model, self.total, pool.q[known])
        count = max(FEWEST_GUESSES, min(GUESSES, block_length(b * b)))
        spread = float(rng.choice(SPREADS))
        guesses = mean[None, :] + spread * device.normal(rng, (count, b)) @ root.T

        def directions(part: slice) -> Array:
            """(k, b): the null vectors of what some of the guesses leave off."""
            z = guesses[part, :] @ self.model.weight_in_basis.T + self.model.bias[None, :]
            shallow = -depth(z, self.model.ceiling)
            rows = smallest(xp, shallow, b - 1)
            off = xp.all(xp.take_along_axis(shallow, rows, axis=1) < 0, axis=1)
            rows = xp.take(rows, xp.nonzero(off)[0], axis=0)
            q = null_vectors_of_rows(device, space.U, rows, rng)
            return xp.take(q, solved(xp, q), axis=0)

        entries = max(b * b, int(space.U.shape[0]))
        q = xp.concat(one_by_one(device, directions, blocks(device, count, entries)), axis=0)
        near = to_host(xp.sum(xp.astype(space.noise_units(q) < NEAR_ZERO, xp.int64), axis=1))
        order = np.argsort(-near, kind="stable")
        order = order[near[order] >= b - 1 + SPARE]
        chosen = order[distinct(to_host(q)[order], SAME_VECTOR, GUESSED_CANDIDATES)]
        return Proposals(xp.take(q, device.integers(chosen), axis=0), count, self.name)

    def forecast(self, space: RowSpace) -> float | None:
        """No forecast: the size of the right cell is unknown."""
        return None
