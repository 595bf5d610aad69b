"""The candidates: no duplicates, zero counts, and the greedy choice of b independent directions.

Bookkeeping on a few hundred short vectors, done on the host with NumPy whatever the device of the search; only candidates by the
thousand are compared with the basis where they are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import array_api_compat
import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import least_squares
from ..backend.devices import CPU, Device
from ..backend.host import to_host

SMALL_BATCH = 24
"""Batch size up to which a round can afford to try everything: second tries in the polish, all pairs, a turn of sampling.

Heuristic: pairs grow with the square of the batch and submatrices exponentially; larger batches try what is suspicious.
"""
KEEP_PER_DIRECTION = 4
"""Candidates kept beside the basis, per direction wanted.

Heuristic: more only cost time; the second stage looks at few.
"""
KEEP_AT_LEAST = 64
"""Candidates kept beside the basis, whatever its size.

Heuristic: as `KEEP_PER_DIRECTION`.
"""
SURE_FIT = 0.97
"""Share of the units from which the fit of a pattern counts it as one that an input can produce.

Measured: true patterns of fresh networks are fitted to .98 and more, half of the sums of two directions to .83 to .89
(`python -m benchmarks.thresholds --fits`).
"""
MUCH_NEWS = 0.2
"""Share of the missing directions from which a round lowers the effort of the next.

Heuristic: a batch is then whole within a few rounds.
"""
LITTLE_NEWS = 0.05
"""Share of the missing directions below which a round raises the effort of the next.

Heuristic: at less than one in twenty a longer descent pays.
"""
SINGLE_ROW_PENALTY = 0.5
"""What it costs a direction to rest on a single row, in shares of the rows.

Heuristic: more than inputs usually differ in their zeros.
"""
FEASIBLE_BONUS = 0.5
"""Ranking bonus for a direction whose on/off pattern some input can produce.

Heuristic: more than the zeros of faint gradients that noise hides, usually less than half of the rows.
"""
MOSTLY = 0.5
"""Share of the directions whose zeros the layer must leave unexplained before they are put down to another cause.

Heuristic: the majority; a few are a matter of faint gradients.
"""
PENALTY = 0.05
"""What one failed check costs, in shares of the rows.

Heuristic: a few failures outweigh the usual difference in zeros.
"""
SIFTED = 16
"""Vectors that are held against a basis together.

Heuristic: a few products instead of one for each, and few of them in vain; it changes no answer.
"""
SAME_POSITION = 1 - 1e-12
"""Cosine from which a direction of the basis is the one that it was.

Derived: rounding of float64, by some margin.
"""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Polished directions with what the layer says of them, on the host; fields as in `Pool`."""

    q: HostArray
    zero_mask: HostArray
    angle: HostArray
    pattern_fit: HostArray
    coordinates: HostArray
    rests_on_one_row: HostArray


