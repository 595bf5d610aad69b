"""Units next to a kink: rounding may have put one on the other side of it than it is on here, and both sides are tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np

from ..arrays import Array, HostArray
from ..backend.algebra import replace_rows
from ..backend.host import to_host
from .covariance import AT_KINK, variance_of
from .equations import Forward, forward
from .layers import Chain
from .polish import CONSISTENT, Known, Polished, polish

MOST_AT_KINKS = 4
"""Units at kinks for which both sides are tried, in all combinations.

Heuristic: more than two were never seen in one input; combinations double with each.
"""


def across_kinks(chain: Chain, end: Polished, depth: int, known: Known | None) -> Polished:
    """The best of each polished input that holds and of those polished from the other side of the kinks next to it.

    Gauss-Newton may rest on the wrong side of a kink that is no further than the noise: the right side fits better.
    """
    xp, first = chain.xp, chain.layers[0]
    holds = end.residual <= CONSISTENT
    if not first.sigma.kinks or not np.any(holds):
        return end
    z = to_host(end.c @ first.to_units.T)
    deviation = np.sqrt(np.abs(to_host(variance_of(first.to_units, end.covariance))))
    told = to_host(xp.any(end.covariance != 0, axis=(1, 2)))
    better: dict[int, Polished] = {}
    for row in np.flatnonzero(holds & told).tolist():
        one = end.row(row)
        best = one
        for move in _moves(chain, one, z[row], deviation[row]):
            other = polish(chain, one.c + move[None, :], depth, known)
            if other.residual[0] < best.residual[0]:
                best = other
        if best is not one:
            better[row] = best
    return _replaced(chain, end, better) if better else end


def _moves(chain: Chain, one: Polished, z: HostArray, deviation: HostArray) -> Iterator[Array]:
    """Yield changes (b,) of one input, each of which takes a unit as far beyond its kink as it is before it.

    `z` (m,) are its pre-activations, and `deviation` (m,) theirs.
    """
    first = chain.layers[0]
    towards: Array | None = None
    for kink in first.sigma.kinks:
        distance = np.abs(z - kink) / np.maximum(deviation, np.finfo(np.float64).tiny)
        for unit in np.argsort(distance)[:MOST_AT_KINKS].tolist():
            if distance[unit] > AT_KINK:
                break
            # The least change, for this covariance, that does it.
            towards = first.to_units @ one.covariance[0, :, :] if towards is None else towards
            yield towards[unit, :] * float(2 * (kink - z[unit]) / deviation[unit] ** 2)


def _replaced(chain: Chain, end: Polished, better: dict[int, Polished]) -> Polished:
    """`end` with others in the places that are the keys of `better`."""
    xp, places = chain.xp, sorted(better)
    rows = chain.device.integers(places)
    ends = [better[place] for place in places]
    residual, along = end.residual.copy(), end.along.copy()
    residual[places] = [one.residual[0] for one in ends]
    along[places] = [one.along[0] for one in ends]
    return Polished(
        replace_rows(end.c, rows, xp.concat([one.c for one in ends], axis=0)),
        replace_rows(end.covariance, rows, xp.concat([one.covariance for one in ends], axis=0)),
        residual,
        along,
    )


def other_slopes(chain: Chain, c: Array, passed: Forward) -> Iterator[Forward]:
    """Yield the pass of one input with the slopes of units next to a kink taken from its other side.

    Every choice for the `MOST_AT_KINKS` units that are nearest to a kink, in units of the doubt of their pre-activations.
    """
    near: list[tuple[float, int, int, float]] = []
    doubts = forward(chain, c, len(passed.z) - 1, derivatives=False).doubt
    for number, z in enumerate(passed.z):
        host, doubt = to_host(z)[0], np.sqrt(to_host(doubts[number])[0])
        for kink in chain.layers[number].sigma.kinks:
            distance = np.abs(host - kink) / np.maximum(doubt, np.finfo(np.float64).tiny)
            near += [
                (float(distance[unit]), number, int(unit), 2 * kink - float(host[unit]))
                for unit in np.flatnonzero(distance < AT_KINK)
            ]
    near.sort()
    chosen = near[:MOST_AT_KINKS]
    for count in range(1, len(chosen) + 1):
        for some in combinations(chosen, count):
            slopes = [to_host(slope).copy() for slope in passed.slope]
            for _, number, unit, mirrored in some:
                slopes[number][0, unit] = _slope_at(chain, number, unit, mirrored)
            yield replace(passed, slope=tuple(chain.device.float64(slope) for slope in slopes))


def _slope_at(chain: Chain, number: int, unit: int, z: float) -> float:
    """The slope of one unit of a layer at the pre-activation `z`."""
    units = chain.layers[number].units
    everywhere = chain.device.float64(np.full((1, units), z))
    return float(to_host(chain.layers[number].sigma.value_and_slope(everywhere)[1])[0, unit])
