"""Inputs that are in several records: whose data leak again and again.

Two recovered rows are the same input if they differ by no more than their bounds allow. They are looked for by a few
random projections, which equal rows share within their bounds, so that most rows are never compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[Any]]

PROJECTIONS = 4
"""Random projections of each row. Heuristic: more tell apart what is close, and take memory."""

SHARP = 0.01
"""Largest bound, as a share of the largest entry, of a row that is compared.

Heuristic: what is known less well than a hundredth is the same as too much.
"""

KEPT = 2**27
"""Bytes of rows that are kept for comparing."""

Row = tuple[int, int]
"""Number of a batch, and row in it."""


@dataclass
class _Rows:
    """All rows of one width."""

    directions: Floats
    """(n, `PROJECTIONS`), entries ±1."""
    places: list[Row] = field(default_factory=list)
    projected: list[Floats] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)


class Repeats:
    """Collects recovered inputs, and says which are the same.

    Parameters
    ----------
    read : callable
        Returns a row (n,) again: takes the number of its batch and the row.
    """

    def __init__(self, read: Callable[[int, int], Floats]) -> None:
        self._read = read
        self._of_width: dict[int, _Rows] = {}
        self._kept: dict[Row, Floats] = {}

    def add(self, batch: int, bounds: Floats, blocks: Iterable[tuple[slice, Floats]], width: int) -> None:
        """Add the inputs (k, n) of a batch, which come by blocks of columns, with the bounds (k,) on their errors."""
        rows = self._of_width.get(width)
        if rows is None:
            signs = np.random.default_rng(width).integers(0, 2, (width, PROJECTIONS))
            rows = self._of_width[width] = _Rows(2.0 * signs - 1.0)
        largest = np.zeros(len(bounds))
        projected = np.zeros((len(bounds), PROJECTIONS))
        for columns, block in blocks:
            largest = np.maximum(largest, np.max(np.abs(block), axis=1, initial=0.0))
            projected += block @ rows.directions[columns]
        sharp = np.flatnonzero(np.isfinite(largest) & (bounds <= SHARP * largest) & (largest > 0))
        rows.places += [(batch, int(row)) for row in sharp]
        rows.projected += list(projected[sharp])
        rows.bounds += [float(bounds[row]) for row in sharp]

    def groups(self) -> list[list[Row]]:
        """Return the inputs that are in several batches: for each its (batch, row), in the order in which they were added."""
        return [group for rows in self._of_width.values() for group in self._groups(rows)]

    def _groups(self, rows: _Rows) -> list[list[Row]]:
        if len(rows.places) < 2:
            return []
        bounds = np.asarray(rows.bounds)
        projected = np.stack(rows.projected)
        order = np.argsort(projected[:, 0], kind="stable")
        projected, bounds = projected[order], bounds[order]
        places = [rows.places[index] for index in order]
        # Entries of ±1: a projection of rows that differ by e in each entry differs by n e at most, and rounding.
        reach = len(rows.directions) * bounds + 1e-9 * np.max(np.abs(projected))
        ends = np.searchsorted(projected[:, 0], projected[:, 0] + reach + np.max(reach), side="right")
        groups = _Union(len(places))
        for one in np.flatnonzero(ends > np.arange(1, len(ends) + 1)):
            others = np.arange(one + 1, ends[one])
            near = np.all(
                np.abs(projected[others] - projected[one]) <= (reach[others] + reach[one])[:, None], axis=1
            )
            for other in others[near]:
                if groups.root(int(one)) != groups.root(int(other)) and self._same(
                    places[one], places[other], bounds[one] + bounds[other]
                ):
                    groups.join(int(one), int(other))
        found: dict[int, list[int]] = {}
        for index in range(len(places)):
            found.setdefault(groups.root(index), []).append(int(order[index]))
        several = [sorted(members) for members in found.values() if len(members) > 1]
        named = [[rows.places[member] for member in members] for members in sorted(several)]
        return [members for members in named if len({batch for batch, _ in members}) > 1]

    def _same(self, one: Row, other: Row, bound: float) -> bool:
        return bool(np.max(np.abs(self._row(one) - self._row(other))) <= bound)

    def _row(self, place: Row) -> Floats:
        row = self._kept.get(place)
        if row is None:
            row = self._read(*place)
            if (len(self._kept) + 1) * row.nbytes > KEPT:
                self._kept.clear()
            self._kept[place] = row
        return row


class _Union:
    """Sets that grow together."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, one: int) -> int:
        while self._parent[one] != one:
            self._parent[one] = self._parent[self._parent[one]]
            one = self._parent[one]
        return one

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self._parent[second] = first
