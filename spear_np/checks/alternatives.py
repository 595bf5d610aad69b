"""Other batches that the zeros allow where single rows hold directions in place, and whether signs refute every one.

Zero rows of a direction of which none is indispensable make it a column of ∂L/∂Z, but for chance. Where one is, the
direction may mix several columns so that they cancel on that row. What then is the batch? Let D = D* A, X* = A X be the
columns and inputs found (D, X) and true (D*, X*), and p a true direction that is not among those found:

- It takes part in some found directions F, all of them doubtful, and its column is zero wherever one of F is by rows that
  could be spared.
- Its input is ``Σ_F A x``, and ``Σ A = 1`` because both batches add up to bias_grad: a point between, or beyond, the inputs
  found for F.
- Its column is zero on every unit that this point leaves off.

So each set F leaves a small space of directions, and each cell of one pattern, of those into which the layer cuts the flat
through the inputs of F, leaves less of it: nothing, a direction that was found, or an alternative. A single doubtful
direction has none: all others being certain, so is its input, and the units that it leaves off determine it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..arrays import HostArray
from ..backend.host import to_host
from ..directions.uniqueness import Uniqueness, indispensable_rows
from ..factors.factorize import Factors
from ..factors.layer import Layer
from ..factors.zero import ZERO_SIGMAS
from ..inputs.bounds import preactivation_doubt
from ..inputs.reconstruct import Reconstruction

MOST_SETS = 300
"""Sets of doubtful directions up to which alternatives are written down.

Heuristic: it bounds the time to a second or so; with more, single rows hold most of the batch.
"""
ON_THE_EDGE = 1e-6
"""Relative growth of the doubt of a pre-activation, so that where it equals its doubt the unit is not taken for off.

