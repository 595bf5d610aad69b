"""Random subsets of rows, the unit vectors they annul, and which of these further rows agree with.

Numbers that look random are hashes of (seed, subset, draw): a subset is drawn alike wherever it is drawn, by the
kernel on a card and by `draw_subsets` on the host. All vectors are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import between, contiguous, solve_or_nan, stacked
from ..backend.devices import Device
from ..backend.host import to_host
from .source import WARP, launch, runs_kernels
from .splitmix import below

SLOTS_PER_ROW = 64
"""Slots of the table of a weighted draw for each row, on average.

Derived: weights are then off by less than what one draw in 64 is worth, and the table of ten thousand rows still fits a cache.
"""
CERTAIN = 6.0
"""Expected draws of a row from which more make no difference.

Derived: one that is drawn six times on average is missed by one subset in 400.
"""
MOST_DRAWS = 32
"""Draws for each row of a subset, after which it takes whatever row is free.

Derived: five times what `CERTAIN` lets a subset need on average; it only makes sure of an end.
"""
BISECTIONS = 20
"""Halvings of an interval on a logarithmic scale.

Derived: from a hundred decades to a share of 2e-4, and a slot is that of one row in 64.
"""
DRAWN_SIGMAS = 3.0
"""Standard deviations of the number of draws that a subset needs that all subsets are given at once.

Derived: one in a thousand asks again.
"""
SMALL_PIVOT = 1e-3
"""Pivot of an elimination of unit rows, none of them chosen, from which rows count as dependent and their subset is passed over.

Derived: larger ones amplify the rounding of float32 to 6e-5, which stays below any tolerance of the search.
Measured: at m = 200 and b = 12, 16, 24, 240,000 subsets each, solving those that it passes over (9 to 32 %) in float64 with a choice of
pivots brought 95, 155, 95 hits, passing them over 97, 155, 94: rows of small gradient depend on each other because few inputs share them.
"""
ELIMINATED_NUMBERS = 500_000
"""Numbers of the submatrices that are eliminated together on the host.

Measured: on an AMD EPYC with 1 MB of second-level cache a core, 0.54 µs a submatrix at r = 16 (1.2 with 60,000, 2.4 one at a time in
LAPACK) and 1.6 at r = 24 (4.4, and 5.6).
"""
LARGEST_KERNEL = 64
"""Columns up to which the kernel is used, and null vectors are eliminated; of more, systems are solved by the library.

Derived: the 16 kB of one submatrix leave room for three in the 48 kB of shared memory that every card has.
Measured: elimination takes 12.8, 31.8, 141 and 2,435 µs a submatrix at r = 48, 64, 96 and 200, LAPACK 12.4, 23, 48 and 233 (AMD EPYC, one
thread).
"""
SHARED_BYTES = 48 * 1024
"""Shared memory of a block.

Definition: what CUDA promises on every card.
"""
MOST_WARPS = 8
"""Warps of a block, each with a submatrix of its own, at most.

Heuristic: more share no work.
"""
SUBSETS_PER_WARP = 16
"""Subsets that a warp examines one after the other.

Heuristic: enough to make its start cheap, few enough for the last warps to end together.
"""
KEPT_VECTORS = 65_536
"""Vectors that one launch can keep; if more are to be kept, its halves are launched.

Heuristic: a hundred times what is handed on.
"""
CHANCE_SIGMAS = 4.0
"""Standard deviations by which further zero rows must exceed their number by chance.

Derived: one of 30,000 false vectors passes, a fraction of one block.
"""
SPARE_SHARE = 0.25
"""Share of the further rows beyond which no more of them need to agree, whatever chance brings.

