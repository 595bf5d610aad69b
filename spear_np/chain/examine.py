"""Is a candidate an input? Polished in the full problem, held against every equation at the noise of the data.

Deflated problems only make starts. What is accepted here rests on the gradients themselves, not on what was found before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import OWN_ROUNDING, inverse_or_zero, solve_or_nan
from ..backend.host import to_host
from .covariance import (
    AT_KINK,
    covariance_of,
    input_deviation,
    noise_along,
    rests_on_level,
    slopes_beside,
    variance_of,
    wider,
    with_scale_doubt,
)
from .equations import (
    ROUNDING_SHARE,
    Forward,
    Linearised,
    System,
    backward_map,
    backward_side,
    columns_of,
    dual_deviation,
    forward,
    linearised,
    membership,
    membership_noise,
    null_vectors,
    system,
    system_noise,
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
MOST_AT_KINKS = 4
"""Units at kinks for which both sides are tried, in all combinations.

Heuristic: more than two were never seen in one input; combinations double with each.
"""
APART = 10.0
"""How many times worse than the best column of ∂L/∂Z the second best must fit for there to be only one.

Heuristic: a hundred and more for true inputs, one to five for others, in all batches of benchmarks/chain.py that were looked at.
"""
LARGE_GRAM = 128
"""Coordinates from which normal equations are formed in float32.

