"""Snap candidates to the zero rows they nearly have; separate those that mix several inputs.

The exact direction is the null vector of all rows where its input's unit is off, not of the b-1 rows a sample
happened to draw: the more rows, the more noise is averaged. All steps work on a whole block of candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import array_api_compat
import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import between, gather, replace_rows, smallest
from ..backend.host import to_host
from ..backend.work import blocks, mapped
from ..factors.row_space import RowSpace
from ..factors.zero import WELL_ABOVE_ZERO, ZERO_SIGMAS
from .null_space import NullSpace, null_space
from .null_vectors import SAME_VECTOR, distinct, draw_subsets, nearest_rows, null_vectors, solved
from .pool import SMALL_BATCH, Pool
from .uniqueness import OPEN_ENERGY

EXTENSIONS = 3
"""Times that a direction is looked at for further zero rows.

Heuristic: each time finds fewer.
"""
MAX_NULLITY = 12
"""Dimensions of a null space up to which sparse directions are sought in it.

Heuristic: sampling there costs 2^dimensions draws.
"""
MAX_RESOLVED = 8
"""Null spaces of several dimensions resolved in one block.

Heuristic: others come back with later blocks; it bounds the time of one.
"""
ROUNDS = 6
"""Times that zero rows and null vector are computed from each other.

Derived: three with the wide tests, and as many again with the true one.
"""
NEARLY_NULL = 1e-4
"""Energy of the first vector relative to the second below which foreign rows among the first explain it.

Heuristic: what a foreign row adds is little beside what the next vector has, and later rounds drop the row.
"""
WIDE_SIGMAS = (50.0, 12.0, 8.0)
"""Zero tests of the first rounds.

Heuristic: a null vector of b rows amplifies their noise by some √b, that of the next rounds by less and less.
"""
FEW_TO_BE_SEEN = 0.05
"""Upper limit of the widened zero test, as a share of a typical non-zero product.

Heuristic: one non-zero row in twenty then passes for zero in the first rounds.
"""
ROW_GAP = 5.0
"""Ratio of neighbours in the sorted products of a candidate that separates its zero rows from the others.

Derived: of numbers that are spread evenly, the j-th smallest and the next differ by it with the probability 5^-j, j ≥ b - 1.
"""
NEAR_ZERO = 300.0
"""Noise units below which a row of an unpolished candidate may be one of its zero rows.

Heuristic: fifty zero tests, for candidates of a float32 descent and of null vectors of b - 1 rows.
"""
TYPICAL = 0.75
"""Quantile of the products of a candidate with all rows that stands for a typical non-zero one.

Derived: about half of the rows are zero, so it is the median of the others.
"""
FEW_ZEROS_APART = 10.0
"""Multiple of `NEAR_ZERO` above which the next row sets fewer than b - 1 zero rows apart from all others.

Heuristic: a mixture of inputs with few common zeros shows them as clearly as that, a mere candidate does not.
"""
DRAWS_PER_DIMENSION = 150
"""Submatrices drawn in a null space, for each of its dimensions.

Heuristic: enough for up to five dimensions to be searched through; it bounds the time.
"""


@dataclass(frozen=True, eq=False)
class Directions:
    """Polished directions, on the host."""

    q: HostArray
    """(k, b) unit vectors in U-coordinates."""
    zero_mask: HostArray
    """(k, ℓ) bool."""
    angle: HostArray
    """(k,) radians, see `Factors.angle_noise`."""


def polish(
    space: RowSpace, candidates: Array, pool: Pool, rng: np.random.Generator, *, margin: int = 1
) -> Directions:
    """Return the directions that `candidates` (k, b) snap to.

    A candidate that snaps to nothing (fewer than b - 1 + `margin` zero rows) is dropped; one whose zero rows leave
    a null space of several dimensions is resolved into the sparse directions inside it. What cannot change the
    basis of `pool` is not followed.
    """
    xp = space.xp
    if space.batch_size == 1:
        return collect(space, xp.ones_like(space.S)[None, :])
    length = xp.linalg.vector_norm(candidates, axis=1)
    candidates = xp.take(candidates, xp.nonzero(xp.isfinite(length) & (length > 0))[0], axis=0)
    widths: tuple[int, ...] = (nearest_rows(space.batch_size), space.batch_size + 1)
    if space.batch_size > SMALL_BATCH and not pool.effort:
        widths = widths[:1]
    q, null_spaces = _snap(space, _promising(space, candidates, pool), widths, margin=margin)
    resolved = [_resolve(space, null, rng) for null in null_spaces[:MAX_RESOLVED]]
    if resolved:
        sparse = _promising(space, xp.concat(resolved, axis=0), pool)
        more, _ = _snap(space, sparse, widths, margin=margin)
        q = xp.concat([q, more], axis=0)
    return collect(space, q)


def _promising(space: RowSpace, candidates: Array, pool: Pool) -> Array:
    """Those of `candidates` (k, b) that the pool's basis does not already cover."""
    xp = space.xp
    if not candidates.shape[0]:
        return candidates
    near = xp.sum(xp.astype(space.noise_units(candidates) < NEAR_ZERO, xp.int64), axis=1)
    keep = np.flatnonzero(~pool.redundant(candidates, near, space.device))
    return xp.take(candidates, space.device.integers(keep), axis=0)


