"""Candidates are moved to where the membership in the layers ahead holds best, and what is left open there.

Each of a stack of candidates comes to rest by itself: it ends where it would have ended alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import OWN_ROUNDING, inverse_or_zero, replace_rows, rows_of
from ..backend.host import to_host
from .covariance import (
    covariance_of,
    noise_along,
    rests_on_level,
    slopes_beside,
    wider,
    with_scale_doubt,
)
from .equations import (
    ROUNDING_SHARE,
    Forward,
    Linearised,
    System,
    forward,
    linearised,
    membership,
    membership_noise,
)
from .layers import Chain

LINEARISATIONS = 10
"""Linearisations after which an input that still moves is refused.

Heuristic: a settled start needs two or three; more only cost time.
"""
CHORD_STEPS = 4
"""Steps with the same linearisation: each costs no more than the residual.

Heuristic: they end earlier where they gain less than a new one would.
"""
SLOW = 0.3
"""Share of the step before from which another with the same linearisation is not worth it.

Heuristic: it decides how time is spent, not where a polish ends.
"""
AT_REST = 1e-3
"""Length of a step in standard deviations of the data, for each equation, after which the next one changes nothing.

Measured: actual noise is up to twenty times smaller than its upper estimate, and 0.05 left rows of b = 90 and 100 at m = 200
behind their bounds (benchmarks/chain.py).
"""
CONSISTENT = 3.0
"""Root mean square of the equations, in standard deviations, up to which they hold.

Derived: noise is an upper estimate, so that true inputs stay below one on average; three leaves room for rounding that is not
independent.
"""
LARGE_GRAM = 128
"""Coordinates from which normal equations are formed in float32.

