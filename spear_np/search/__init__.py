"""Where candidates come from: a search for directions of one layer has the first face below, one for inputs of a chain the second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..arrays import Array
from ..chain.sets import Open
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
    sharp: bool = False
    """Whether they are as sharp as the noise allows, so that no polish is needed."""


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


@dataclass(frozen=True)
class Ends:
    """Where starts of a search of chains ended, what it carries on, and what it cost."""

    coordinates: Array
    """(k, b) coordinates of candidate inputs in the first layer, most promising first; k may be 0."""
    memory: Any
    """Starts under way, for the next call."""
    examined: int
    """Steps of all starts together."""


class ChainSearch(Protocol):
    """A source of candidate inputs of a chain: a pure function of what is left, its own memory and random numbers."""

    @property
    def name(self) -> str:
        """Shown in the history of a result."""
        ...

    @property
    def patience(self) -> int:
        """Steps of all starts without a new input after which another search has its turn."""
        ...

    def start(self, left: Open, rng: np.random.Generator) -> Any:
        """Return the memory of a search that begins."""
        ...

    def propose(self, left: Open, memory: Any, rng: np.random.Generator) -> Ends:
        """Return the next candidates; `left` may have shrunk since the last call."""
        ...