@dataclass(frozen=True, eq=False)
class _Snapped:
    """What became of one block of candidates."""

    q: Array
    """(k', b): those that snapped to a direction."""
    mixed: list[Array]
    """[(r, b)]: null spaces of those that snapped to several."""
    failed: HostArray
    """(k'',) int: which led nowhere."""


def _snap(
    space: RowSpace, candidates: Array, widths: tuple[int, ...], *, margin: int
) -> tuple[Array, list[Array]]:
    """Directions (k', b) that candidates converge to, and null spaces (r, b) of those that are not unique."""
    xp = space.xp

    def snapped(part: slice) -> list[_Snapped]:
        q, found = candidates[part, :], []
        for width in widths:
            # Many rows average the noise; a direction with few zeros needs the second try.
            found.append(_snap_block(space, q, width, margin=margin))
            q = xp.take(q, space.device.integers(found[-1].failed), axis=0)
            if not q.shape[0]:
                break
        return found

    parts = blocks(space.device, candidates.shape[0], space.U.shape[0] * space.batch_size)
    found = [one for block in mapped(space.device, snapped, parts) for one in block]
    q = [space.device.zeros((0, space.batch_size)), *(one.q for one in found)]
    return xp.concat(q, axis=0), [null for one in found for null in one.mixed]


def _snap_block(space: RowSpace, q: Array, width: int, *, margin: int) -> _Snapped:
    """One block of `_snap`: null vector → its zero rows → null vector, until the rows are the zero rows.

    Starts from the `width` rows nearest to zero.
    """
    xp = space.xp
    needed = space.batch_size - 1 + margin
    order, counts = _first_rows(space, q, width)
    remaining = np.arange(q.shape[0])
    failed: list[int] = []
    unique: list[Array] = [space.device.zeros((0, space.batch_size))]
    mixed: list[Array] = []
    for round_number in range(ROUNDS):
        null = null_space(space, order, counts)
        nullity = to_host(_nullity(null))
        units = space.noise_units(null.basis[:, 0, :])
        sigmas = _zero_test(xp, units, round_number)
        possible = _nearly_null(null, sigmas)
        zero_counts, same = _compare_rows(space, units, order, counts)
        next_counts = xp.sum(xp.astype(units < sigmas[:, None], xp.int64), axis=1)
        alive = to_host(possible & (next_counts >= xp.minimum(counts, xp.full_like(counts, needed))))
        settled = alive & (same | (nullity > 1) | (round_number == ROUNDS - 1))
        single = settled & (nullity == 1) & (zero_counts >= needed)
        if np.any(single):
            unique.append(_extended(space, null.only(space.device.integers(np.flatnonzero(single)))))
        several = np.flatnonzero(settled & (nullity > 1))
        if len(several):
            mixed += _whole_null_spaces(space, order, counts, null, several)
        failed += remaining[~alive | (settled & (nullity <= 1) & ~single)].tolist()
        going = np.flatnonzero(alive & ~settled)
        if not len(going):
            break
        remaining, left = remaining[going], space.device.integers(going)
        counts = xp.take(next_counts, left)
        order = _sorted_smallest(xp, xp.take(units, left, axis=0), int(xp.max(counts)))
    return _Snapped(xp.concat(unique, axis=0), mixed, np.asarray(sorted(failed), dtype=np.int64))


def _nullity(null: NullSpace) -> Array:
    """(k,) int: how many of the vectors are null: no row stands out, and together they stand out no more than in the best.

    A single row proves nothing below `ZERO_SIGMAS`, but many rows of some sigmas each do.
    """
    xp: Namespace = array_api_compat.array_namespace(null.energy)
    best = null.energy[:, :1]
    limit = between(xp, OPEN_ENERGY * best, OPEN_ENERGY, ZERO_SIGMAS**2)
    return xp.sum(xp.astype((null.energy < limit) & (best < ZERO_SIGMAS**2), xp.int64), axis=1)


