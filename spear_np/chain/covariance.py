"""What the equations of an input leave open: the covariance of its coordinates, and of what follows from them."""

from __future__ import annotations

import math

import array_api_compat
import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import inverse_or_zero
from ..backend.host import to_host
from ..backend.work import blocks
from ..positive import positive_definite
from .equations import Forward, System, membership_change, ones_deviation
from .layers import Chain

TOLD_BY_ONE = 1e-3
"""Share of itself that the other equations leave of one from which they do not test it: it alone decides something.

Measured: a hundredth and more in batches of benchmarks/chain.py, up to 110 inputs on 200 units; 1e-12 where one unit is all that
tells two inputs apart.
"""
AT_KINK = 6.0
"""Standard deviations of a pre-activation within which it may be on either side of a kink.

Definition: as many as in `ZERO_SIGMAS`.
"""


def covariance_of(gram: Array, noise: Array) -> Array:
    """(k, u, u): inverse of the information `gram`, JᵀJ, less what `noise` adds to it; zeros where nothing is left of it.

    Where some direction shows no more than noise does, the next point along it would fit as well, and the next after that.
    What is left must also exceed the rounding of JᵀJ itself: with fewer units on than an input has coordinates, it is that.
    """
    xp: Namespace = array_api_compat.array_namespace(gram)
    length = xp.sqrt(xp.linalg.diagonal(gram))
    length = xp.where(length > 0, length, xp.ones_like(length))
    scale = length[:, :, None] * length[:, None, :]
    information = (gram - noise) / scale
    clear = positive_definite(xp, information)
    information = xp.where(clear[:, None, None], information, xp.zeros_like(information))
    return inverse_or_zero(xp, information) / scale


def noise_along(
    chain: Chain, equations: System, inverse: Array, covariance: Array, *, ahead: slice = slice(None)
) -> HostArray:
    """(k,): noise along the least certain direction of each input, by its own residuals, in units of what it is taken to be.

    `inverse` (k, u, u) is that of JᵀJ, with whatever else determines the unknowns, `covariance` (k, u, u) that of the unknowns; the
    first b of them are coordinates. Infinite where one of the equations `ahead`, those of membership, alone decides something of
    the input: nothing would contradict an error in it.

    Notes
    -----
    The root mean square of all equations tells the noise where they all have as much of it. An input is moved by some of them
    more than by others: with their own residuals in the place of one variance for all, its covariance is
    ``C Jᵀ diag(r² / (1 - h)) J C``, h the share of itself that an equation fits (MacKinnon and White 1985, HC2), here by the
    unknowns and by the space that its gradient spans.
    """
    xp, b = chain.xp, chain.batch_size
    jacobian = equations.jacobian
    fitted = xp.sum((jacobian @ inverse) * jacobian, axis=2)
    left = 1 - equations.absorbed[None, :] - fitted
    # What fixes nothing but a scale always stands alone.
    alone = ((left < TOLD_BY_ONE) & (equations.absorbed[None, :] > 0))[:, ahead]
    own = equations.residual / xp.sqrt(xp.where(left < TOLD_BY_ONE, xp.ones_like(left), left))
    entry, variance = _least_certain(chain, covariance[:, :b, :b])
    towards = (covariance[:, :, :b] @ entry[:, :, None])[:, :, 0]
    moved = (jacobian @ towards[:, :, None])[:, :, 0]
    seen = xp.sum((moved * own) ** 2, axis=1)
    told = ~xp.any(alone, axis=1) & (variance > 0)
    result: HostArray = to_host(xp.sqrt(seen / xp.where(told, variance, xp.ones_like(variance))))
    return np.where(to_host(told), np.nan_to_num(result, nan=math.inf, posinf=math.inf), math.inf)


def with_scale_doubt(chain: Chain, c: Array, covariance: Array) -> Array:
    """The `covariance` (k, b, b) of coordinates `c` (k, b) that were fitted with s · c = 1 kept, and what noise makes of s.

    A fit under a condition that is off by ε is off by ``ε C s / (s · C s)``: by the input itself, times ε, where activations and small
    biases leave its scale to s.
    """
    xp, first = chain.xp, chain.layers[0]
    towards = covariance @ first.ones
    along = (towards @ first.ones)[:, None]
    moved = towards / xp.where(along > 0, along, xp.ones_like(along))
    moved = moved * ones_deviation(chain, first, c, None)[:, None]
    return covariance + moved[:, :, None] * moved[:, None, :]


