"""A search, or its steps, on another device than what is done with its candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from ..backend.devices import CPU, Device
from ..backend.host import to_host
from ..directions.pool import Pool
from ..factors.row_space import RowSpace
from ..placement import carried
from . import Proposals, Search

W = TypeVar("W")
A = TypeVar("A")


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """A `search` and the row space that it sees, both on the same device; its candidates go to the caller's."""

    search: Search
    space: RowSpace

    @classmethod
    def on(cls, device: Device, search: Search, space: RowSpace) -> Elsewhere:
        """Carry a `search` that was prepared on the host, and its `space`, to `device`."""
        return cls(carried(search, device), carried(space, device))

    @property
    def name(self) -> str:
        """That of the search."""
        return self.search.name

    def propose(self, space: RowSpace, pool: Pool, rng: np.random.Generator) -> Proposals:
        """Ask the search there."""
        with self.space.device.activate():
            found = self.search.propose(self.space, pool, rng)
            candidates = to_host(found.candidates)
        return replace(found, candidates=space.device.float64(candidates))

    def forecast(self, space: RowSpace) -> float | None:
        """Forecast of the search."""
        return self.search.forecast(space)


def elsewhere(device: Device, steps: Callable[[Device, Sequence[W]], Sequence[A]], wanted: W) -> A:
    """What `steps` makes on `device` of what one search wants; arrays of the host are carried there."""
    with device.activate():
        there = wanted if device == CPU else carried(wanted, device)
        return steps(device, [there])[0]
