"""Is a candidate an input? Polished in the full problem, held against every equation at the noise of the data.

Deflated problems only make starts. What is accepted here rests on the gradients themselves, not on what was found before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import array_api_compat
import numpy as np

from ..backend import Array, HostArray, positive_definite, solve_or_nan, to_host
from .equations import (
    Forward,
    System,
    backward_map,
    backward_side,
    columns_of,
    dual_deviation,
    forward,
    membership,
    membership_noise,
    null_vectors,
    system,
    system_noise,
    with_slopes,
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
AT_KINK = 6.0
"""Standard deviations of a pre-activation within which it may be on either side of a kink.

Definition: as many as in `ZERO_SIGMAS`.
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
    refined: bool = False
    """Whether the backward side took part in the fit."""

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
    c, covariance, ahead = polish(chain, c, depth, known)
    if c.shape[0] == 1 and ahead[0] <= CONSISTENT:
        c, covariance, ahead = _across_kinks(chain, c, covariance, ahead, depth, known)
    passed = forward(chain, c, len(chain.layers) - 2, derivatives=False)
    doubt = _of_units(chain.layers[0].to_units, covariance)
    side = _best_side(chain, c, passed, doubt)
    if c.shape[0] == 1 and ahead[0] <= CONSISTENT:
        # Rounding may have put a unit on the other side of its kink than it is on here.
        for other in _other_slopes(chain, passed):
            if side.residual[0] <= CONSISTENT:
                break
            side = min(side, _best_side(chain, c, other, doubt), key=lambda one: float(one.residual[0]))
    return Examined(
        c=c,
        q=side.q,
        deviation=input_deviation(chain, c, covariance),
        output_grad=side.columns[0],
        duals=_duals(chain, side.columns),
        dual_deviation=_dual_deviation(chain, passed, side.q),
        forward_residual=ahead,
        backward_residual=side.residual,
        apart=side.apart,
    )


@dataclass(frozen=True)
class _Side:
    """The backward side of k inputs at its best."""

    q: Array
    columns: list[Array]
    residual: HostArray
    apart: HostArray


def _best_side(chain: Chain, c: Array, passed: Forward, doubt: Array) -> _Side:
    """The column of ∂L/∂Z that fits the gradient of the first layer best, scaled to p · c = 1."""
    xp = chain.xp
    q, best, second = null_vectors(chain, backward_map(chain, passed))
    own = xp.sum(chain.layers[0].dual(columns_of(chain, passed, q)[0]) * c, axis=1)
    q = q / xp.where(own != 0, own, xp.ones_like(own))[:, None]
    residual = to_host(backward_side(chain, c, q, passed, doubt=doubt).residual)
    apart = to_host(second) / np.maximum(to_host(best), np.finfo(np.float64).tiny)
    return _Side(q, columns_of(chain, passed, q), _rms(residual, c.shape[1] + q.shape[1]), apart)


def _duals(chain: Chain, columns: list[Array]) -> tuple[Array, ...]:
    """The duals of the layers that show all inputs."""
    count = min(len(columns), chain.depth + 1)
    return tuple(chain.layers[number].dual(columns[number]) for number in range(count))


def _dual_deviation(chain: Chain, passed: Forward, q: Array) -> Array:
    """(k,): see `Examined`; infinite where slopes bend."""
    if chain.straight:
        return dual_deviation(chain, passed, q)
    return chain.xp.full_like(q[:, 0], math.inf)


def _other_slopes(chain: Chain, passed: Forward) -> Iterator[Forward]:
    """Yield the pass of one input with the slopes of units next to a kink taken from its other side.

    Every choice for the `MOST_AT_KINKS` units that are nearest to a kink, in units of the doubt of their pre-activations.
    """
    near: list[tuple[float, int, int, float]] = []
    for number, z in enumerate(passed.z):
        host, doubt = to_host(z)[0], np.sqrt(to_host(passed.doubt[number])[0])
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
    units = chain.layers[number].space.shape[0]
    everywhere = chain.device.float64(np.full((1, units), z))
    return float(to_host(chain.layers[number].sigma.value_and_slope(everywhere)[1])[0, unit])


def reexamine(chain: Chain, seen: Examined, depth: int) -> Examined:
    """Refine candidates that the forward equations bear out on all of them, and judge them by these.

    What the forward side alone leaves open of an input bends its ∂L/∂Z: for nearly linear activations more than can be
    allowed for.
    """
    better = refine(chain, seen.c, seen.q, depth)
    passed = forward(chain, better.c, len(chain.layers) - 2, derivatives=False)
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
        dual_deviation=_dual_deviation(chain, passed, better.q),
        forward_residual=np.where(better.converged, _rms(residual[:, :-size], b), math.inf),
        backward_residual=_rms(residual[:, -size:], b + t),
        apart=seen.apart,
        refined=True,
    )