def rests_on_level(chain: Chain, passed: Forward, depth: int, jacobian: Array, inverse: Array) -> HostArray:
    """(k,) bool: whether another level of a saturated activation would only move the input, and no equation contradict it.

    Where one unit that saturates is all that tells two inputs apart, a mixture of both meets every equation with a wrong level.
    `jacobian` (k, e, u) is that of the membership up to layer `depth`, `inverse` (k, u, u) that of JᵀJ of all equations.
    """
    xp = chain.xp
    rests = xp.zeros_like(passed.z[0][:, 0]) > 0
    for number in range(depth):
        flat = (passed.slope[number] == 0) & (passed.a[number] != 0)
        if not chain.layers[number].sigma.piecewise_linear or not bool(xp.any(flat)):
            continue
        for sign in (-1.0, 1.0):
            moved = flat & (xp.sign(passed.a[number]) == sign)
            change = xp.astype(moved, xp.float64)[:, :, None]
            blocks = []
            for behind in range(1, depth + 1):
                if behind > number + 1:
                    weight = chain.layers[behind - 1].weight
                    change = passed.slope[behind - 1][:, :, None] * (weight[None, :, :] @ change)
                none = xp.zeros_like(change) if behind <= number else change
                blocks.append(membership_change(chain, passed, behind, none))
            response = xp.concat(blocks, axis=1)
            seen = xp.sum(response**2, axis=(1, 2))
            along = xp.matrix_transpose(jacobian) @ response
            left = seen - xp.sum(along * (inverse @ along), axis=(1, 2))
            rests = rests | ((left < TOLD_BY_ONE * seen) & xp.any(moved, axis=1))
    result: HostArray = to_host(rests)
    return result


def slopes_beside(chain: Chain, passed: Forward, covariance: Array) -> list[tuple[Array, ...]]:
    """The slopes of a pass, for units that may be on either side of a kink all on the flatter, and all on the steeper one.

    Empty without such units. A point that slides along what its equations leave open comes to rest where another unit would
    turn on: it then seems to be determined by that unit. `covariance` (k, b, b) is that of the coordinates.
    """
    xp, found, flat, steep = chain.xp, False, [], []
    for number, (z, slope) in enumerate(zip(passed.z, passed.slope, strict=True)):
        sigma, low, high = chain.layers[number].sigma, slope, slope
        if sigma.kinks:
            rows = passed.by_coordinates[number]
            variance = passed.doubt[number] + xp.sum((rows @ covariance) * rows, axis=2)
            deviation = xp.sqrt(xp.abs(variance))
        for kink in sigma.kinks:
            _, other = sigma.value_and_slope(2 * kink - z)
            near = xp.abs(z - kink) <= AT_KINK * deviation
            found = found or bool(xp.any(near & (other != slope)))
            low = xp.where(near & (xp.abs(other) < xp.abs(low)), other, low)
            high = xp.where(near & (xp.abs(other) > xp.abs(high)), other, high)
        flat.append(low)
        steep.append(high)
    return [tuple(flat), tuple(steep)] if found else []


def wider(one: Array, other: Array, b: int) -> Array:
    """(k, u, u): the larger of two covariances of each input; zeros, which stand for an open one, are the largest.

    The first `b` unknowns count, its coordinates.
    """
    xp: Namespace = array_api_compat.array_namespace(one)
    closed = xp.any(one != 0, axis=(1, 2))
    before, after = xp.linalg.diagonal(one)[:, :b], xp.linalg.diagonal(other)[:, :b]
    more = xp.sum(after, axis=1) > xp.sum(before, axis=1)
    more = more | xp.all(other == 0, axis=(1, 2))
    return xp.where((closed & more)[:, None, None], other, one)


def input_deviation(chain: Chain, c: Array, covariance: Array) -> HostArray:
    """(k,): standard deviation of the least certain entry of the inputs at `c` (k, b), known with this `covariance`.

    What noise adds outside the row space of weight_grad counts too. Infinite where the covariance is zero, which stands for open.
    """
    xp, first = chain.xp, chain.layers[0]
    variance = to_host(_least_certain(chain, covariance)[1] + first.spread(c) ** 2)
    open_ = to_host(xp.all(covariance == 0, axis=(1, 2)))
    deviation: HostArray = np.where(open_ | (variance < 0), math.inf, np.sqrt(np.abs(variance)))
    return np.nan_to_num(deviation, nan=math.inf, posinf=math.inf)


def _least_certain(chain: Chain, covariance: Array) -> tuple[Array, Array]:
    """The row of the basis (k, b) at the least certain entry of each input, and its variance (k,).

    `covariance` (k, b, b) is that of the coordinates.
    """
    xp, basis = chain.xp, chain.layers[0].basis
    entries, variances = [basis[:0, :]], [basis[:0, 0]]
    for part in blocks(chain.device, covariance.shape[0], math.prod(basis.shape)):
        variance = variance_of(basis, xp.astype(covariance[part, :, :], basis.dtype))
        entries.append(xp.take(basis, xp.argmax(variance, axis=1), axis=0))
        variances.append(xp.max(variance, axis=1))
    entry, variance = xp.concat(entries, axis=0), xp.concat(variances)
    return xp.astype(entry, covariance.dtype), xp.astype(variance, covariance.dtype)


def variance_of(rows: Array, covariance: Array) -> Array:
    """(k, m): variance of ``rows c`` for `rows` (m, b) and the `covariance` (k, b, b) of c."""
    xp: Namespace = array_api_compat.array_namespace(rows)
    return xp.sum((rows[None, :, :] @ covariance) * rows[None, :, :], axis=2)
