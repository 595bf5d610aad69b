"""What the equations of an input leave open: the covariance of its coordinates, and of what follows from them."""

from __future__ import annotations

import math

import array_api_compat
import numpy as np

from ..backend import Array, HostArray, inverse_or_zero, positive_definite, to_host
from .equations import Forward
from .layers import Chain

AT_KINK = 6.0
"""Standard deviations of a pre-activation within which it may be on either side of a kink.

Definition: as many as in `ZERO_SIGMAS`.
"""


def covariance_of(gram: Array, noise: Array) -> Array:
    """(k, u, u): inverse of the information `gram`, JᵀJ, less what `noise` adds to it; zeros where nothing is left of it.

    Where some direction shows no more than noise does, the next point along it would fit as well, and the next after that.
    What is left must also exceed the rounding of JᵀJ itself: with fewer units on than an input has coordinates, it is that.
    """
    xp = array_api_compat.array_namespace(gram)
    length = xp.sqrt(xp.linalg.diagonal(gram))
    length = xp.where(length > 0, length, xp.ones_like(length))
    scale = length[:, :, None] * length[:, None, :]
    information = (gram - noise) / scale
    clear = positive_definite(xp, information)
    information = xp.where(clear[:, None, None], information, xp.zeros_like(information))
    return inverse_or_zero(xp, information) / scale


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


def wider(one: Array, other: Array) -> Array:
    """(k, b, b): the larger of two covariances of each input; zeros, which stand for an open one, are the largest."""
    xp = array_api_compat.array_namespace(one)
    closed = xp.any(one != 0, axis=(1, 2))
    more = xp.sum(xp.linalg.diagonal(other), axis=1) > xp.sum(xp.linalg.diagonal(one), axis=1)
    more = more | xp.all(other == 0, axis=(1, 2))
    return xp.where((closed & more)[:, None, None], other, one)


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


def variance_of(rows: Array, covariance: Array) -> Array:
    """(k, m): variance of ``rows c`` for `rows` (m, b) and the `covariance` (k, b, b) of c."""
    xp = array_api_compat.array_namespace(rows)
    return xp.sum((rows[None, :, :] @ covariance) * rows[None, :, :], axis=2)