def input_deviation(chain: Chain, c: Array, covariance: Array) -> HostArray:
    """(k,): standard deviation of the least certain entry of the inputs at `c` (k, b), known with this `covariance`.

    What noise adds outside the row space of weight_grad counts too.
    """
    xp, first = chain.xp, chain.layers[0]
    basis = first.basis
    within = []
    for row in range(c.shape[0]):
        turned = basis @ xp.astype(covariance[row, :, :], basis.dtype)
        within.append(xp.max(xp.sum(turned * basis, axis=1)))
    variance = to_host(xp.stack(within)) + to_host(first.spread(c)) ** 2
    open_ = to_host(xp.all(covariance == 0, axis=(1, 2)))
    deviation: HostArray = np.where(open_ | (variance < 0), math.inf, np.sqrt(np.abs(variance)))
    return np.nan_to_num(deviation, nan=math.inf, posinf=math.inf)


def _of_units(rows: Array, covariance: Array) -> Array:
    """(k, m): variance of ``rows c`` for `rows` (m, b) and the `covariance` (k, b, b) of c."""
    xp = array_api_compat.array_namespace(rows)
    return xp.sum((rows[None, :, :] @ covariance) * rows[None, :, :], axis=2)


def _rms(residual: HostArray, unknowns: int) -> HostArray:
    """(k,): root mean square for each degree of freedom that `unknowns` leave of `residual` (k, e)."""
    left = max(residual.shape[1] - unknowns, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        result: HostArray = np.sqrt(np.sum(residual**2, axis=1) / left)
    return np.nan_to_num(result, nan=math.inf)


def _across_kinks(
    chain: Chain, c: Array, covariance: Array, ahead: HostArray, depth: int, known: Known | None
) -> tuple[Array, Array, HostArray]:
    """The best of one polished input (1, b) and of those polished from the other side of the kinks next to it.

    Gauss-Newton may rest on the wrong side of a kink that is no further than the noise: the right side fits better.
    """
    xp, first = chain.xp, chain.layers[0]
    if not first.sigma.kinks:
        return c, covariance, ahead
    best = c, covariance, ahead
    z = to_host(c @ first.to_units.T)[0]
    towards = first.to_units @ covariance[0, :, :]
    deviation = np.sqrt(np.abs(to_host(xp.sum(towards * first.to_units, axis=1))))
    for kink in first.sigma.kinks:
        distance = np.abs(z - kink) / np.maximum(deviation, np.finfo(np.float64).tiny)
        for unit in np.argsort(distance)[:MOST_AT_KINKS].tolist():
            if distance[unit] > AT_KINK:
                break
            # The least change, for this covariance, that takes the unit as far beyond the kink as it is before it.
            move = towards[unit, :] * float(2 * (kink - z[unit]) / deviation[unit] ** 2)
            other = polish(chain, c + move[None, :], depth, known)
            if other[2][0] < best[2][0]:
                best = other
    return best


def _membership_rms(chain: Chain, c: Array, depth: int) -> HostArray:
    passed = forward(chain, c, depth - 1, derivatives=False)
    parts = [membership(chain, passed, number, derivatives=False).residual for number in range(1, depth + 1)]
    return _rms(to_host(chain.xp.concat(parts, axis=1)), c.shape[1])


def polish(chain: Chain, c: Array, depth: int, known: Known | None = None) -> tuple[Array, Array, HostArray]:
    """Gauss-Newton on the membership up to layer `depth` from `c` (k, b), with s · c = 1 kept, and p · c = 0 for `known` inputs.

    Returns the coordinates, their covariance (k, b, b) and the root mean square of the membership equations (k,),
    infinite where they have not come to rest.
    """
    xp, ones = chain.xp, chain.layers[0].ones
    b = c.shape[1]
    moved: HostArray = np.full(c.shape[0], math.inf)
    for _ in range(LINEARISATIONS):
        passed = at = forward(chain, c, depth - 1)
        blocks = [membership(chain, passed, number) for number in range(1, depth + 1)]
        if known is not None:
            blocks.append(_orthogonal(chain, c, known))
        gram, weight = _weighted(xp, sum(_gram(xp, block.jacobian) for block in blocks), ones)
        identity = xp.broadcast_to(chain.device.eye(b)[None, :, :], gram.shape)
        inverse = solve_or_nan(xp, gram, identity)
        inverse = xp.where(xp.isfinite(inverse), inverse, xp.zeros_like(inverse))
        length: HostArray | None = None
        for _ in range(CHORD_STEPS):
            right = weight[:, None] * (c @ ones - 1)[:, None] * ones[None, :]
            for block in blocks:
                right = right + (block.residual[:, None, :] @ block.jacobian)[:, 0, :]
            step = (inverse @ right[:, :, None])[:, :, 0]
            c = c - step
            count = sum(int(block.residual.shape[1]) for block in blocks)
            moved = to_host(xp.sqrt(xp.abs(xp.sum(step * right, axis=1)) / count))
            if np.all(moved <= AT_REST) or (length is not None and np.any(moved > SLOW * length)):
                break
            length = moved
            passed = forward(chain, c, depth - 1, derivatives=False)
            residuals = [
                membership(chain, passed, number, derivatives=False).residual
                for number in range(1, depth + 1)
            ]
            if known is not None:
                residuals.append(_orthogonal(chain, c, known).residual)
            blocks = [
                System(residual, block.jacobian) for residual, block in zip(residuals, blocks, strict=True)
            ]
        if np.all(moved <= AT_REST):
            break
    ahead = np.where(moved <= AT_REST, _membership_rms(chain, c, depth), math.inf)
    at, gram, noise = _information(chain, c, depth, known, (at, gram))
    covariance = _covariance(chain, gram, noise)
    for other in _other_sides(chain, at, covariance):
        _, gram, noise = _information(chain, c, depth, known, (other, None))
        covariance = _worse(xp, covariance, _covariance(chain, gram, noise))
    return c, covariance, ahead


def _worse(xp: Any, one: Array, other: Array) -> Array:
    """(k, b, b): of two covariances the larger one; zeros, which stand for an open one, are the largest."""
    closed = xp.any(one != 0, axis=(1, 2))
    wider = xp.sum(xp.linalg.diagonal(other), axis=1) > xp.sum(xp.linalg.diagonal(one), axis=1)
    wider = wider | xp.all(other == 0, axis=(1, 2))
    return xp.where((closed & wider)[:, None, None], other, one)


def _other_sides(chain: Chain, passed: Forward, covariance: Array) -> list[Forward]:
    """The pass with all units that are as near to a kink as the doubt of z on the flatter side, and on the steeper one.

    Such a unit may be on either side, and what it tells of its input on the one it need not tell on the other: an end of a
    line along which all else fits is at a kink, and looks determined from beyond it.
    """
    xp, flat, steep, any_near = chain.xp, [], [], False
    for number, (z, slope) in enumerate(zip(passed.z, passed.slope, strict=True)):
        sigma, low, high = chain.layers[number].sigma, slope, slope
        if sigma.kinks:
            by_c = passed.by_coordinates[number]
            doubt = passed.doubt[number] + xp.sum((by_c @ covariance) * by_c, axis=2)
            for kink in sigma.kinks:
                near = (z - kink) ** 2 < AT_KINK**2 * doubt
                any_near = any_near or bool(xp.any(near))
                other = sigma.value_and_slope(2 * kink - z)[1]
                low = xp.where(near & (xp.abs(other) < xp.abs(low)), other, low)
                high = xp.where(near & (xp.abs(other) > xp.abs(high)), other, high)
        flat.append(low)
        steep.append(high)
    return [with_slopes(chain, passed, slopes) for slopes in (flat, steep)] if any_near else []


def _information(
    chain: Chain, c: Array, depth: int, known: Known | None, last: tuple[Forward, Array | None]
) -> tuple[Forward, Array, Array]:
    """The pass at `c`, JᵀJ of the equations of `polish`, and what noise adds to it, both (k, b, b).

    The `last` linearisation and its JᵀJ will do unless a unit has changed its side since: with its slope, J has changed.
    Without a JᵀJ it is that of the pass given.
    """
    xp, ones = chain.xp, chain.layers[0].ones
    at, gram = last
    here = forward(chain, c, depth - 1, derivatives=False)
    bends = [not layer.sigma.piecewise_linear for layer in chain.layers[:depth]]
    same = all(
        bend or bool(xp.all(old == new)) for bend, old, new in zip(bends, at.slope, here.slope, strict=True)
    )
    if gram is not None and same:
        at = replace(here, by_coordinates=at.by_coordinates)
    elif gram is not None:
        at, gram = forward(chain, c, depth - 1), None
    if gram is None:
        blocks = [membership(chain, at, number) for number in range(1, depth + 1)]
        if known is not None:
            blocks.append(_orthogonal(chain, c, known))
        gram = _weighted(xp, sum(_gram(xp, block.jacobian) for block in blocks), ones)[0]
    noise = sum(membership_noise(chain, at, number) for number in range(1, depth + 1))
    if known is not None:
        noise = noise + _orthogonal_noise(chain, c, known)
    return at, gram, noise


def _weighted(xp: Any, gram: Array, ones: Array) -> tuple[Array, Array]:
    """(k, b, b): `gram` with the condition s · c = 1, and the weight (k,) that it has.

    It weighs as much as all other directions together: exact as far as it matters.
    """
    weight = xp.sum(xp.linalg.diagonal(gram), axis=1) / (ones @ ones)
    return gram + weight[:, None, None] * (ones[:, None] * ones[None, :])[None, :, :], weight


def _covariance(chain: Chain, gram: Array, noise: Array) -> Array:
    """(k, u, u): inverse of the information `gram`, JᵀJ, less what `noise` adds to it; zeros where nothing is left of it.

    Where some direction shows no more than noise does, the next point along it would fit as well, and the next after that.
    What is left must also exceed the rounding of JᵀJ itself: with fewer units on than an input has coordinates, it is that.
    """
    xp, unknowns = chain.xp, gram.shape[1]
    information = gram - noise
    length = xp.sqrt(xp.abs(xp.linalg.diagonal(information)))
    length = xp.where(length > 0, length, xp.ones_like(length))
    scaled = information / (length[:, :, None] * length[:, None, :])
    identity = xp.broadcast_to(chain.device.eye(unknowns)[None, :, :], gram.shape)
    rounding = unknowns * float(np.finfo(np.float32 if unknowns >= LARGE_GRAM else np.float64).eps)
    clear = positive_definite(xp, scaled - rounding * identity)
    scaled = xp.where(clear[:, None, None], scaled, xp.zeros_like(scaled))
    inverse = solve_or_nan(xp, scaled, identity) / (length[:, :, None] * length[:, None, :])
    return xp.where(xp.isfinite(inverse), inverse, xp.zeros_like(inverse))


def _orthogonal(chain: Chain, c: Array, known: Known) -> System:
    """(k, f) equations: p · c = 0 for the duals of `known` inputs; noise enters through the coordinates and the duals alike."""
    deviation = known.spread(chain, c)
    return System((c @ known.duals.T) / deviation, known.duals[None, :, :] / deviation[:, :, None])


def _orthogonal_noise(chain: Chain, c: Array, known: Known) -> Array:
    """(k, b, b): what noise alone adds to JᵀJ of `_orthogonal`: the duals are as uncertain along any direction as along c."""
    first = chain.layers[0]
    weight = known.duals.shape[0] / first.spread(c) ** 2
    return weight[:, None, None] * (chain.device.eye(c.shape[1]) / first.space.S**2)[None, :, :]


def _gram(xp: Any, jacobian: Array) -> Array:
    """(k, u, u): JᵀJ, in float32 where it is large."""
    if jacobian.shape[2] >= LARGE_GRAM:
        single = xp.astype(jacobian, xp.float32)
        return xp.astype(xp.matrix_transpose(single) @ single, xp.float64)
    return xp.matrix_transpose(jacobian) @ jacobian


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


def refine(chain: Chain, c: Array, q: Array, depth: int) -> Refined:
    """Gauss-Newton on all equations, forward and backward, from `c` (k, b) and `q` (k, t)."""
    xp, b = chain.xp, c.shape[1]
    moved: HostArray = np.full(c.shape[0], math.inf)
    for _ in range(LINEARISATIONS):
        at = system(chain, c, q, depth)
        length = xp.linalg.vector_norm(at.jacobian, axis=1)
        length = xp.where(length > 0, length, xp.ones_like(length))
        jacobian = at.jacobian / length[:, None, :]
        gram = xp.matrix_transpose(jacobian) @ jacobian
        identity = xp.broadcast_to(chain.device.eye(gram.shape[1])[None, :, :], gram.shape)
        inverse = solve_or_nan(xp, gram, identity)
        inverse = xp.where(xp.isfinite(inverse), inverse, xp.zeros_like(inverse))
        right = (at.residual[:, None, :] @ jacobian)[:, 0, :]
        step = (inverse @ right[:, :, None])[:, :, 0]
        moved = to_host(xp.sqrt(xp.abs(xp.sum(step * right, axis=1)) / int(at.residual.shape[1])))
        step = step / length
        c, q = c - step[:, :b], q - step[:, b:]
        if np.all(moved <= AT_REST):
            break
    at_rest = moved <= AT_REST
    residual = system(chain, c, q, depth).residual
    passed = forward(chain, c, len(chain.layers) - 2)
    covariance = _covariance_of_all(chain, c, q, depth, passed)
    for other in _other_sides(chain, passed, covariance):
        covariance = _worse(xp, covariance, _covariance_of_all(chain, c, q, depth, other))
    deviation = np.where(at_rest, input_deviation(chain, c, covariance), math.inf)
    return Refined(c, q, residual, deviation, at_rest)


def _covariance_of_all(chain: Chain, c: Array, q: Array, depth: int, passed: Forward) -> Array:
    """(k, b, b): covariance of c where all equations, forward and backward, take part."""
    jacobian = system(chain, c, q, depth, passed).jacobian
    gram = chain.xp.matrix_transpose(jacobian) @ jacobian
    b = c.shape[1]
    return _covariance(chain, gram, system_noise(chain, c, q, depth, passed))[:, :b, :b]
