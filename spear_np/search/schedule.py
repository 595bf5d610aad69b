"""`auto`: which search next, from what the problem and the pool look like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..directions.pool import SMALL_BATCH, Pool
from ..factors.row_space import RowSpace
from . import Proposals, Search
from .columns import Columns
from .completion import Completion

SAMPLING_SUFFICES = 6
"""Batch size up to which one block of submatrices nearly always finds everything.

Derived: five rows are all zero with a probability of 2^-5, in some eighty of 2500 submatrices.
"""
TURNS = 3
"""Stale rounds in which each search has one turn: descent, completion, sampling.

Heuristic: none is to wait long for another.
"""


@dataclass(frozen=True)
class Schedule:
    """Descent first, unless the batch is tiny; the others in turn where they can still succeed."""

    descent: Search
    sampling: Search
    completion: Completion | None = None
    columns: Columns | None = None
    name: str = "auto"

    def propose(self, space: RowSpace, pool: Pool, rng: np.random.Generator) -> Proposals:
        """Ask the search that suits."""
        return self._next(space, pool).propose(space, pool, rng)

    def forecast(self, space: RowSpace) -> float | None:
        """Forecast of the published search where it is used."""
        return self.sampling.forecast(space) if space.batch_size <= SAMPLING_SUFFICES else None

    def _next(self, space: RowSpace, pool: Pool) -> Search:
        b, live = space.batch_size, space.U.shape[0]
        if self.columns is not None and b > SAMPLING_SUFFICES and pool.stale % (2 * TURNS) < TURNS:
            return self.columns
        if self.completion is not None and pool.stale % TURNS == 1 and self.completion.suits(pool):
            return self.completion
        if b <= SAMPLING_SUFFICES or live < 2 * b:
            return self.descent if pool.stale % (TURNS + 1) == TURNS and b > 2 else self.sampling
        if b <= SMALL_BATCH and pool.stale % TURNS == 2:
            return self.sampling
        return self.descent