Derived: far above the rounding of float64, far below what makes a doubt.
"""


@dataclass(frozen=True, eq=False)
class _Found:
    """What was found, on the host: ℓ live rows, k = b directions, p = b inputs."""

    rows: HostArray
    """(ℓ, b): rows of U S, in noise units for directions of unit length."""
    directions: HostArray
    """(k, b): y = q / S."""
    zeros: HostArray
    """(k, ℓ) bool: rows without gradient."""
    inputs: HostArray
    """(p, b): their coordinates, dual to `directions`."""

    def left(self, mask: HostArray) -> tuple[int, HostArray] | None:
        """Which found direction has no gradient on the rows of `mask` (ℓ,) and is the only one, -1 if there is none.

        And (p,) the variance of the shares of the inputs in it, for these rows. None where a further direction has none
        there, or where these rows leave it unbounded.
        """
        known = np.flatnonzero(~np.any(mask[None, :] & ~self.zeros, axis=1))
        if len(known) > 1:
            return None
        rows, axes = self.rows[mask], np.eye(self.rows.shape[1])
        if len(known):
            axes = np.linalg.qr(self.directions[known].T, mode="complete")[0][:, 1:]
        if len(rows) < axes.shape[1]:
            return None
        values, right = np.linalg.svd(rows @ axes, full_matrices=False)[1:]
        # Its mean square then exceeds the zero test, so on some row it stands out.
        if values[-1] <= ZERO_SIGMAS * math.sqrt(len(rows)):
            return None
        if not len(known):
            return -1, np.zeros(len(self.inputs))
        shares = (self.inputs @ axes @ right.T) / values
        direction = int(known[0])
        variance = np.sum(shares**2, axis=1) * float(np.sum(self.directions[direction] ** 2))
        return direction, variance

    def matters(self, mask: HostArray) -> HostArray:
        """(ℓ,) bool: rows on which directions that have no gradient on those of `mask` (ℓ,) can have one."""
        values, right = np.linalg.svd(self.rows[mask], full_matrices=True)[1:]
        held = int(np.sum(values > ZERO_SIGMAS * math.sqrt(max(1, int(np.sum(mask))))))
        seen: HostArray = np.linalg.norm(self.rows @ right[held:].T, axis=1) > ZERO_SIGMAS
        return seen


@dataclass(frozen=True, eq=False)
class _Flats:
    """The layer on the flats through found inputs: k inputs, ℓ live rows."""

    layer: Layer
    z: HostArray
    """(ℓ, k): pre-activations of the inputs."""
    doubt: HostArray
    """(ℓ, k): how far they may be off."""

    def off_between(self, one: int, other: int, rows: HostArray) -> HostArray:
        """(c, ℓ) bool: which of the `rows` (ℓ,) bool are surely off, on every border of a cell of the line through two inputs.

        A point of it is ``(1 - t)`` of one and ``t`` of the other, and so is what its pre-activations may be off. The unit that
        changes there does not count as off: in both cells beside a border all that is off on it is off.
        """
        z, doubt = self.z[rows][:, [one, other]], self.doubt[rows][:, [one, other]]
        ends = [0.0] if math.isinf(self.layer.ceiling) else [0.0, self.layer.ceiling]
        borders = [np.asarray([0.0, 1.0])]
        for signs in ((1, -1), (1, 1), (-1, 1)):  # of the shares before, between and behind the two
            for end, side in zip(ends, (1, -1), strict=False):
                values = z - end + side * doubt * np.asarray(signs)
                slope = values[:, 1] - values[:, 0]
                borders.append(-values[slope != 0, 0] / slope[slope != 0])
        at = np.unique(np.concatenate(borders))
        shares = np.stack([1 - at, at], axis=1)
        off = np.zeros((len(at), len(rows)), dtype=bool)
        off[:, rows] = self.layer.states(shares @ z.T, (1 + ON_THE_EDGE) * (np.abs(shares) @ doubt.T))[1]
        return off


def refuted(
    factors: Factors,
    batch: Reconstruction,
    off: HostArray,
    unique: Uniqueness,
    tolerance: float,
) -> HostArray | None:
    """`Uniqueness.mixing` (k, k) if the layer refutes every other batch that the zero rows allow; None if one is left.

    Parameters
    ----------
    off : (m, k) bool
        Zero rows of each direction: without gradient, and surely off.
    tolerance : float
        Largest error of an input with which they are. The answer holds if the bounds that follow from it are no larger.
    """
    space, layer, xp = factors.space, factors.layer, factors.space.xp
    if layer is None or batch.preactivation is None or len(unique.unique) == 1 or not np.all(unique.unique):
        return None
    off = off[to_host(space.live)].T
    doubtful = np.flatnonzero(unique.redundancy < 1)
    q = xp.take(batch.directions, space.device.integers(doubtful), axis=0)
    spared = off.copy()
    spared[doubtful] &= ~indispensable_rows(space, q, space.device.booleans(off[doubtful]))
    found = _Found(
        rows=to_host(space.U * space.S),
        directions=to_host(batch.directions / space.S),
        zeros=to_host(space.zeros(batch.directions)),
        inputs=to_host(batch.input_coords),
    )
    doubt = preactivation_doubt(space, layer, batch, np.full(len(off), tolerance))
    z = to_host(space.live_of(batch.preactivation))
    flats = _Flats(layer, z, to_host(space.live_of(doubt)))
    mixing = unique.mixing.copy()
    mixing[:, doubtful] = 0.0
    for rows in _zeros_of_alternatives(found, flats, off, spared, doubtful):
        left = None if rows is None else found.left(rows)
        if left is None:
            return None
        direction, variance = left
        if direction >= 0:
            mixing[:, direction] = np.maximum(mixing[:, direction], variance)
    return mixing


def _zeros_of_alternatives(
    found: _Found, flats: _Flats, off: HostArray, spared: HostArray, doubtful: HostArray
) -> Iterator[HostArray | None]:
    """Rows (ℓ,) bool on which the direction of an alternative can have no gradient, for every set F and every cell.

    `off` (k, ℓ) bool are the zero rows of the directions, `spared` (k, ℓ) those that could be missing, for each direction of
    the `doubtful`. None where there are too many to be written down.
    """
    yield from off[doubtful]
    sets: list[tuple[int, ...]] = [(int(index),) for index in doubtful]
    tried = 0
    while len(sets) > 1:
        members = set(sets)
        wider = [
            (*one, other)
            for one in sets
            for other in doubtful.tolist()
            if other > one[-1] and all(part in members for part in combinations((*one, other), len(one)))
        ]
        tried += len(wider)
        if tried > MOST_SETS:
            yield None
        sets = []
        for together in wider:
            common = np.any(spared[list(together)], axis=0)
            if found.left(common) is not None:
                yield common
                continue
            if len(together) > 2:
                yield None  # cells of a plane and more are too many
            cells = flats.off_between(together[0], together[1], found.matters(common))
            yield from common | _fewest(cells)
            sets.append(together)


def _fewest(masks: HostArray) -> HostArray:
    """Those of `masks` (k, ℓ) bool that hold no other: what they leave, the others leave at most."""
    masks = np.unique(masks, axis=0)
    masks = masks[np.argsort(masks.sum(axis=1), kind="stable")]
    kept: list[HostArray] = []
    for mask in masks:
        if not any(np.all(mask | ~smaller) for smaller in kept):
            kept.append(mask)
    return np.asarray(kept)
