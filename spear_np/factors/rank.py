"""How many inputs the singular values of weight_grad show: by rounding, by independent noise, by a gap.

Every function here sees nothing but numbers on the host: singular values, norms of rows, shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import HostArray
from ..backend.algebra import TINIEST

ROUNDING_LEVEL = 8.0
"""Noise up to this multiple of the unit roundoff is taken for accumulated rounding.

Heuristic: sums over a batch in float32 accumulate to a few roundoffs.
"""
WIDE_GAP = 5.0
"""Drop in the singular values that tells the rank whatever the noise is.

Heuristic: clear of `RANK_GAP`, and below what quantised, pruned and several-step updates show behind their rank.
"""
LEFT_OVER = 4
"""Fewest singular values that must remain below the rank for noise to be recognisable.

Heuristic: fewer pass for the spectrum of noise whatever they are.
"""
LEAST_NOISE = 0.5
"""The weakest non-zero row must hold at least this share of the norm that equal noise would give it.

Derived: the norm of n independent entries fluctuates by 1 / √(2n), far less than a half for any n that can be inverted.
"""
RANK_GAP = 3.0
"""Drop in the singular values that noise alone does not show; a rank without it is doubted.

Heuristic: neighbours in the bulk of a Gaussian spectrum differ by far less.
"""
MOST_OF_SPECTRUM = 0.75
"""Largest share of the singular values that may be signal where the noise is of unknown size.

Heuristic: a quarter of the spectrum must be left to tell the noise by.
"""
EDGE_ABOVE_NOISE = 1.1
"""Multiple of the expected edge up to which the first singular value below the rank is noise.

Derived: the largest one fluctuates about the edge by a relative n^(-2/3) (Tracy and Widom 1994), 2 % at n = 350.
"""
EDGE_BELOW_SIGNAL = 1.3
"""Multiple of the expected edge from which the last singular value above the rank is signal.

Heuristic: as far from the edge again as `EDGE_ABOVE_NOISE`, and clear of what an input that drowns would show.
"""
SPREAD_DOWN_TO = 0.1
"""Share of the largest singular value down to which a spectrum is held against that of a Gaussian matrix.

Derived: the few smallest of a nearly square matrix fluctuate by their own size.
"""
SPREAD_TOLERANCE = (0.25, 0.02)
"""Largest difference from it, relative to each singular value and to the largest one.

Heuristic: well above the fluctuation at some hundred rows; spectra that merely decay miss it by far.
"""
OWN_ERROR = 64 * float(np.finfo(np.float64).eps)
"""Error of a computed singular value, as a share of the largest.

