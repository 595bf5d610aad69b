"""Is there room for an input that leaves no trace of its own?

Let an input x be a combination ``Σ α_i x_i`` of others, ``Σ α_i = 1``, whose column d of ∂L/∂Z is zero wherever that of one of
them is. Then ``D Xᵀ`` and ``D 1`` are those of a batch without it, whose columns are ``d_i + α_i d``, with the same zeros: nothing
in the two gradients tells. Its pre-activations are the same combination of theirs. So it can only be where some α make
``Σ α_i z_ij ≤ 0`` for every unit j that not all of them turn on: between inputs with similar patterns, or on the line through
two of which one turns on all that the other does.

Whatever else it is made of, two of them are i and k, and it is off on every unit that not both turn on. By Farkas' lemma no
combination of the inputs of a group is, if and only if ``Σ_j y_j z_lj = 1`` for all l of the group, with some y ≥ 0 on these units. If
that holds for every pair of the group, no subset of it leaves room.
"""

from __future__ import annotations

import numpy as np

from ..arrays import HostArray

GROUP = 8
"""Inputs that a hidden one may be made of, as far as it is looked for: one and those with the patterns nearest to its own.

Heuristic: all of them must turn on whatever it turns on, which leaves less room the more they are, and the less alike.
"""
FARKAS_FIRST = 8
"""Units for each input of a group that Farkas' equations are tried with before all are.

Measured: 3.5 ms instead of 4.9 for a batch of 16 at 180 live units, 9 instead of 13 for 40 at 190, 30 instead of 63 for 100 at 390, 98 instead
of 320 for 200 at 990; 6 and 10 do as well, from 16 on little is saved (one thread, time of the processor).
"""
NO_COMBINATION = 1e-6
"""Residual of Farkas' equations, of which the right side is one, up to which they hold.

Derived: far above the rounding of float64, far below what equations without a solution leave.
"""


def room_for_hidden(z: HostArray) -> tuple[int, int] | None:
    """Return two inputs between which, and others like them, one may hide, by the pre-activations `z` (ℓ, k) of all on the live units.

    None if that is excluded for each input with the `GROUP` - 1 nearest to it: for all of them if they are no more.
    """
    on = z > 0
    signs = np.where(on, 1.0, -1.0)
    nearest = np.argsort(-(signs.T @ signs), axis=1, kind="stable")
    done = set()
    for i in range(z.shape[1]):
        group = np.append(i, nearest[i][nearest[i] != i][: GROUP - 1])
        everything = len(group) == z.shape[1]
        for k in map(int, group[1:]):
            pair = (min(i, k), max(i, k))
            if everything and pair in done:
                continue
            done.add(pair)
            if _has_room(z[~(on[:, i] & on[:, k])][:, group]):
                return pair
    return None


def _has_room(z: HostArray) -> bool:
    """Whether ``z α ≤ 0`` for some α that adds up to one; `z` (ℓ, t)."""
    few = FARKAS_FIRST * z.shape[1]
    return not _no_combination(z[:few]) and (len(z) <= few or not _no_combination(z))


def _no_combination(z: HostArray) -> bool:
    """Whether Farkas' equations show that no α that adds up to one makes ``z α ≤ 0``; `z` (ℓ, t)."""
    if not len(z):
        return False
    from scipy.optimize import nnls  # slow to import

    try:
        return float(nnls(z.T, np.ones(z.shape[1]))[1]) <= NO_COMBINATION
    except RuntimeError:  # it gave up, and excludes nothing
        return False
