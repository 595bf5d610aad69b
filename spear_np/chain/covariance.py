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


def flatter_slopes(chain: Chain, passed: Forward, covariance: Array) -> tuple[Array, ...] | None:
    """The slopes of a pass, where a pre-activation may be on either side of a kink those of the flatter side; None if nowhere.

    A point that slides along what its equations leave open comes to rest where another unit would turn on: it then seems to
    be determined by that unit. `covariance` (k, b, b) is that of the coordinates.
    """
    xp, found, slopes = chain.xp, False, []
    for number, (z, slope) in enumerate(zip(passed.z, passed.slope, strict=True)):
        sigma = chain.layers[number].sigma
        if sigma.kinks:
            rows = passed.by_coordinates[number]
            variance = passed.doubt[number] + xp.sum((rows @ covariance) * rows, axis=2)
            deviation = xp.sqrt(xp.abs(variance))
        for kink in sigma.kinks:
            _, other = sigma.value_and_slope(2 * kink - z)
            flatter = (xp.abs(z - kink) <= AT_KINK * deviation) & (xp.abs(other) < xp.abs(slope))
            found = found or bool(xp.any(flatter))
            slope = xp.where(flatter, other, slope)
        slopes.append(slope)
    return tuple(slopes) if found else None


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