Derived: half of what agrees with a true direction on average.
"""


@dataclass(frozen=True, eq=False)
class Rows:
    """What subsets are drawn from, ℓ rows in r coordinates, and when a product with a row counts as zero."""

    unit: Array
    """(ℓ, r) unit rows, float32, turned so that no coordinate is special."""
    glanced: HostArray
    """(g,) int: the rows that are looked at before all others."""
    noise: Array
    """(r, r) float32, upper triangular: ``|noise · x|`` is the standard deviation of the noise in ``unit · x``, but for a factor."""
    amplification: float
    """Multiple of ``|noise · x|`` below which a product counts as zero."""
    narrowest: float
    widest: float
    """The same, at least and at most."""

    def on(self, device: Device) -> Rows:
        """The same on another device."""
        return replace(self, unit=device.float32(self.unit), noise=device.float32(self.noise))

    @property
    def chance(self) -> float:
        """Rows that a vector without meaning annuls, in units of the tolerance: the density of a random unit vector at zero."""
        count, r = self.unit.shape
        return math.sqrt(2 * r / math.pi) * float(count - r)

    @property
    def spare(self) -> int:
        """How many further rows are asked for at most."""
        count, r = self.unit.shape
        return max(1, int(SPARE_SHARE * (count - r)))


@dataclass(frozen=True, eq=False)
class Sample:
    """The vectors that further rows agree with, those with most zeros first; all on the host."""

    vectors: HostArray
    """(k, r) float32 unit vectors."""
    zeros: HostArray
    """(k,) int: rows that each annuls."""
    subsets: HostArray
    """(k,) int: the numbers of the subsets they come from."""


def draw_tables(log_weights: HostArray, size: int) -> HostArray:
    """(groups, SLOTS_PER_ROW ℓ) int32: tables of rows for subsets of `size` by weights ``exp(log_weights)`` (groups, ℓ).

    Row i has slots in proportion to ``min(w_i τ, CERTAIN)``, with τ such that as many rows as wanted are expected to come
    up by then: a subset by weight needs no more than some `CERTAIN` draws for each of its rows, however much the heaviest
    weigh. Cumulative rounding gives rows of small weight a slot as often as they deserve one.
    """
    groups, count = log_weights.shape
    relative = log_weights - np.max(log_weights, axis=1, keepdims=True)
    low = np.full((groups, 1), -np.log(count))
    high = np.log(CERTAIN) - np.min(relative, axis=1, keepdims=True)
    low = np.minimum(low, high - 1)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        drawn = np.exp(np.minimum(relative + middle, np.log(CERTAIN)))
        few = np.sum(-np.expm1(-drawn), axis=1, keepdims=True) < size
        low, high = np.where(few, middle, low), np.where(few, high, middle)
    share = np.cumsum(np.exp(np.minimum(relative + high, np.log(CERTAIN))), axis=1)
    ends = np.rint(share / share[:, -1:] * (SLOTS_PER_ROW * count)).astype(np.int64)
    slots = np.diff(ends, axis=1, prepend=0)
    rows = np.arange(count, dtype=np.int32)
    return np.stack([np.repeat(rows, each) for each in slots])


def draw_subsets(tables: HostArray, rows: int, size: int, subsets: HostArray, seed: int) -> HostArray:
    """Draw (k, size) distinct rows out of `rows` for each of the `subsets` (k,) int.

    Subset i is the first `size` different rows of its own sequence of draws from table ``i % groups`` of `tables`
    (groups, slots), all slots alike: a weighted sample without replacement.
    """
    picks = np.empty((len(subsets), size), dtype=np.int64)
    open_ = np.arange(len(subsets))
    # As many draws bring `size` of equal rows together; weights need more.
    expected = -rows * np.log1p(-min(size, rows - 1) / rows)
    draws = min(MOST_DRAWS * size, max(size, math.ceil(expected + DRAWN_SIGMAS * math.sqrt(expected))))
    while len(open_) and size:
        drawn = _drawn(tables, subsets[open_], draws, seed)
        fresh = _fresh(drawn, rows)
        rank = np.cumsum(fresh, axis=0, dtype=np.int32)
        done = rank[-1] >= size
        chosen = (fresh & (rank <= size) & done).T
        picks[open_[done]] = drawn.T[chosen].reshape(-1, size)
        if draws == MOST_DRAWS * size:
            for subset in np.flatnonzero(~done):
                distinct = drawn[fresh[:, subset], subset]
                picks[open_[subset]] = _filled(distinct, drawn[-1, subset], rows, size)
            break
        open_, draws = open_[~done], min(2 * draws, MOST_DRAWS * size)
    return picks


def _fresh(drawn: HostArray, rows: int) -> HostArray:
    """(draws, k) bool: which of the rows `drawn` (draws, k) out of `rows` have not come before in their column."""
    draws, k = drawn.shape
    places = drawn + np.arange(k) * rows
    first = np.empty(k * rows, dtype=np.int16)
    for draw in range(draws - 1, -1, -1):  # the first of those of a row is written last
        first[places[draw]] = draw
    fresh: HostArray = first[places] == np.arange(draws, dtype=np.int16)[:, None]
    return fresh


def _filled(distinct: HostArray, last: int, rows: int, size: int) -> HostArray:
    """(size,): the `distinct` rows, and then whatever is free behind the `last` one drawn."""
    behind = (last + 1 + np.arange(rows)) % rows
    free = behind[~np.isin(behind, distinct)]
    return np.concatenate([distinct, free[: size - len(distinct)]])


def _drawn(tables: HostArray, subsets: HostArray, draws: int, seed: int) -> HostArray:
    """(draws, k) int32: the first draws of each of the `subsets` (k,)."""
    groups, slots = tables.shape
    drawn: HostArray = np.take(
        tables.reshape(-1), subsets % groups * slots + below(slots, subsets, draws, seed)
    )
    return drawn


@dataclass(frozen=True, eq=False)
class Draw:
    """Subsets of r - 1 rows that are to be examined: numbers `first` to `first + count - 1`."""

    rows: Rows
    tables: HostArray
    """(groups, slots) int32: those of `draw_subsets`."""
    seed: int
    first: int
    count: int

    def on(self, device: Device) -> Draw:
        """The same with its rows on another device."""
        return replace(self, rows=self.rows.on(device))

    def halves(self) -> tuple[Draw, Draw]:
        """The same subsets in two parts."""
        half = self.count // 2
        rest = replace(self, first=self.first + half, count=self.count - half)
        return replace(self, count=half), rest


def sample(device: Device, draws: Sequence[Draw]) -> list[Sample]:
    """Examine the subsets of each of some `draws`; on a card in one launch."""
    launched = [
        number
        for number, draw in enumerate(draws)
        if runs_kernels(device, draw.rows.unit) and draw.rows.unit.shape[1] <= LARGEST_KERNEL
    ]
    found = dict(zip(launched, _launched(device, [draws[number] for number in launched]), strict=True))
    for number, draw in enumerate(draws):
        if number not in found:
            found[number] = _in_arrays(device, draw.rows, draw.tables, draw.seed, draw.first, draw.count)
    return [_gathered(found[number]) for number in range(len(draws))]


def _gathered(parts: list[Part]) -> Sample:
    vectors, zeros, subsets = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((subsets, -zeros))
    return Sample(vectors[order], zeros[order], subsets[order])


Part = tuple[HostArray, HostArray, HostArray]


def _in_arrays(
    device: Device, rows: Rows, tables: HostArray, seed: int, first: int, count: int
) -> list[Part]:
    """As `sample`, in array code."""
    xp = device.xp
    length, r = rows.unit.shape
    glanced = xp.take(rows.unit, device.integers(rows.glanced), axis=0)
    parts = []
    step = max(1, ELIMINATED_NUMBERS // max(1, r * (r - 1)))
    for start in range(first, first + count, step):
        subsets = np.arange(start, min(start + step, first + count))
        picks = draw_subsets(tables, length, r - 1, subsets, seed)
        vectors = null_vectors_of(device, rows.unit, picks)
        tolerance = between(
            xp,
            rows.amplification * xp.linalg.vector_norm(vectors @ rows.noise.T, axis=1),
            rows.narrowest,
            rows.widest,
        )
        there = xp.sum(vectors * vectors, axis=1) > 0
        if length > r:
            there = there & (_annulled(xp, vectors, glanced, tolerance) > 0)
        kept = xp.nonzero(there)[0]
        vectors, tolerance = xp.take(vectors, kept, axis=0), xp.take(tolerance, kept, axis=0)
        zeros = _annulled(xp, vectors, rows.unit, tolerance)
        by_chance = rows.chance * tolerance
        asked = xp.ceil(by_chance + CHANCE_SIGMAS * xp.sqrt(by_chance))
        enough = xp.nonzero(
            xp.astype(zeros, xp.float32) >= r + xp.minimum(asked, xp.full_like(asked, rows.spare))
        )[0]
        numbers = subsets[to_host(xp.take(kept, enough))]
        parts.append((to_host(xp.take(vectors, enough, axis=0)), to_host(xp.take(zeros, enough)), numbers))
    return parts


def _annulled(xp: Namespace, vectors: Array, rows: Array, tolerance: Array) -> Array:
    """(k,): how many of `rows` (ℓ, r) each of `vectors` (k, r) annuls within its `tolerance` (k,)."""
    return xp.sum(xp.astype(xp.abs(vectors @ rows.T) < tolerance[:, None], xp.int64), axis=1)


def null_vectors_of(device: Device, rows: Array, picks: HostArray) -> Array:
    """(k, r): unit vectors that the rows `picks` (k, r - 1) of `rows` (ℓ, r), unit rows of float32, annul; zero where they depend."""
    xp = device.xp
    x, sound = (_eliminated if rows.shape[1] <= LARGEST_KERNEL else _solved)(device, rows, picks)
    square = xp.sum(x * x, axis=1)
    sound = sound & xp.isfinite(square)
    length = xp.sqrt(xp.where(sound, square, xp.ones_like(square)))
    return xp.where(sound[:, None], x, xp.zeros_like(x)) / length[:, None]


def _eliminated(device: Device, rows: Array, picks: HostArray) -> tuple[Array, Array]:
    """Null vectors (k, r) with a last entry of one, and whether rows are independent (k,).

    All eliminations go side by side, a number of each in turn, and none chooses its pivots: rows that were turned at
    random seldom need it, see `SMALL_PIVOT`.
    """
    xp = device.xp
    k, n = picks.shape
    index = device.integers(np.ascontiguousarray(picks.T).reshape(-1))
    # [coordinate, row, submatrix]
    matrix = xp.reshape(xp.take(xp.matrix_transpose(rows), index, axis=1), (n + 1, n, k))
    sound = xp.ones((k,), dtype=xp.bool, device=device.handle)
    pivots = []
    for p in range(n):
        pivot = matrix[p, p, :]
        large = xp.abs(pivot) > SMALL_PIVOT
        sound = sound & large
        pivot = xp.where(large, pivot, xp.ones_like(pivot))
        pivots.append(pivot)
        shares = matrix[p, p + 1 :, :] / pivot
        matrix[p + 1 :, p + 1 :, :] -= matrix[p + 1 :, p : p + 1, :] * shares[None, :, :]
    x = xp.ones((n + 1, k), dtype=rows.dtype, device=device.handle)
    for p in range(n - 1, -1, -1):
        x[p, :] = -xp.sum(matrix[p + 1 :, p, :] * x[p + 1 :, :], axis=0) / pivots[p]
    return xp.matrix_transpose(x), sound


def _solved(device: Device, rows: Array, picks: HostArray) -> tuple[Array, Array]:
    """As `_eliminated`, by the library, which chooses pivots and refuses none but zero."""
    xp = device.xp
    k, n = picks.shape
    matrix = xp.reshape(xp.take(rows, device.integers(picks.reshape(-1)), axis=0), (k, n, n + 1))
    x = solve_or_nan(xp, matrix[:, :, :n], -matrix[:, :, n:])[:, :, 0]
    x = xp.concat([x, xp.ones((k, 1), dtype=rows.dtype, device=device.handle)], axis=1)
    return x, xp.all(xp.isfinite(x), axis=1)


def _launched(device: Device, draws: Sequence[Draw]) -> list[list[Part]]:
    """As `sample`, by the kernel: only what is kept leaves the device."""
    if not draws:
        return []
    xp = device.xp
    rows = [draw.rows for draw in draws]
    glanced = [xp.take(one.unit, device.integers(one.glanced), axis=0).T for one in rows]
    stacks = {
        "rows": stacked(device, [one.unit for one in rows]),
        "tables": stacked(device, [_on(device, draw.tables.reshape(1, -1)) for draw in draws]),
        "noise": stacked(device, [one.noise for one in rows]),
        "glanced": contiguous(xp, stacked(device, glanced)),
    }
    shapes = [
        (
            *draw.rows.unit.shape,
            draw.tables.shape[1],
            draw.tables.shape[0],
            len(draw.rows.glanced),
            MOST_DRAWS * (draw.rows.unit.shape[1] - 1),
            draw.rows.spare,
        )
        for draw in draws
    ]
    numbers = [(draw.seed, draw.first, draw.count) for draw in draws]
    bounds = [(one.amplification, one.narrowest, one.widest, one.chance) for one in rows]
    count, r = max(draw.count for draw in draws), stacks["rows"].shape[2]
    capacity = min(count, KEPT_VECTORS)
    vectors = xp.empty((len(draws), capacity, r), dtype=xp.float32, device=device.handle)
    zeros = xp.empty((len(draws), capacity), dtype=xp.int32, device=device.handle)
    which = xp.empty((len(draws), capacity), dtype=xp.uint64, device=device.handle)
    found = xp.zeros((len(draws),), dtype=xp.uint64, device=device.handle)
    floats = (r - 1) * (r | 1) + r + (r - 1) + 1 + WARP
    warps = max(1, min(MOST_WARPS, SHARED_BYTES // (4 * floats)))
    blocks = -(-count // (warps * SUBSETS_PER_WARP))
    arguments = (
        *stacks.values(),
        _on(device, np.asarray(shapes, dtype=np.int32)),
        _on(device, np.asarray(numbers, dtype=np.uint64)),
        _on(device, np.asarray(bounds, dtype=np.float32)),
        np.int32(stacks["rows"].shape[1]),
        np.int32(r),
        np.int32(stacks["tables"].shape[2]),
        np.int32(stacks["glanced"].shape[2]),
        np.int32(blocks),
        np.float32(SMALL_PIVOT),
        np.float32(CHANCE_SIGMAS),
        vectors,
        zeros,
        which,
        found,
        np.int32(capacity),
    )
    launch(device, "sample", len(draws) * blocks, WARP * warps, arguments, shared=4 * floats * warps)
    parts: list[list[Part]] = []
    for place, (draw, kept) in enumerate(zip(draws, to_host(found).tolist(), strict=True)):
        if kept > capacity:  # which of them are kept is a matter of luck: every half has all of its own
            parts.append([part for half in draw.halves() for part in _launched(device, [half])[0]])
            continue
        own = vectors[place, :kept, : draw.rows.unit.shape[1]]
        parts.append(
            [
                (
                    to_host(own),
                    to_host(zeros[place, :kept]).astype(np.int64),
                    to_host(which[place, :kept]).astype(np.int64),
                )
            ]
        )
    return parts


def _on(device: Device, values: HostArray) -> Array:
    """`values` on `device`, their dtype kept."""
    return device.xp.asarray(values, device=device.handle)
