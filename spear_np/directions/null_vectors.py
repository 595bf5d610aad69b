"""Null vectors of submatrices, and what drawing and telling them apart takes: for every search and for the polish."""

from __future__ import annotations

import array_api_compat
import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import gather, solve_or_nan
from ..backend.devices import Device

SAME_VECTOR = 1 - 1e-9
"""Cosine from which two exact null vectors are the same.

Derived: an angle of 4e-5, a hundred times what float64 leaves of a null vector of condition 1e9.
"""
NEAREST_ROWS = 1.25
"""Rows, in shares of b, among which a candidate is expected to have hardly a foreign one.

Heuristic: more rows average more noise, but let more foreign rows in.
"""


def nearest_rows(b: int) -> int:
    """How many of the rows nearest to zero a candidate is first judged by."""
    return int(NEAREST_ROWS * b) + 2


def draw_subsets(total: int, size: int, count: int, rng: np.random.Generator) -> HostArray:
    """Draw `count` subsets (count, size) of the indices below `total`, all subsets alike.

    Floyd's algorithm (Bentley and Floyd, "A sample of brilliance", 1987), for all of them at once. Drawn on the host, so that every
    device sees the same subsets.
    """
    subsets = np.empty((count, size), dtype=np.int64)
    for place, last in enumerate(range(total - size, total)):
        picked = rng.integers(0, last + 1, count)
        repeated = np.any(subsets[:, :place] == picked[:, None], axis=1)
        subsets[:, place] = np.where(repeated, last, picked)
    return subsets


def null_vectors(xp: Namespace, submatrices: Array) -> Array:
    """Unit null vectors (k, r) of a stack of matrices (k, r-1, r), by one LU solve each; 0 where singular."""
    k, _, r = submatrices.shape
    last = xp.ones((k, 1), dtype=submatrices.dtype, device=array_api_compat.device(submatrices))
    if r == 1:
        return last
    if r == 2:
        vectors = xp.concat([-submatrices[:, 0, 1:], submatrices[:, 0, :1]], axis=1)
    else:
        solution = solve_or_nan(xp, submatrices[:, :, :-1], -submatrices[:, :, -1:])
        vectors = xp.concat([solution[:, :, 0], last], axis=1)
    length = xp.linalg.vector_norm(vectors, axis=1, keepdims=True)
    good = xp.isfinite(length) & (length > 0)
    return xp.where(good, vectors / xp.where(good, length, xp.ones_like(length)), xp.zeros_like(vectors))


def solved(xp: Namespace, vectors: Array) -> Array:
    """Indices of the `vectors` (k, r) of `null_vectors` that are there: unit vectors, not zero."""
    return xp.nonzero(xp.linalg.vector_norm(vectors, axis=1) > 0.5)[0]


def null_vectors_of_rows(device: Device, rows: Array, subsets: Array, rng: np.random.Generator) -> Array:
    """Unit null vectors (k, r) of the `rows` (ℓ, r) picked by `subsets` (k, r-1); 0 where these are dependent."""
    xp, r = device.xp, rows.shape[1]
    # No coordinate is special: turn at random, so that the last component of a null vector is never small.
    turn = xp.linalg.qr(device.normal(rng, (r, r))).Q
    return null_vectors(xp, gather(xp, rows @ turn, subsets)) @ turn.T


def distinct(vectors: HostArray, cosine: float, limit: int) -> HostArray:
    """Indices of the first of each group of parallel unit vectors (k, b), at most `limit`.

    Two are parallel if the cosine of the angle between their lines is above `cosine`.
    """
    chosen: list[int] = []
    taken = np.zeros(len(vectors), dtype=bool)
    for index in range(len(vectors)):
        if len(chosen) == limit:
            break
        if not taken[index]:
            chosen.append(index)
            taken |= np.abs(vectors @ vectors[index]) > cosine
    return np.asarray(chosen, dtype=np.int64)