COLUMNS = (*(field.name for field in fields(Candidates)), "penalty")
"""What a pool knows of each candidate."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Distinct polished directions and the sparsest independent choice among them.

    Shapes: p candidates, b coordinates, ℓ live output units.
    """

    q: HostArray
    """(p, b) float64 unit vectors in U-coordinates."""
    zero_mask: HostArray
    """(p, ℓ) bool: live units without gradient in this direction."""
    angle: HostArray
    """(p,) radians: how far noise may have turned the direction; closer ones are the same."""
    penalty: HostArray
    """(p,) int: how often a failed check blamed this direction."""
    pattern_fit: HostArray
    """(p,): share of the live units on which some input of the layer produces the pattern; 1 if unknown."""
    coordinates: HostArray
    """(p, b): estimated coordinates in V of the input behind the direction; zeros if unknown."""
    rests_on_one_row: HostArray
    """(p,) bool: whether the direction rests on a single row, as combinations of several inputs' directions do."""
    stale: int = 0
    """Rounds in a row that did not change the basis."""
    effort: int = 0
    """Grows with every round that finds little of what is missing, falls with every one that finds much."""
    basis: tuple[int, ...] = ()
    """Indices of the greedy choice, best first."""

    @classmethod
    def empty(cls, batch_size: int, live: int) -> Pool:
        """Return a pool without candidates."""
        return cls(
            q=np.empty((0, batch_size)),
            zero_mask=np.empty((0, live), dtype=bool),
            angle=np.empty(0),
            penalty=np.empty(0, dtype=np.int64),
            pattern_fit=np.empty(0),
            coordinates=np.empty((0, batch_size)),
            rests_on_one_row=np.empty(0, dtype=bool),
        )

    @property
    def zero_count(self) -> HostArray:
        """(p,) int."""
        counts: HostArray = np.sum(self.zero_mask, axis=1)
        return counts

    @property
    def basis_vectors(self) -> HostArray:
        """(f, b): the greedy choice itself."""
        vectors: HostArray = self.q[list(self.basis)]
        return vectors

    def fresh_positions(self, before: HostArray) -> HostArray:
        """Positions in the basis of directions that are not among `before` (f', b)."""
        vectors = self.basis_vectors
        if not len(before) or not len(vectors):
            return np.arange(len(vectors))
        return np.flatnonzero(np.max(np.abs(vectors @ before.T), axis=1) < SAME_POSITION)

    @property
    def complete(self) -> bool:
        """Whether the basis has as many directions as the batch has inputs."""
        return len(self.basis) == int(self.q.shape[1])

    def merge(self, found: Candidates) -> Pool:
        """Add polished directions; a sharper copy replaces what is known already."""
        known, total = len(self.q), len(self.q) + len(found.q)
        if not total:
            return self
        unit = found.q / np.linalg.norm(found.q, axis=1, keepdims=True)
        added = {**vars(found), "q": unit, "penalty": np.zeros(len(unit), dtype=self.penalty.dtype)}
        grown: dict[str, Any] = {name: np.concatenate([getattr(self, name), added[name]]) for name in COLUMNS}
        every = replace(self, **grown)
        zeros, kept = every.zero_count, list(range(known))
        for index in range(known, total):
            match = _same_direction(every.q[index], every.angle[index], every.q[kept])
            if match is None:
                kept.append(index)
            elif zeros[index] > zeros[kept[match]]:
                kept[match] = index
        return every._taken(np.asarray(kept))._rebuilt()

    def after_round(self, *, news: int) -> Pool:
        """Count rounds without news; `news` is the number of directions that came into the basis."""
        missing = self.q.shape[1] - len(self.basis) + news
        effort = self.effort
        if news >= MUCH_NEWS * missing:
            effort = max(0, effort - 1)
        elif news < LITTLE_NEWS * missing:
            effort += 1
        return replace(self, stale=0 if news else self.stale + 1, effort=effort)

    def redundant(self, q: Array, zero_count: Array, device: Device = CPU) -> HostArray:
        """(k,) bool: which candidates `q` (k, b), with so many zeros (k,), could not change the basis; both are on `device`."""
        chosen = self.trusted
        basis, counts = device.float64(self.q[chosen]), device.integers(self.zero_count[chosen])
        return to_host(covered(q, zero_count, basis, counts, self.angle[chosen]))

    @property
    def pattern_feasible(self) -> HostArray:
        """(p,) bool: directions that nothing of their own speaks against: not the layer, no lone row."""
        feasible: HostArray = (self.pattern_fit >= SURE_FIT) & ~self.rests_on_one_row
        return feasible

    @property
    def unexplained(self) -> float:
        """Share of the basis that rests on no single row, though the layer cannot produce its patterns; 0 up to `MOSTLY`.

        Mixtures rest on single rows: these zeros have another reason than the layer, such as dropout. A few such
        directions are a matter of faint gradients.
        """
        chosen = list(self.basis)
        strange = (self.pattern_fit[chosen] < SURE_FIT) & ~self.rests_on_one_row[chosen]
        share = float(np.mean(strange)) if chosen else 0.0
        return share if share > MOSTLY else 0.0

    @property
    def trusted(self) -> list[int]:
        """Members of the basis that nothing speaks against, no failed check of a whole choice either."""
        return [i for i in self.basis if self.pattern_feasible[i] and not self.penalty[i]]

    @property
    def trusted_without_signs(self) -> list[int]:
        """Members of the basis that stand on their zeros, whatever the layer says: no lone row, no failed check."""
        return [i for i in self.basis if not self.rests_on_one_row[i] and not self.penalty[i]]

    def with_basis(self, basis: tuple[int, ...]) -> Pool:
        """Return the same candidates with another choice of basis."""
        return replace(self, basis=basis)

    def blame(self, indices: list[int]) -> Pool:
        """Rank the candidates `indices` lower from now on: a check of a whole choice failed on them."""
        penalty = self.penalty.copy()
        penalty[indices] += 1
        return replace(self, penalty=penalty)._rebuilt()

    def without(self, forgotten: HostArray) -> Pool:
        """Forget the candidates where `forgotten` (p,) bool, and all blame."""
        pool = self._taken(np.flatnonzero(~forgotten))
        return replace(pool, penalty=np.zeros_like(pool.penalty))._rebuilt()

    def _taken(self, kept: HostArray) -> Pool:
        """Only the candidates `kept`, without a basis."""
        taken: dict[str, Any] = {name: getattr(self, name)[kept] for name in COLUMNS}
        return replace(self, basis=(), **taken)

    def _rebuilt(self) -> Pool:
        """Choose the basis anew and forget the least sparse candidates beyond the number kept."""
        # Zeros and agreement with the layer weigh alike; above `SURE_FIT` a pattern counts as possible.
        fit = np.where(self.pattern_fit >= SURE_FIT, 1.0 + FEASIBLE_BONUS, self.pattern_fit)
        merit = (
            self.zero_count / self.zero_mask.shape[1]
            + fit
            - PENALTY * self.penalty
            - SINGLE_ROW_PENALTY * self.rests_on_one_row
        )
        order = np.argsort(-merit, kind="stable")
        basis = greedy_basis(self.q[order], self.angle[order])
        chosen = [int(order[i]) for i in basis]
        limit = KEEP_PER_DIRECTION * self.q.shape[1] + KEEP_AT_LEAST
        others = [int(i) for i in order if int(i) not in set(chosen)][:limit]
        kept = np.asarray(chosen + others, dtype=np.int64)
        return replace(self._taken(kept), basis=tuple(range(len(chosen))))