def _zero_test(xp: Namespace, units: Array, round_number: int) -> Array:
    """(k,): noise units below which a product counts as zero in a round; `ZERO_SIGMAS` in the last ones.

    The first null vectors amplify noise: let them see rows that are only nearly zero, but where noise is large not so
    many that most are not.
    """
    typical = xp.sort(units, axis=1)[:, int(TYPICAL * units.shape[1])]
    if round_number >= len(WIDE_SIGMAS):
        return xp.full_like(typical, ZERO_SIGMAS)
    return between(xp, FEW_TO_BE_SEEN * typical, ZERO_SIGMAS, WIDE_SIGMAS[round_number])


def _nearly_null(null: NullSpace, sigmas: Array) -> Array:
    """(k,) bool: whether the first vector is null at `sigmas` (k,), but for few of the rows while that is a wide test.

    A row that is not zero but small may slip in among the first ones; what it adds to the energy is little
    against the energy of the next vector, and later rounds drop it.
    """
    first = null.energy[:, 0]
    within = first < sigmas**2
    if null.energy.shape[1] == 1:
        return within
    return within | ((sigmas > ZERO_SIGMAS) & (first < NEARLY_NULL * null.energy[:, 1]))


def _compare_rows(space: RowSpace, units: Array, order: Array, counts: Array) -> tuple[HostArray, HostArray]:
    """Zero counts (k,) of candidates, and whether the rows used for them are exactly their zero rows (k,)."""
    xp = space.xp
    zeros = units < ZERO_SIGMAS
    zero_counts = xp.sum(xp.astype(zeros, xp.int64), axis=1)
    unused = xp.arange(order.shape[1], device=space.device.handle)[None, :] >= counts[:, None]
    inside = xp.all(xp.take_along_axis(zeros, order, axis=1) | unused, axis=1)
    return to_host(zero_counts), to_host(inside & (zero_counts == counts))


