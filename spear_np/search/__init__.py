"""Where candidate directions come from; every search has the one face below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..backend import Array
from ..directions.pool import Pool
from ..factors.row_space import RowSpace


@dataclass(frozen=True, eq=False)
class Proposals:
    """A block of candidate directions and what it cost to find them."""

    candidates: Array
    """(k, b) directions in U-coordinates, of any length; k may be 0."""
    examined: int
    """How many directions were looked at to choose these."""
    search: str
    """Name of the search that found them."""


class Search(Protocol):
    """A source of candidate directions: a pure function of row space, pool and random numbers."""

    @property
    def name(self) -> str:
        """Shown in the history of a result."""
        ...

    def propose(self, space: RowSpace, pool: Pool, rng: np.random.Generator) -> Proposals:
        """Return the next block of candidates."""
        ...

    def forecast(self, space: RowSpace) -> float | None:
        """Return how many directions will probably be examined until all are found, if that can be told."""
        ...
