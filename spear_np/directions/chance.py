"""How probable it is that a direction of no input has its zeros by chance."""

from __future__ import annotations

import numpy as np

from ..arrays import Array, HostArray
from ..backend.host import to_host
from ..factors.row_space import RowSpace
from ..factors.zero import ZERO_SIGMAS, expected_hidden, is_nonzero
from ..theory import false_direction_probability
from .uniqueness import Uniqueness, sharpened

MAX_CHANCE = 1e-2
"""Largest probability that a direction of no input has its zeros to spare by chance.

Definition: what is relied on without other evidence may be wrong in one of a hundred cases, by an upper bound.
"""
NORMAL_DENSITY = 0.538
"""Probability that a normal number is below a small one, in units of the median of its magnitude.

Derived: √(2/π) · 0.6745 for the density of |u| at zero, with |u| of median μ and 0.6745 σ = μ.
"""


def chances(
    space: RowSpace,
    directions: Array,
    off: Array,
    unique: Uniqueness,
    limit: float,
    *,
    doubtful: HostArray | None = None,
) -> tuple[Uniqueness, HostArray]:
    """`unique` of `directions` (k, b) and the probabilities (k,) that they are of no input.

    The rows to spare of those that are `doubtful` (k,) bool, or all, and more probable than `limit` are counted sharply.
    """
    false = false_probabilities(space, directions, unique.redundancy)
    again = (false > limit) & (unique.redundancy >= 1)
    again &= True if doubtful is None else doubtful
    if np.any(again):
        unique = sharpened(space, directions, off, unique, np.flatnonzero(again))
        false = false_probabilities(space, directions, unique.redundancy)
    return unique, false


def false_probabilities(space: RowSpace, directions: Array, redundancy: HostArray) -> HostArray:
    """(k,): bound on the probability that `directions` (k, b) of no input have such `redundancy` (k,) by chance.

    Chance is the density of the non-zero entries of a column near zero, times the width of the zero test: from their
    median, where they are spread like a normal distribution; from those just above the test, where these are more.
    """
    probabilities = []
    for units, rows in zip(to_host(space.noise_units(directions)), redundancy, strict=True):
        values = units[is_nonzero(units)]
        near = expected_hidden(units) / max(len(values), 1)
        chance = max(NORMAL_DENSITY * ZERO_SIGMAS / float(np.median(values)), near) if len(values) else 1.0
        probabilities.append(false_direction_probability(len(units), int(rows), chance))
    return np.asarray(probabilities)
