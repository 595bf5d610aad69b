"""Which of several vectors is the gradient of the bias: the one that lies in what weight_grad spans.

∂L/∂W = D Xᵀ and ∂L/∂b = D 1, so the gradient of the bias is a sum of columns of D, and these span the columns of
∂L/∂W if it has the rank of the batch. The gradient of a normalisation's vector has no reason to lie there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from ..files.storage import Floats, row_blocks
from .source import NamedArray

DIRECTIONS = 256
"""Most directions that are told apart in a gradient: batches beyond are left undecided."""

LARGEST_SKETCH = 3 * 10**7
"""Numbers of the largest matrix that is decomposed for this, 240 MB."""

GAP = 10.0
"""Least factor between the smallest singular value of the batch and the largest of the noise, for a rank to be read."""

INSIDE, OUTSIDE = 0.1, 0.5
"""Shares of what a vector of random direction would have outside: below the first it lies inside, above the second not.

A gradient whose rank shows has noise of a tenth of it at most.
"""

LEAST_ROOM = 0.1
"""What a vector of random direction must have outside, as a share of its length, for anything to be told."""


class Lies(Enum):
    """Where a vector lies."""

    INSIDE = "inside"
    OUTSIDE = "outside"
    UNDECIDED = "undecided"


def lie(gradient: NamedArray, vectors: Sequence[NamedArray]) -> list[Lies]:
    """Return for each vector whether it lies in the span of the gradient (m, n) of a weight, stored either way.

    Parameters
    ----------
    gradient : (m, n) or (n, m) array
        ∂L/∂W.
    vectors : sequence of arrays
        Of length m or n each.
    """
    lengths = {vector.shape for vector in vectors}
    sides = [matrix for matrix in (gradient, gradient.T) if matrix.shape[:1] in lengths]
    spans = [(matrix.shape[:1], _span(matrix)) for matrix in sides]
    found = []
    for vector in vectors:
        answers = {_lies(vector, span) for length, span in spans if vector.shape == length}
        inside = Lies.INSIDE in answers
        found.append(Lies.INSIDE if inside else answers.pop() if len(answers) == 1 else Lies.UNDECIDED)
    return found


@dataclass(frozen=True)
class _Span:
    """What the columns of a matrix span."""

    basis: Floats
    """(m, r) orthonormal columns."""
    alive: int
    """Rows of the matrix that are not zero: units that are off for the whole batch have none."""


def _span(matrix: NamedArray) -> _Span | None:
    """Return what the columns of a matrix (m, n) span, by a random sketch of them; None if it shows no rank."""
    m, n = matrix.shape
    width = min(m, n, DIRECTIONS, LARGEST_SKETCH // m)
    if width < 1:
        return None
    directions = np.random.default_rng(0).standard_normal((n, width))
    sketch = np.empty((m, width))
    used = np.zeros(n, np.bool_)
    with np.errstate(all="ignore"):
        for rows in row_blocks((m, n)):
            block = matrix[rows].astype(np.float64)
            sketch[rows] = block @ directions
            used |= (block != 0).any(axis=0)
    if not np.isfinite(sketch).all():
        return None  # named when the dump is written
    alive = (sketch != 0).any(axis=1)
    # Without rows and columns of zeros, what is left of the singular values behind the batch is noise.
    left, sizes, _ = np.linalg.svd(sketch[alive], full_matrices=False)
    sizes = sizes[: min(len(sizes), int(used.sum()))]
    if len(sizes) < 3:
        return None
    floor = sizes[0] * np.finfo(np.float64).eps
    # The last drop: those before may be of the batch. The smallest value of all is small by chance.
    drops = np.flatnonzero(sizes[:-2] >= GAP * np.maximum(sizes[1:-1], floor))
    if len(drops) == 0:
        return None
    rank = int(drops[-1]) + 1
    basis = np.zeros((m, rank))
    basis[alive] = left[:, :rank]
    return _Span(basis, int(alive.sum()))


def _lies(vector: NamedArray, span: _Span | None) -> Lies:
    if span is None:
        return Lies.UNDECIDED
    numbers = vector[:].astype(np.float64)
    length, room = np.linalg.norm(numbers), np.sqrt(1 - span.basis.shape[1] / span.alive)
    if not (np.isfinite(length) and length > 0 and room >= LEAST_ROOM):
        return Lies.UNDECIDED
    outside = np.linalg.norm(numbers - span.basis @ (span.basis.T @ numbers)) / (length * room)
    return Lies.INSIDE if outside < INSIDE else Lies.OUTSIDE if outside > OUTSIDE else Lies.UNDECIDED