def _first_rows(space: RowSpace, q: Array, width: int) -> tuple[Array, Array]:
    """The rows to start from: (order (k, r), counts (k,)).

    An exact candidate shows its zero rows by a wide gap in the sorted products; otherwise the `width` smallest.
    """
    xp = space.xp
    b, live = space.batch_size, space.U.shape[0]
    units = space.noise_units(q)
    width = min(live, width)
    order = _sorted_smallest(xp, units, live)
    ordered = xp.take_along_axis(units, order, axis=1)
    near = xp.sum(xp.astype(ordered < NEAR_ZERO, xp.int64), axis=1)
    # Among the nearly zero rows the widest gap, past the b - 1 that any direction can have.
    ratio = ordered[:, 1:] / xp.maximum(ordered[:, :-1], xp.ones_like(ordered[:, :-1]))
    place = xp.arange(1, live, device=space.device.handle)[None, :]
    possible = (place >= b - 1) & (place <= near[:, None])
    gaps = xp.where(possible, ratio, xp.zeros_like(ratio))
    counts = xp.where(xp.max(gaps, axis=1) > ROW_GAP, xp.argmax(gaps, axis=1) + 1, xp.full_like(near, width))
    # Fewer zeros than b - 1 mean a mixture to be resolved, if they stand apart as clearly.
    following = xp.take_along_axis(ordered, xp.minimum(near, xp.full_like(near, live - 1))[:, None], axis=1)[
        :, 0
    ]
    apart = (near < b - 1) & (near >= max(1, b // 2)) & (following > FEW_ZEROS_APART * NEAR_ZERO)
    counts = xp.where(apart, near, counts)
    return order[:, : int(xp.max(counts))], counts


def _sorted_smallest(xp: Namespace, values: Array, count: int) -> Array:
    """Indices (k, count) of the smallest entries of each row, in ascending order."""
    if count >= values.shape[1]:
        return xp.argsort(values, axis=1)
    picked = smallest(xp, values, count)
    inner = xp.argsort(xp.take_along_axis(values, picked, axis=1), axis=1)
    return xp.take_along_axis(picked, inner, axis=1)


def _whole_null_spaces(
    space: RowSpace, order: Array, counts: Array, null: NullSpace, which: HostArray
) -> list[Array]:
    """[(r, b)]: the null spaces of the candidates `which`, that `null` shows the first vectors of; `MAX_NULLITY` + 1 at most."""
    xp = space.xp
    index = space.device.integers(which)
    null, width = null.only(index), null.energy.shape[1]
    if width < space.batch_size and bool(xp.any(_open(null)[:, -1])):
        order, counts = xp.take(order, index, axis=0), xp.take(counts, index)
        null = null_space(space, order, counts, MAX_NULLITY + 1)
    dimensions = np.sum(to_host(_open(null)), axis=1)
    return [null.basis[row, :r, :] for row, r in enumerate(dimensions.tolist())]


def _open(null: NullSpace) -> Array:
    """(k, w) bool: which of the vectors no row stands out of the noise along."""
    return null.energy < ZERO_SIGMAS**2


def _resolve(space: RowSpace, null: Array, rng: np.random.Generator) -> Array:
    """Sparse directions (k, b) inside a null space (r, b): sampling once more, in r dimensions."""
    xp, device = space.xp, space.device
    r = null.shape[0]
    nothing = device.zeros((0, space.batch_size))
    if not 2 <= r <= MAX_NULLITY:
        return nothing
    null = null / xp.linalg.vector_norm(null / space.S, axis=1, keepdims=True)
    rows = space.U @ null.T
    length = xp.linalg.vector_norm(rows, axis=1)
    active = xp.nonzero(length > WELL_ABOVE_ZERO * ZERO_SIGMAS)[0]
    count = active.shape[0]
    if count < r:
        return nothing
    rows = xp.take(rows, active, axis=0) / xp.take(length, active)[:, None]
    subsets = (
        np.arange(count)[:, None] if r == 2 else draw_subsets(count, r - 1, DRAWS_PER_DIMENSION * r, rng)
    )
    vectors = null_vectors(xp, gather(xp, rows, device.integers(subsets)))
    vectors = xp.take(vectors, solved(xp, vectors), axis=0)
    q = vectors @ null
    units = xp.abs(q @ xp.take(space.U, active, axis=0).T) / space.noise_norm(q)[:, None]
    zeros = to_host(xp.sum(xp.astype(units < WELL_ABOVE_ZERO * ZERO_SIGMAS, xp.int64), axis=1))
    best = np.argsort(-zeros, kind="stable")
    best = best[zeros[best] >= r + 1]
    chosen = best[distinct(to_host(vectors)[best], SAME_VECTOR, 3 * r)]
    return xp.take(q, device.integers(chosen), axis=0)


def _extended(space: RowSpace, null: NullSpace, times: int = EXTENSIONS) -> Array:
    """The first directions (k, b) of `null` with every zero row that noise may have turned them away from.

    A direction may absorb a share of a much fainter input that its noise hides. Few rows contradict this, and they are off by
    no more than that noise explains; they are added if the others stay zero.
    """
    xp = space.xp
    q = null.basis[:, 0, :]
    zeros, counts, wide = _wide_zeros(space, null)
    more = xp.sum(xp.astype(wide, xp.int64), axis=1)
    growing = np.flatnonzero(to_host(more > counts))
    if not len(growing):
        return q
    index = space.device.integers(growing)
    zeros, wide, counts, more = (xp.take(values, index, axis=0) for values in (zeros, wide, counts, more))
    turned = null_space(space, _true_first(xp, wide, int(xp.max(more))), more).basis[:, 0, :]
    after = space.zeros(turned)
    grown = xp.all(after | ~zeros, axis=1) & (xp.sum(xp.astype(after, xp.int64), axis=1) > counts)
    kept = np.flatnonzero(to_host(grown))
    if not len(kept):
        return q
    after = xp.take(after, space.device.integers(kept), axis=0)
    counts = xp.sum(xp.astype(after, xp.int64), axis=1)
    again = null_space(space, _true_first(xp, after, int(xp.max(counts))), counts)
    sharper = _extended(space, again, times - 1) if times > 1 else again.basis[:, 0, :]
    return replace_rows(q, space.device.integers(growing[kept]), sharper)


def _wide_zeros(space: RowSpace, null: NullSpace) -> tuple[Array, Array, Array]:
    """Of the first direction of each of `null`: zero rows (k, ℓ), their number (k,), and those that it may have (k, ℓ)."""
    xp = space.xp
    units = space.noise_units(null.basis[:, 0, :])
    zeros = units < ZERO_SIGMAS
    counts = xp.sum(xp.astype(zeros, xp.int64), axis=1)
    # A share of another direction in this one has the variance 1 / (count · energy), and noise has the energy one.
    energy = xp.maximum(null.energy[:, 1:], xp.ones_like(null.energy[:, 1:]))
    others = energy * xp.astype(counts, xp.float64)[:, None]
    doubt = xp.sum((null.basis[:, 1:, :] @ space.U.T) ** 2 / others[:, :, None], axis=1)
    return zeros, counts, zeros | (units < ZERO_SIGMAS * xp.sqrt(1 + doubt))


def _true_first(xp: Namespace, mask: Array, count: int) -> Array:
    """Indices (k, count) of `mask` (k, ℓ) bool in each row, those where it is true first."""
    return xp.argsort(xp.astype(~mask, xp.int8), axis=1, stable=True)[:, :count]


def collect(space: RowSpace, q: Array) -> Directions:
    """Bring polished directions `q` (k, b) to the host, with what the pool needs of them."""
    xp = space.xp
    unit = q / xp.linalg.vector_norm(q, axis=1, keepdims=True) if q.shape[0] else q
    return Directions(to_host(unit), to_host(space.zeros(unit)), to_host(space.angle_noise(unit)))
