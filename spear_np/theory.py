"""What the published search costs and how likely it fails, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def hit_probability(m: int, b: int, off_share: float = 0.5) -> float:
    """Probability that b-1 distinct rows drawn uniformly from m are all zero in one given column of ∂L/∂Z.

    ``C(z, b-1) / C(m, b-1)`` with ``z = off_share · m`` zero rows, about ``off_share^(b-1)`` for b ≪ m.

    Parameters
    ----------
    m, b : int
        Output units and batch size.
    off_share : float
        Share of the units that an input leaves off.

    Returns
    -------
    float
        0 if fewer than b-1 rows are zero.
    """
    z = round(off_share * m)
    if z < b - 1:
        return 0.0
    log_p = math.lgamma(z + 1) - math.lgamma(z - b + 2) - math.lgamma(m + 1) + math.lgamma(m - b + 2)
    return float(math.exp(log_p))


def expected_submatrices(m: int, b: int, off_share: float = 0.5) -> float:
    """Expected number of uniformly drawn submatrices until each of the b columns was hit once.

    Independent hits at rate p each: the largest of b exponential waiting times, ``H_b / p`` with the harmonic
    number H_b (coupon collector in continuous time).

    Returns
    -------
    float
        Infinity if a column has too few zeros ever to be hit.
    """
    p = hit_probability(m, b, off_share)
    if p == 0:
        return math.inf
    return sum(1 / i for i in range(1, b + 1)) / p


def expected_submatrices_for(m: int, zero_counts: list[int]) -> float:
    """Expected number of submatrices when the zero counts of the b columns are known.

    ``∫ 1 - Π_i (1 - exp(-p_i t)) dt`` with p_i from `hit_probability`.
    """
    from scipy.integrate import quad  # slow to import, seldom needed

    b = len(zero_counts)
    rates = [hit_probability(m, b, z / m) for z in zero_counts]
    if min(rates) == 0:
        return math.inf
    slowest = min(rates)

    def missing(t: float) -> float:
        return 1 - math.prod(-math.expm1(-rate / slowest * t) for rate in rates)

    return float(quad(missing, 0, math.inf, limit=200)[0]) / slowest


def false_direction_probability(rows: int, redundancy: int, chance: float) -> float:
    """Upper bound on the probability that a direction of no input shows so much redundancy.

    Combinations of several inputs' directions can be made to annul only rows that are indispensable to the rank of
    their zero rows. To have `redundancy` rows to spare, as many others of the `rows` must agree by chance: union bound
    ``C(rows, redundancy) · chance^redundancy``.

    Parameters
    ----------
    rows : int
        Output units with a gradient.
    redundancy : int
        Zero rows that the direction could lose.
    chance : float
        Probability that a product which is not zero passes the zero test.
    """
    if redundancy <= 0 or chance >= 1:
        return 1.0
    if chance <= 0:
        return 0.0
    ways = math.lgamma(rows + 1) - math.lgamma(redundancy + 1) - math.lgamma(max(rows - redundancy, 0) + 1)
    return float(min(1.0, math.exp(min(0.0, ways + redundancy * math.log(chance)))))


def largest_chain_batch(widths: Sequence[int], last: int | None = None) -> int:
    """Largest batch that a chain decides by counting.

    With b inputs, membership in the layers behind the first gives ``Σ_l (m_l - b + 1)`` equations in b - 1 unknowns. Only as
    many layers count as make that number largest: one that is narrower than the batch says nothing.

    Parameters
    ----------
    widths : sequence of int
        m_l, output units of the layers, all but the last of the chain.
    last : int, optional
        Output units of the last layer: the gradient of a layer shows no more inputs than it has units.
    """
    shown = [*widths[1:], max(widths, default=0) if last is None else last]
    layers = sorted(zip(map(min, widths, shown), widths, strict=True), reverse=True)
    best = 0
    for depth in range(1, len(layers) + 1):
        used = layers[:depth]
        best = max(best, min(sum(width + 1 for _, width in used) // (depth + 1), min(used)[0]))
    return best


def false_member_probability(units: int, unknowns: int, spare: int, chance: float) -> float:
    """Upper bound on the probability that a point which is no input of a chain meets all of its equations.

    A point can be made to meet as many equations as it has unknowns. Where an activation has straight pieces there is one
    such point in each cell that the kinks of `units` units cut a space of `unknowns` dimensions into, at most
    ``Σ_{i <= unknowns} C(units, i)`` of them [1]_; smooth activations are counted alike. Each of the `spare` equations must
    then hold by chance: union bound ``cells · chance^spare``.

    Parameters
    ----------
    units : int
        Output units of the first layer.
    unknowns : int
        Coordinates of an input.
    spare : int
        Equations beyond them.
    chance : float
        Probability that an equation holds within its noise at a point that is no input.

    References
    ----------
    .. [1] T. M. Cover, "Geometrical and statistical properties of systems of linear inequalities with applications in
       pattern recognition", IEEE Transactions on Electronic Computers 14 (1965) 326-334.
    """
    if spare <= 0 or chance >= 1:
        return 1.0
    if chance <= 0:
        return 0.0
    counts = [
        math.lgamma(units + 1) - math.lgamma(i + 1) - math.lgamma(units - i + 1)
        for i in range(min(units, unknowns) + 1)
    ]
    largest = max(counts)
    cells = largest + math.log(sum(math.exp(count - largest) for count in counts))
    return math.exp(min(0.0, cells + spare * math.log(chance)))


def failure_probability(
    m: int, b: int, threshold: float, submatrices: float, off_share: float = 0.5
) -> float:
    """Upper bound on the probability that the published search misses a column.

    Union bound over the b columns. The zeros z of a column are binomial: it is filtered out if they are fewer than
    ``threshold · m``, and missed with probability ``(1 - p(z))^N`` otherwise, p from `hit_probability`.

    Parameters
    ----------
    threshold : float
        τ, the share of zeros a direction must have to be kept.
    submatrices : float
        N, the number of submatrices drawn.
    """
    from scipy.stats import binom  # slow to import, seldom needed

    zeros = np.arange(m + 1)
    share = binom.pmf(zeros, m, off_share)
    hits = np.minimum([hit_probability(m, b, z / m) for z in zeros], 1.0)
    missed = np.where(hits < 1, np.exp(submatrices * np.log1p(-np.minimum(hits, 0.5))), 0.0)
    exact = np.where(hits > 0.5, np.power(1 - hits, submatrices), missed)
    return min(1.0, b * float(np.sum(share * np.where(zeros < threshold * m, 1.0, exact))))