Heuristic: from there on their products take most of the time; steps, whose residuals stay in float64, converge all the same.
"""


@dataclass(frozen=True)
class Examined:
    """k candidates after the polish; arrays on the device, figures on the host."""

    c: Array
    """(k, b)."""
    q: Array
    """(k, t): the numbers of ∂L/∂Z at the top of the chain."""
    deviation: HostArray
    """(k,): standard deviation of the least certain entry of each input, for noise of the size that the data is taken to
    have; infinite where the equations do not determine it."""
    output_grad: Array
    """(k, m): their columns of ∂L/∂Z in the first layer."""
    duals: tuple[Array, ...]
    """(k, b) for each of the layers 0 … K: what the coordinates of all other inputs are orthogonal to."""
    forward_residual: HostArray
    """(k,): root mean square of the membership equations, in standard deviations."""
    backward_residual: HostArray
    """(k,): the same of the backward side."""
    apart: HostArray
    """(k,): residual of the second best column of ∂L/∂Z over that of the best."""
    dual_deviation: Array
    """(k,): standard deviation of ``p · c`` for another input, by the doubt of this one's ∂L/∂Z, for each ``|S_0⁻¹ c|``; of
    layers of straight pieces."""
    along: HostArray
    """(k,): noise along the least certain direction, see `noise_along`."""
    refined: bool = False
    """Whether the backward side took part in the fit."""
    by_duals: bool = False
    """Whether the duals of other inputs did: what they say of an input rests on weight_grad of the first layer alone."""

    @property
    def noise_seen(self) -> HostArray:
        """(k,): root mean square of the equations that took part in the fit, the worse of both sides."""
        return (
            np.maximum(self.forward_residual, self.backward_residual)
            if self.refined
            else self.forward_residual
        )

    @property
    def accepted(self) -> HostArray:
        """(k,) bool: whether every equation holds and no other column would do."""
        holds: HostArray = (
            (self.forward_residual <= CONSISTENT)
            & (self.backward_residual <= CONSISTENT)
            & (self.apart >= APART)
        )
        return holds


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


def known_of(chain: Chain, found: Sequence[Examined]) -> Known | None:
    """The duals of the inputs `found`, one each; None without any."""
    if not found:
        return None
    return Known(
        chain.xp.concat([one.duals[0] for one in found], axis=0),
        chain.xp.concat([one.dual_deviation for one in found], axis=0),
    )


def examine(chain: Chain, c: Array, depth: int, known: Known | None = None) -> Examined:
    """Polish the candidates `c` (k, b) on the membership up to layer `depth`, and judge them by all equations.

    With the duals of `known` inputs, they are held orthogonal to these: what an input needs that
    turns on fewer units than it has coordinates.
    """
    end = polish(chain, c, depth, known)
    if end.c.shape[0] == 1 and end.residual[0] <= CONSISTENT:
        end = _across_kinks(chain, end, depth, known)
    c, covariance, ahead = end.c, end.covariance, end.residual
    passed = forward(chain, c, len(chain.layers) - 2, derivatives=False, noisy=depth)
    doubt = variance_of(chain.layers[0].to_units, covariance)
    side = _best_side(chain, c, passed, doubt)
    if c.shape[0] == 1 and ahead[0] <= CONSISTENT and side.residual[0] > CONSISTENT:
        # Rounding may have put a unit on the other side of its kink than it is on here.
        for other in _other_slopes(chain, c, passed):
            if side.residual[0] <= CONSISTENT:
                break
            side = min(side, _best_side(chain, c, other, doubt), key=lambda one: float(one.residual[0]))
    return Examined(
        c=c,
        q=side.q,
        deviation=input_deviation(chain, c, covariance),
        output_grad=side.columns[0],
        duals=_duals(chain, side.columns),
        dual_deviation=_dual_deviation(chain, passed, side.q, side.columns, side.through),
        forward_residual=ahead,
        backward_residual=side.residual,
        apart=side.apart,
        along=end.along,
        by_duals=known is not None,
    )


@dataclass(frozen=True)
class _Side:
    """The backward side of k inputs at its best."""

    q: Array
    columns: list[Array]
    residual: HostArray
    apart: HostArray
    through: Array
    """The `backward_map` of the pass."""


def _best_side(chain: Chain, c: Array, passed: Forward, doubt: Array) -> _Side:
    """The column of ∂L/∂Z that fits the gradient of the first layer best, scaled to p · c = 1."""
    xp = chain.xp
    through = backward_map(chain, passed)
    q, best, second = null_vectors(chain, through)
    columns = columns_of(chain, passed, q)
    own = xp.sum(chain.layers[0].dual(columns[0]) * c, axis=1)
    own = xp.where(own != 0, own, xp.ones_like(own))[:, None]
    q, columns = q / own, [column / own for column in columns]
    residual = to_host(backward_side(chain, c, q, passed, columns=columns, doubt=doubt).residual)
    apart = to_host(second) / np.maximum(to_host(best), np.finfo(np.float64).tiny)
    return _Side(q, columns, _rms(residual, c.shape[1] + q.shape[1]), apart, through)


def _duals(chain: Chain, columns: list[Array]) -> tuple[Array, ...]:
    """The duals of the layers that show all inputs."""
    count = min(len(columns), chain.depth + 1)
    return tuple(chain.layers[number].dual(columns[number]) for number in range(count))


def _dual_deviation(chain: Chain, passed: Forward, q: Array, columns: list[Array], through: Array) -> Array:
    """(k,): see `Examined`; infinite where slopes bend."""
    if chain.straight:
        return dual_deviation(chain, passed, q, columns, through)
    return chain.xp.full_like(q[:, 0], math.inf)


def _other_slopes(chain: Chain, c: Array, passed: Forward) -> Iterator[Forward]:
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


def reexamine(chain: Chain, seen: Examined, depth: int) -> Examined:
    """Refine candidates that the forward equations bear out on all of them, and judge them by these.

    What the forward side alone leaves open of an input bends its ∂L/∂Z: for nearly linear activations more than can be
    allowed for.
    """
    better = refine(chain, seen.c, seen.q, depth)
    passed = forward(chain, better.c, len(chain.layers) - 2, derivatives=False, noisy=0)
    columns = columns_of(chain, passed, better.q)
    residual = to_host(better.residual)
    size = chain.layers[0].space.shape[0] + 1
    b, t = better.c.shape[1], better.q.shape[1]
    return Examined(
        c=better.c,
        q=better.q,
        deviation=better.deviation,
        output_grad=columns[0],
        duals=_duals(chain, columns),
        dual_deviation=_dual_deviation(chain, passed, better.q, columns, backward_map(chain, passed)),
        forward_residual=np.where(better.converged, _rms(residual[:, :-size], b), math.inf),
        backward_residual=_rms(residual[:, -size:], b + t),
        apart=seen.apart,
        along=better.along,
        refined=True,
    )


def _rms(residual: HostArray, unknowns: int) -> HostArray:
    """(k,): root mean square for each degree of freedom that `unknowns` leave of `residual` (k, e)."""
    left = max(residual.shape[1] - unknowns, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        result: HostArray = np.sqrt(np.sum(residual**2, axis=1) / left)
    return np.nan_to_num(result, nan=math.inf, posinf=math.inf)


def _across_kinks(chain: Chain, end: Polished, depth: int, known: Known | None) -> Polished:
    """The best of one polished input and of those polished from the other side of the kinks next to it.

    Gauss-Newton may rest on the wrong side of a kink that is no further than the noise: the right side fits better.
    """
    xp, first = chain.xp, chain.layers[0]
    if not first.sigma.kinks or not bool(xp.any(end.covariance != 0)):
        return end
    best = end
    z = to_host(end.c @ first.to_units.T)[0]
    towards = first.to_units @ end.covariance[0, :, :]
    deviation = np.sqrt(np.abs(to_host(xp.sum(towards * first.to_units, axis=1))))
    for kink in first.sigma.kinks:
        distance = np.abs(z - kink) / np.maximum(deviation, np.finfo(np.float64).tiny)
        for unit in np.argsort(distance)[:MOST_AT_KINKS].tolist():
            if distance[unit] > AT_KINK:
                break
            # The least change, for this covariance, that takes the unit as far beyond the kink as it is before it.
            move = towards[unit, :] * float(2 * (kink - z[unit]) / deviation[unit] ** 2)
            other = polish(chain, end.c + move[None, :], depth, known)
            if other.residual[0] < best.residual[0]:
                best = other
    return best


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
    return _rms(to_host(chain.xp.concat(parts, axis=1)), c.shape[1])


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


def polish(chain: Chain, c: Array, depth: int, known: Known | None = None) -> Polished:
    """Gauss-Newton on the membership up to layer `depth` from `c` (k, b), with s · c = 1 kept, and p · c = 0 for `known` inputs."""
    xp, ones = chain.xp, chain.layers[0].ones
    b = c.shape[1]
    rest = _rest(chain, c)
    moved: HostArray = np.full(c.shape[0], math.inf)
    for _ in range(LINEARISATIONS):
        passed = forward(chain, c, depth - 1)
        linear = [linearised(chain, passed, number, rough=b >= LARGE_GRAM) for number in range(1, depth + 1)]
        others = None if known is None else _orthogonal(chain, c, known)
        gram, weight = _normal(chain, linear, others)
        inverse = _inverse(xp, gram)
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
            c = c - step
            moved = to_host(xp.sqrt(xp.abs(xp.sum(step * right, axis=1)) / count))
            if np.all(moved <= rest) or (length is not None and np.any(moved > SLOW * length)):
                break
            length = moved
            passed = forward(chain, c, depth - 1, derivatives=False)
        if np.all(moved <= rest):
            break
    ahead = np.where(moved <= rest, membership_rms(chain, c, depth), math.inf)
    if not np.any(ahead <= CONSISTENT):
        return Polished(c, xp.zeros_like(inverse), ahead, np.full(len(ahead), math.inf))
    covariance, along = _determined(chain, c, depth, known)
    return Polished(c, covariance, ahead, along)


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


def _rest(chain: Chain, c: Array) -> HostArray:
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


@dataclass(frozen=True)
class Refined:
    """k inputs after least squares on all of their equations."""

    c: Array
    """(k, b)."""
    q: Array
    """(k, t)."""
    residual: Array
    """(k, e)."""
    deviation: HostArray
    """(k,): standard deviation of the least certain entry of each input."""
    converged: HostArray
    """(k,) bool: whether the last step was lost in the noise."""
    along: HostArray
    """(k,): noise along the least certain direction, see `noise_along`."""


def refine(chain: Chain, c: Array, q: Array, depth: int) -> Refined:
    """Gauss-Newton on all equations, forward and backward, from `c` (k, b) and `q` (k, t)."""
    xp, b = chain.xp, c.shape[1]
    space = chain.layers[0].space
    # Columns of ∂L/∂Z are rounded too, in units of the noise to this share of a row of them.
    own = OWN_ROUNDING * float(space.S[0]) / math.sqrt(space.shape[0])
    rest = np.maximum(_rest(chain, c), own)
    moved: HostArray = np.full(c.shape[0], math.inf)
    for _ in range(LINEARISATIONS):
        at = system(chain, c, q, depth)
        gram, jacobian, length = _scaled_normal(xp, at.jacobian)
        identity = xp.broadcast_to(chain.device.eye(gram.shape[1])[None, :, :], gram.shape)
        inverse = solve_or_nan(xp, gram, identity)
        inverse = xp.where(xp.isfinite(inverse), inverse, xp.zeros_like(inverse))
        right = (at.residual[:, None, :] @ jacobian)[:, 0, :]
        step = (inverse @ right[:, :, None])[:, :, 0]
        moved = to_host(xp.sqrt(xp.abs(xp.sum(step * right, axis=1)) / int(at.residual.shape[1])))
        step = step / length
        c, q = c - step[:, :b], q - step[:, b:]
        if np.all(moved <= rest):
            break
    at = system(chain, c, q, depth)
    at_rest = moved <= rest
    deviation = np.full(c.shape[0], math.inf)
    along = np.full(c.shape[0], math.inf)
    if np.any(at_rest):
        passed = forward(chain, c, len(chain.layers) - 2)
        covariance = _covariance_of_all(chain, c, q, depth, passed)
        for slopes in slopes_beside(chain, passed, covariance[:, :b, :b]):
            beside = forward(chain, c, len(chain.layers) - 2, slopes=slopes)
            covariance = wider(covariance, _covariance_of_all(chain, c, q, depth, beside), b)
        deviation = np.where(at_rest, input_deviation(chain, c, covariance[:, :b, :b]), math.inf)
        along = _along_all(chain, at, passed, depth, covariance)
    return Refined(c, q, at.residual, deviation, at_rest, along)


def _along_all(chain: Chain, at: System, passed: Forward, depth: int, covariance: Array) -> HostArray:
    """(k,): as `_along`, of all equations `at` the point of a pass."""
    xp = chain.xp
    gram = xp.matrix_transpose(at.jacobian) @ at.jacobian
    inverse = covariance_of(gram, xp.zeros_like(gram))
    side = chain.layers[0].units + 1  # of the backward side, which are not all of one variance
    ahead = slice(1, int(at.residual.shape[1]) - side)
    along = noise_along(chain, at, inverse, covariance, ahead=ahead)
    rests = rests_on_level(chain, passed, depth, at.jacobian[:, ahead, :], inverse)
    return np.where(rests, math.inf, along)


def _scaled_normal(xp: Namespace, jacobian: Array) -> tuple[Array, Array, Array]:
    """Normal equations (k, u, u) of unknowns that count alike, the Jacobian for these, and the lengths (k, u) of its columns."""
    length = xp.linalg.vector_norm(jacobian, axis=1)
    length = xp.where(length > 0, length, xp.ones_like(length))
    jacobian = jacobian / length[:, None, :]
    return xp.matrix_transpose(jacobian) @ jacobian, jacobian, length


def _covariance_of_all(chain: Chain, c: Array, q: Array, depth: int, passed: Forward) -> Array:
    """(k, u, u): covariance of the unknowns where all equations, forward and backward, take part."""
    jacobian = system(chain, c, q, depth, passed).jacobian
    gram = chain.xp.matrix_transpose(jacobian) @ jacobian
    return covariance_of(gram, system_noise(chain, c, q, depth, passed))
