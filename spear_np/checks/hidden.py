"""Is there room for an input that leaves no trace of its own?

Let an input x be a combination ``Σ α_i x_i`` of others, ``Σ α_i = 1``, whose column d of ∂L/∂Z is zero wherever that of one of
them is. Then ``D Xᵀ`` and ``D 1`` are those of a batch without it, whose columns are ``d_i + α_i d``, with the same zeros: nothing
in the two gradients tells. Its pre-activations are the same combination of theirs. So it can only be where some α make
``Σ α_i z_ij ≤ 0`` for every unit j that not all of them turn on: between two inputs with similar patterns, or on the line through
two of which one turns on all that the other does.

For two inputs the α form an interval, whose ends follow from each unit. For more, by Farkas' lemma, there are none if and only if
``Σ_j y_j z_ij = 1`` for all i with some y ≥ 0.
"""

from __future__ import annotations

import numpy as np

from ..backend import HostArray

MOST_PAIRS_WORK = 20_000_000
"""Pre-activations that are looked at for all pairs together: then only the pairs with the most similar patterns.

Heuristic: a tenth of a second; between inputs that differ in many units there is no room.
"""
LARGEST_GROUP = 8
"""Inputs between which a further one is looked for, the others being those with the patterns nearest to that of the first.

Heuristic: all of them must turn on whatever it turns on, which the less leaves room for the more they are.
"""
NO_COMBINATION = 1e-6
"""Residual of Farkas' equations, of which the right side is one, up to which they hold.

Derived: far above the rounding of float64, far below what equations without a solution leave.
"""


def room_for_hidden(z: HostArray) -> tuple[int, ...] | None:
    """Return inputs between which one may hide, by the pre-activations `z` (ℓ, k) of all on the live units; None if none may.

    All pairs are looked at, as far as `MOST_PAIRS_WORK` allows, and each input with its two to seven neighbours.
    """
    units, k = z.shape
    on = z > 0
    differing = _differing_units(on)
    neighbours = np.argsort(differing, axis=1, kind="stable")
    most = min(k - 1, max(LARGEST_GROUP, MOST_PAIRS_WORK // max(1, units * k)))
    for i in range(k):
        others = neighbours[i][neighbours[i] != i][:most]
        between = _pairs_with_room(z, on, i, others)
        if np.any(between):
            return i, int(others[np.argmax(between)])
    for size in range(3, min(LARGEST_GROUP, k) + 1):
        for i in range(k):
            group = np.append(i, neighbours[i][neighbours[i] != i][: size - 1])
            if _group_has_room(z[:, group]):
                return tuple(int(one) for one in group)
    return None


def _differing_units(on: HostArray) -> HostArray:
    """(k, k): units in which the patterns `on` (ℓ, k) bool differ."""
    signs = np.where(on, 1.0, -1.0)
    return np.asarray((len(on) - signs.T @ signs) / 2)


def _pairs_with_room(z: HostArray, on: HostArray, i: int, others: HostArray) -> HostArray:
    """(p,) bool: whether ``z_i + t (z_k - z_i) ≤ 0`` for some t on all units that i and k do not both turn on."""
    start, slope = z[:, [i]], z[:, others] - z[:, [i]]
    bound = ~(on[:, [i]] & on[:, others])
    with np.errstate(divide="ignore", invalid="ignore"):
        end = -start / slope
    high = np.min(np.where(bound & (slope > 0), end, np.inf), axis=0, initial=np.inf)
    low = np.max(np.where(bound & (slope < 0), end, -np.inf), axis=0, initial=-np.inf)
    return np.asarray(low < high)


def _group_has_room(z: HostArray) -> bool:
    """Whether ``z α ≤ 0`` for some α that adds up to one, on all units that not all inputs of the group `z` (ℓ, t) turn on."""
    rows = z[~np.all(z > 0, axis=1)]
    if not len(rows):
        return True
    from scipy.optimize import nnls  # slow to import

    return float(nnls(rows.T, np.ones(rows.shape[1]))[1]) > NO_COMBINATION