Heuristic: from there on their products take most of the time; steps, whose residuals stay in float64, converge all the same.
"""


@dataclass(frozen=True)
class Known:
    """The duals of f inputs that were found, in the first layer of a chain of straight pieces."""

    duals: Array
    """(f, b)."""
    deviation: Array
    """(f,): see `Examined.dual_deviation`."""

    def spread(self, chain: Chain, c: Array) -> Array:
        """(k, f): standard deviation of ``p · c`` for the inputs at `c` (k, b), by the noise of both."""
        return chain.layers[0].spread(c)[:, None] * chain.xp.sqrt(self.weight(chain))[None, :]

    def weight(self, chain: Chain) -> Array:
        """(f,): variance of ``p · c`` for each ``|S_0⁻¹ c|²``."""
        return 2 * chain.xp.sum(self.duals**2, axis=1) + self.deviation**2


@dataclass(frozen=True)
class Polished:
    """k inputs at the end of a polish."""

    c: Array
    """(k, b)."""
    covariance: Array
    """(k, b, b) of the coordinates; zero where they are not determined."""
    residual: HostArray
    """(k,): root mean square of the membership equations, infinite where they have not come to rest."""
    along: HostArray
    """(k,): noise along the least certain direction, see `noise_along`; infinite where equations are not tested."""

    def row(self, number: int) -> Polished:
        """One of them."""
        one = slice(number, number + 1)
        return Polished(self.c[one, :], self.covariance[one, :, :], self.residual[one], self.along[one])


def polish(chain: Chain, c: Array, depth: int, known: Known | None = None) -> Polished:
    """Gauss-Newton on the membership up to layer `depth` from `c` (k, b), with s · c = 1 kept, and p · c = 0 for `known` inputs."""
    k, b = c.shape
    rest = rest_of(chain, c)
    moved: HostArray = np.full(k, math.inf)
    for _ in range(LINEARISATIONS):
        moving = np.flatnonzero(~(moved <= rest))  # true for NaN
        if not len(moving):
            break
        rows = chain.device.integers(moving)
        end, moved[moving] = _chords(chain, rows_of(c, rows), rest[moving], depth, known)
        c = replace_rows(c, rows, end)
    ahead = np.where(moved <= rest, membership_rms(chain, c, depth), math.inf)
    covariance, along = chain.device.zeros((k, b, b)), np.full(k, math.inf)
    holds = np.flatnonzero(ahead <= CONSISTENT)
    if len(holds):
        rows = chain.device.integers(holds)
        determined, along[holds] = _determined(chain, rows_of(c, rows), depth, known)
        covariance = replace_rows(covariance, rows, determined)
    return Polished(c, covariance, ahead, along)


def _chords(
    chain: Chain, c: Array, rest: HostArray, depth: int, known: Known | None
) -> tuple[Array, HostArray]:
    """Up to `CHORD_STEPS` steps of `c` (k, b) with one linearisation; returns where they lead and the length (k,) of each one's last.

    One that is at `rest` (k,), or that gains too little, waits for the others.
    """
    xp, ones = chain.xp, chain.layers[0].ones
    passed = forward(chain, c, depth - 1)
    linear = [
        linearised(chain, passed, number, rough=c.shape[1] >= LARGE_GRAM) for number in range(1, depth + 1)
    ]
    others = None if known is None else _orthogonal(chain, c, known)
    gram, weight = _normal(chain, linear, others)
    inverse = _inverse(xp, gram)
    going = np.ones(c.shape[0], dtype=np.bool_)
    moved: HostArray = np.full(c.shape[0], math.inf)
    length: HostArray | None = None
    for _ in range(CHORD_STEPS):
        right = weight[:, None] * (c @ ones - 1)[:, None] * ones[None, :]
        count = 0
        for number, one in enumerate(linear, start=1):
            residual = membership(chain, passed, number, derivatives=False).residual
            right, count = right + one.against(xp, residual), count + int(residual.shape[1])
        if others is not None and known is not None:
            residual = _orthogonal(chain, c, known).residual
            right = right + (residual[:, None, :] @ others.jacobian)[:, 0, :]
            count += int(residual.shape[1])
        step = (inverse @ right[:, :, None])[:, :, 0]
        taken = to_host(xp.sqrt(xp.abs(xp.sum(step * right, axis=1)) / count))
        if np.all(going):
            c, moved = c - step, taken
        else:
            c = xp.where(chain.device.booleans(going)[:, None], c - step, c)
            moved = np.where(going, taken, moved)
        going = going & ~(moved <= rest)
        if length is not None:
            going = going & ~(moved > SLOW * length)
        if not np.any(going):
            break
        length = moved
        passed = forward(chain, c, depth - 1, derivatives=False)
    return c, moved


def _determined(chain: Chain, c: Array, depth: int, known: Known | None) -> tuple[Array, HostArray]:
    """The covariance (k, b, b) of the coordinates at the end `c` of a polish, and the noise along them, as in `Polished`."""
    xp = chain.xp
    passed = forward(chain, c, depth - 1)
    linear = [linearised(chain, passed, number) for number in range(1, depth + 1)]
    covariance, gram = _covariance_ahead(chain, c, passed, linear, known)
    for slopes in slopes_beside(chain, passed, covariance):
        beside = forward(chain, c, depth - 1, slopes=slopes)
        other = [linearised(chain, beside, number) for number in range(1, depth + 1)]
        covariance = wider(covariance, _covariance_ahead(chain, c, beside, other, known)[0], c.shape[1])
    ahead = _joined(xp, [one.system(chain, passed, number) for number, one in enumerate(linear, start=1)])
    every = ahead if known is None else _joined(xp, [ahead, _orthogonal(chain, c, known)])
    inverse = covariance_of(gram, xp.zeros_like(gram))
    along = noise_along(chain, every, inverse, covariance)
    return with_scale_doubt(chain, c, covariance), np.where(
        rests_on_level(chain, passed, depth, ahead.jacobian, inverse), math.inf, along
    )


def _covariance_ahead(
    chain: Chain, c: Array, passed: Forward, linear: list[Linearised], known: Known | None
) -> tuple[Array, Array]:
    """(k, b, b) each: covariance of the coordinates `c` by the equations of a polish, with the slopes of `passed`, and JᵀJ."""
    others = None if known is None else _orthogonal(chain, c, known)
    gram = _normal(chain, linear, others)[0]
    noise = membership_noise(chain, passed, 1, linear[0])
    for number, one in enumerate(linear[1:], start=2):
        noise = noise + membership_noise(chain, passed, number, one)
    if known is not None:
        noise = noise + _orthogonal_noise(chain, c, known)
    return covariance_of(gram, noise), gram


def _joined(xp: Namespace, systems: Sequence[System]) -> System:
    """All equations of the `systems` as one."""
    return System(
        xp.concat([one.residual for one in systems], axis=1),
        xp.concat([one.jacobian for one in systems], axis=1),
        xp.concat([one.absorbed for one in systems]),
    )


def _normal(chain: Chain, linear: list[Linearised], others: System | None) -> tuple[Array, Array]:
    """The normal equations (k, b, b) of a polish, with `others` besides membership, and the weight (k,) of s · c = 1.

    The condition weighs as much as all other directions together: exact as far as it matters.
    """
    xp, ones = chain.xp, chain.layers[0].ones
    gram = linear[0].gram(xp)
    for one in linear[1:]:
        gram = gram + one.gram(xp)
    if others is not None:
        gram = gram + xp.matrix_transpose(others.jacobian) @ others.jacobian
    weight = xp.sum(xp.linalg.diagonal(gram), axis=1) / (ones @ ones)
    return gram + weight[:, None, None] * (ones[:, None] * ones[None, :])[None, :, :], weight


def rest_of(chain: Chain, c: Array) -> HostArray:
    """(k,): length of a step, as in `AT_REST`, from which the inputs at `c` (k, b) are at rest.

    Not less than our own rounding of a pass, which is about the noise where gradients are in float64.
    """
    first = chain.layers[0]
    entry = chain.xp.linalg.vector_norm(c, axis=1) / math.sqrt(first.space.shape[1])
    own: HostArray = ROUNDING_SHARE * OWN_ROUNDING * to_host(entry / first.spread(c))
    return np.maximum(AT_REST, own)


def _orthogonal(chain: Chain, c: Array, known: Known) -> System:
    """(k, f) equations: p · c = 0 for the duals of `known` inputs; noise enters through the coordinates and the duals alike."""
    deviation = known.spread(chain, c)
    jacobian = known.duals[None, :, :] / deviation[:, :, None]
    return System((c @ known.duals.T) / deviation, jacobian, chain.xp.zeros_like(known.deviation))


def _orthogonal_noise(chain: Chain, c: Array, known: Known) -> Array:
    """(k, b, b): what noise alone adds to JᵀJ of `_orthogonal`: the duals are as uncertain along any direction as along c."""
    first = chain.layers[0]
    weight = known.duals.shape[0] / first.spread(c) ** 2
    return weight[:, None, None] * (chain.device.eye(c.shape[1]) / first.space.S**2)[None, :, :]


def _inverse(xp: Namespace, gram: Array) -> Array:
    """(k, b, b): inverse of normal equations, on what they determine where that is not all: the rest stays where it is."""
    inverse = inverse_or_zero(xp, gram)
    partly = to_host(xp.all(inverse == 0, axis=(1, 2)) & xp.all(xp.isfinite(gram), axis=(1, 2)))
    if not np.any(partly):
        return inverse
    rounding = gram.shape[1] * OWN_ROUNDING
    rows = [
        xp.linalg.pinv(gram[row, :, :], rtol=rounding) if some else inverse[row, :, :]
        for row, some in enumerate(partly.tolist())
    ]
    return xp.stack(rows)


def membership_rms(chain: Chain, c: Array, depth: int) -> HostArray:
    """(k,): root mean square of the equations of membership of `c` (k, b) up to layer `depth`, in standard deviations."""
    passed = forward(chain, c, depth - 1, derivatives=False)
    parts = [membership(chain, passed, number, derivatives=False).residual for number in range(1, depth + 1)]
    return rms(to_host(chain.xp.concat(parts, axis=1)), c.shape[1])


def rms(residual: HostArray, unknowns: int) -> HostArray:
    """(k,): root mean square for each degree of freedom that `unknowns` leave of `residual` (k, e)."""
    left = max(residual.shape[1] - unknowns, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        result: HostArray = np.sqrt(np.sum(residual**2, axis=1) / left)
    return np.nan_to_num(result, nan=math.inf, posinf=math.inf)
