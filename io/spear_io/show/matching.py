"""Which recovered input is which true one: the pairs whose squared distances have the smallest sum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..files.storage import Floats, Rows, column_blocks
from ..problems import FileError
from .normalisation import Normalisation

FAR = 1e300
"""Squared distance of inputs that cannot be compared."""
TABLE_ENTRIES = 2**23
"""Distances that are looked at together (64 MiB): of more, one block of recovered inputs after the other."""
LARGEST_TABLE = 2**27
"""Most entries of a table of all distances (1 GiB), which is needed only where two recovered inputs are nearest to the same true one."""


@dataclass(frozen=True)
class Pair:
    """A recovered input and the true one that it was matched to."""

    row: int
    truth: int
    scale: float
    """What the recovered one was multiplied by."""


@dataclass(frozen=True, eq=False)
class _Block:
    """Distances of some recovered inputs from all true ones."""

    rows: slice
    distances: Floats
    """(r, d), squared; `FAR` where numbers overflow."""
    scales: Floats | None
    """(r, d), or None where the scale is known."""


def matched(inputs: Rows, truth: Rows, distinct: Sequence[int], *, scale_known: bool) -> list[Pair]:
    """Return pairs of `inputs` (k, n) with the rows `distinct` of `truth` (b, n), as many as there can be.

    Where every input has a true one of its own nearest to it, these pairs have the smallest sum, and nothing else is looked at. Else
    the assignment problem is solved, with the table of all distances.

    Raises
    ------
    FileError
        If that table would be too large.
    """
    nearest, scales = [], []
    for block in _blocks(inputs, truth, distinct, scale_known=scale_known):
        best = np.argmin(block.distances, axis=1)
        nearest.append(best)
        scales.append(_picked(block.scales, np.arange(len(best)), best))
    partners, factors = np.concatenate(nearest), np.concatenate(scales)
    rows = np.arange(len(partners))
    if len(np.unique(partners)) < len(partners):
        rows, partners, factors = _assigned(inputs, truth, distinct, scale_known=scale_known)
    found = zip(rows.tolist(), partners.tolist(), factors.tolist(), strict=True)
    return [Pair(row, distinct[partner], scale) for row, partner, scale in found]


def squared_distances(inputs: Rows, truth: Rows, *, scale_known: bool) -> Floats:
    """(k,): squared distance of every input from the nearest true one, or of its best multiple."""
    blocks = _blocks(inputs, truth, range(truth.shape[0]), scale_known=scale_known)
    return np.concatenate([np.min(block.distances, axis=1) for block in blocks])


def pair_blocks(
    inputs: Rows, truth: Rows, rows: slice = slice(None)
) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yield columns, and what some rows of `inputs` and all of `truth` have there, as float64."""
    count = len(range(*rows.indices(inputs.shape[0])))
    for columns in column_blocks((count + truth.shape[0], truth.shape[1])):
        yield columns, inputs[rows, columns].astype(np.float64), truth[:, columns].astype(np.float64)


@dataclass(frozen=True)
class Errors:
    """How far a recovered input is from the true one, times its scale."""

    largest: float
    """Of any feature, in the units of the data where normalisation can be undone."""
    largest_input: float
    """The same in the units of the layer's inputs."""
    mean_square: float
    """Over the features, in the units of `largest`."""


def errors_of(inputs: Rows, truth: Rows, pairs: Sequence[Pair], pixels: Normalisation | None) -> list[Errors]:
    """Return the errors of each of the `pairs`; `pixels` undoes normalisation."""
    if not pairs:
        return []
    rows = np.asarray([pair.row for pair in pairs])
    partners = np.asarray([pair.truth for pair in pairs])
    scales = np.asarray([pair.scale for pair in pairs])
    largest = np.zeros(len(rows))
    largest_input = np.zeros(len(rows))
    square = np.zeros(len(rows))
    for columns, x, t in pair_blocks(inputs, truth):
        raw = np.abs(scales[:, None] * x[rows] - t[partners])
        error = raw if pixels is None else raw * pixels.std_of(columns)
        largest = np.maximum(largest, error.max(axis=1))
        largest_input = np.maximum(largest_input, raw.max(axis=1))
        square += np.einsum("ij,ij->i", error, error)
    mean_square = square / inputs.shape[1]
    figures = zip(largest.tolist(), largest_input.tolist(), mean_square.tolist(), strict=True)
    return [Errors(*one) for one in figures]


def psnr(mean_square: float, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB, infinite without an error."""
    return math.inf if mean_square == 0 else 20 * math.log10(data_range) - 10 * math.log10(mean_square)


def _assigned(
    inputs: Rows, truth: Rows, distinct: Sequence[int], *, scale_known: bool
) -> tuple[Floats, Floats, Floats]:
    """Rows, places among the `distinct` true ones, and scales."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    k, d = inputs.shape[0], len(distinct)
    if k * d > LARGEST_TABLE:
        msg = f"{k} recovered and {d} true inputs are too many to match"
        raise FileError(msg, truth.place)
    distances = np.empty((k, d))
    scales = None if scale_known else np.empty((k, d))
    for block in _blocks(inputs, truth, distinct, scale_known=scale_known):
        distances[block.rows] = block.distances
        if scales is not None:
            scales[block.rows] = block.scales
    rows, partners = linear_sum_assignment(distances)
    return rows, partners, _picked(scales, rows, partners)


def _picked(scales: Floats | None, rows: Floats, partners: Floats) -> Floats:
    """(k,): the scales of pairs."""
    return np.ones(len(rows)) if scales is None else scales[rows, partners]


def _blocks(inputs: Rows, truth: Rows, distinct: Sequence[int], *, scale_known: bool) -> Iterator[_Block]:
    """Yield squared distances from the `distinct` true inputs, and what to scale each recovered one by.

    Where the scale is known it is 1. Else it is the best one, xᵀt / xᵀx, of either sign, and the distance is what it leaves,
    tᵀt - (xᵀt)² / xᵀx.
    """
    k, d = inputs.shape[0], len(distinct)
    step = max(1, TABLE_ENTRIES // max(1, d))
    every = d == truth.shape[0]
    for start in range(0, k, step):
        rows = slice(start, min(start + step, k))
        xx: Any = 0.0
        tt: Any = 0.0
        xt = np.zeros((rows.stop - rows.start, d))
        for _, x, t in pair_blocks(inputs, truth, rows):
            t = t if every else t[distinct]
            # Without a common offset the difference of large sums keeps its digits.
            center = t.mean(axis=0) if scale_known else 0.0
            x, t = x - center, t - center
            xx = xx + np.einsum("ij,ij->i", x, x)[:, None]
            tt = tt + np.einsum("ij,ij->i", t, t)[None, :]
            xt += x @ t.T
        scales = None if scale_known else xt / np.where(xx > 0, xx, 1)
        if scales is None:
            xt *= -2
            xt += xx
            xt += tt
        else:
            xt *= scales
            np.subtract(tt, xt, out=xt)
        # Numbers that overflow when they are squared are far away.
        distances = np.nan_to_num(np.maximum(xt, 0, out=xt), copy=False, nan=FAR, posinf=FAR)
        yield _Block(rows, distances, scales)