def greedy_basis(vectors: HostArray, angle: HostArray) -> list[int]:
    """Indices of the first independent vectors, in order (the matroid greedy).

    `vectors` (p, b) unit vectors, best first; one counts as dependent if what is left of it, outside the span of
    those chosen before, is within its `angle` (p,) noise.
    """
    p, b = vectors.shape
    span = np.zeros((b, b))
    chosen: list[int] = []
    for first in range(0, p, SIFTED):
        # Many depend on what was known before them: these are told at once.
        sifted = np.linalg.norm(_rest(vectors[first : first + SIFTED], span[: len(chosen)]), axis=1)
        for index in (first + np.flatnonzero(sifted > angle[first : first + SIFTED])).tolist():
            rest = _rest(vectors[index], span[: len(chosen)])
            length = np.linalg.norm(rest)
            if length > angle[index]:
                span[len(chosen)] = rest / length
                chosen.append(index)
                if len(chosen) == b:
                    return chosen
    return chosen


def _rest(vectors: HostArray, known: HostArray) -> HostArray:
    """What is left of `vectors` (..., b) outside the span of the orthonormal rows of `known` (f, b)."""
    rest = vectors - (vectors @ known.T) @ known
    # Once more: the first pass loses digits for nearly dependent vectors.
    again: HostArray = rest - (rest @ known.T) @ known
    return again


def covered(q: Array, zero_count: Array, basis: Array, basis_count: Array, angle: HostArray) -> Array:
    """(k,) bool: which of `q` (k, b) repeat or combine `basis` (f, b) without being sparser.

    A combination of basis directions with no more zeros (`zero_count` (k,)) than the densest of those it
    combines (`basis_count` (f,)) loses to them in the greedy choice, whatever else is found.
    """
    xp: Namespace = array_api_compat.array_namespace(q)
    if not basis.shape[0] or not q.shape[0]:
        return xp.zeros_like(zero_count, dtype=xp.bool)
    unit = q / xp.linalg.vector_norm(q, axis=1, keepdims=True)
    coefficients = least_squares(xp, basis.T, unit.T).T
    tolerance = float(np.max(angle))
    inside = xp.linalg.vector_norm(unit - coefficients @ basis, axis=1) <= tolerance
    involved = xp.abs(coefficients) > tolerance
    counts = xp.broadcast_to(basis_count[None, :], involved.shape)
    densest = xp.min(xp.where(involved, counts, xp.full_like(counts, np.iinfo(np.int64).max)), axis=1)
    repeats = xp.sum(xp.astype(involved, xp.int64), axis=1) == 1
    return inside & (repeats | (zero_count <= densest))


def _same_direction(unit: HostArray, angle: float, known: HostArray) -> int | None:
    """Index of the known direction (p, b) within `angle` of `unit` (b,), if any: the one definition of "the same"."""
    if not len(known):
        return None
    cosine = known @ unit
    nearest = int(np.argmax(np.abs(cosine)))
    # The sine from the difference, not from 1 - cos²: angles of 1e-6 drown in the rounding of the cosine.
    distance = np.linalg.norm(unit - np.sign(cosine[nearest]) * known[nearest])
    return nearest if distance <= angle else None