Derived: divide and conquer (LAPACK's gesdd) drops parts of some tens of eps. Measured: of a float64 matrix of rank 200 the next value is 16
eps with OpenBLAS 0.3.34, 2 with 0.3.31, and passed for two inputs more.
"""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of the whitened weight_grad and what they say of the rank."""

    singular_values: tuple[float, ...]
    """All of them, in units of the noise model, largest first."""
    rank: int | None
    """Detected rank; None if the matrix has no rank gap (full rank)."""
    gap: float
    """Ratio of the last singular value above the noise to the first below it."""
    rounding: bool
    """Whether rounding alone explains the noise."""
    noise_known: bool = True
    """Whether what lies below the rank looks like rounding or independent noise; else the rank rests on a gap alone."""
    noise_excess: float = 1.0
    """How many times larger than independent noise allows the first singular value below the rank is, where the noise is
    of no known kind."""
    alternatives: int = 0
    """How many other readings of the singular values are left to try if this one leads nowhere."""
    rank_at_least: int = 0
    """Largest rank that this reading and that by rounding show."""
    spacing: float = 0.0
    """Distance of the smallest numbers of the precision, if their rounding shows in some row; in units of weight_grad."""
    rank_without_spacing: int | None = None
    """Rank that rounding to a share of each number alone would show, where that distance is counted too."""
    plausible: tuple[int, int] | None = None
    """Smallest and largest rank that the singular values allow; None without any."""


def plausible_ranks(*readings: Spectrum) -> tuple[int, int] | None:
    """Smallest and largest rank of some readings, less the singular values that noise might have lifted above it."""
    ranks = []
    for spectrum in readings:
        if spectrum.rank:
            below = [*spectrum.singular_values, 0.0][spectrum.rank]
            clear = sum(value > RANK_GAP * below for value in spectrum.singular_values[: spectrum.rank])
            ranks += [max(1, clear), spectrum.rank]
    return (min(ranks), max(ranks)) if ranks else None


def spectrum_at(values: HostArray, rank: int | None, *, rounding: bool) -> Spectrum:
    """Return the spectrum of the singular `values`, read as `rank`."""
    gap = 1.0
    if rank:
        below = float(values[rank]) if rank < len(values) else 0.0
        gap = float(values[rank - 1]) / below if below > 0 else math.inf
    return Spectrum(tuple(float(v) for v in values), rank, gap, rounding)


def rounding_rank(values: HostArray, m: int, n: int, used_features: int) -> int | None:
    """Rank of a matrix whose rows carry rounding errors of unit size, from its singular values.

    A random (m, n) matrix of unit entries has norm about √m + √n, but rounding errors are not random: equal
    columns (the background of images) are rounded alike, which adds up to √(m n) at worst. What exceeds both is
    signal. None: no rank gap.
    """
    own_error = OWN_ERROR * float(values[0])
    level = max(ROUNDING_LEVEL * (math.sqrt(m) + math.sqrt(n)), math.sqrt(m * n)) + own_error
    rank = int(np.sum(values[: min(m, len(values))] > level))
    return rank if rank < min(m, used_features) else None


def additive_rank(values: HostArray, m: int, n: int) -> int | None:
    """Rank of a matrix with equal, independent noise of unknown size in all entries; None if none is visible.

    The smallest b for which the remaining singular values look like noise alone: the first of them at the edge
    √(m-b) + √(n-b) of such a matrix (Marchenko and Pastur 1967), the last signal clearly above it, and all of
    them where those of a random matrix of that shape are. A spectrum that merely decays passes the first two.
    """
    size = min(m, n, len(values))
    most = max(0, min(int(MOST_OF_SPECTRUM * size), size - LEFT_OVER))
    ranks = np.arange(1, most + 1)
    # The sums of the squares from each value on.
    energy = np.cumsum(values[size - 1 :: -1] ** 2)[::-1][1 : most + 1]
    edge = _edge(energy, m - ranks, n - ranks)
    stands_out = (values[1 : most + 1] <= EDGE_ABOVE_NOISE * edge) & (
        values[:most] > EDGE_BELOW_SIGNAL * edge
    )
    for b in ranks[stands_out].tolist():
        if _looks_random(values[b:size], m - b, n - b):
            return int(b)
    return None


def gap_rank(values: HostArray, floor: float) -> int | None:
    """Rank of a matrix whose noise is of no known kind, from a single wide gap in its singular values; None without.

    Values below `floor` times the largest count as equal. Below the gap there must be none that noise does not show.

    Quantisation, weights after several steps, entries set to zero: what they leave is neither rounding of the entries
    nor independent, but still far below the last signal.
    """
    most = max(0, min(int(MOST_OF_SPECTRUM * len(values)), len(values) - LEFT_OVER))
    ratios = values[:most] / np.maximum(values[1 : most + 1], max(floor, TINIEST) * values[0])
    if not len(ratios):
        return None
    b = int(np.argmax(ratios))
    others = np.delete(ratios, b)
    single = np.all(others < ratios[b] / 2) and np.all(ratios[b + 1 :] < RANK_GAP)
    return b + 1 if ratios[b] > WIDE_GAP and single else None


def _looks_random(values: HostArray, m: int, n: int) -> bool:
    """Whether `values` are spread like the singular values of a Gaussian (m, n) matrix."""
    noise = np.random.default_rng(0).standard_normal((m, n))
    expected = np.linalg.svd(noise, compute_uv=False)
    expected *= np.linalg.norm(values) / np.linalg.norm(expected)
    large = expected > SPREAD_DOWN_TO * expected[0]
    limit = SPREAD_TOLERANCE[0] * expected + SPREAD_TOLERANCE[1] * expected[0]
    return bool(np.all((np.abs(values - expected) < limit)[large]))


def noise_edge(values: HostArray, rank: int, m: int, n: int) -> float:
    """Largest singular value expected of noise with the energy of ``values[rank:]``."""
    if (m - rank) * (n - rank) <= 0:
        return 0.0
    return float(_edge(np.sum(values[rank:] ** 2), m - rank, n - rank))


def _edge(energy: Any, m: Any, n: Any) -> Any:
    """Largest singular value expected of noise of so much `energy` in an (m, n) matrix; numbers or arrays."""
    return np.sqrt(energy / (m * n)) * (np.sqrt(m) + np.sqrt(n))


def in_all_rows(values: HostArray, rank: int, row_norm: HostArray, n: int) -> bool:
    """Whether the weakest row (m,) that is not zero holds what equal noise with the energy of ``values[rank:]`` gives it."""
    rows = row_norm[row_norm > 0]
    sigma = math.sqrt(float(np.sum(values[rank:] ** 2)) / max(1, (len(rows) - rank) * (n - rank)))
    return bool(np.min(rows) >= LEAST_NOISE * sigma * math.sqrt(n))


def excess_over_noise(values: HostArray, rank: int, m: int, n: int) -> float:
    """How many times larger ``values[rank]`` is than independent noise with the energy of those below it allows."""
    edge = noise_edge(values, rank + 1, m, n)
    return max(1.0, float(values[rank]) / edge) if edge > 0 else 1.0
