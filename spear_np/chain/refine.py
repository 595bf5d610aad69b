"""Least squares on all equations of an input, those ahead and what is passed back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import array_api_compat
import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import OWN_ROUNDING, replace_rows, rows_of, solve_or_nan
from ..backend.host import to_host
from .covariance import covariance_of, input_deviation, noise_along, rests_on_level, slopes_beside, wider
from .equations import Forward, System, forward, system, system_noise
from .layers import Chain
from .polish import LINEARISATIONS, rest_of


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
    """Gauss-Newton on all equations, forward and backward, from `c` (k, b) and `q` (k, t); each comes to rest by itself."""
    xp, (k, b) = chain.xp, c.shape
    space = chain.layers[0].space
    # Columns of ∂L/∂Z are rounded too, in units of the noise to this share of a row of them.
    own = OWN_ROUNDING * float(space.S[0]) / math.sqrt(space.shape[0])
    rest = np.maximum(rest_of(chain, c), own)
    moved: HostArray = np.full(k, math.inf)
    for _ in range(LINEARISATIONS):
        moving = np.flatnonzero(~(moved <= rest))  # true for NaN
        if not len(moving):
            break
        rows = chain.device.integers(moving)
        from_c, from_q = rows_of(c, rows), rows_of(q, rows)
        step, moved[moving] = _step(xp, system(chain, from_c, from_q, depth))
        c = replace_rows(c, rows, from_c - step[:, :b])
        q = replace_rows(q, rows, from_q - step[:, b:])
    at = system(chain, c, q, depth)
    at_rest = moved <= rest
    deviation = np.full(k, math.inf)
    along = np.full(k, math.inf)
    if np.any(at_rest):
        passed = forward(chain, c, len(chain.layers) - 2)
        covariance = _covariance_of_all(chain, c, q, depth, passed)
        for slopes in slopes_beside(chain, passed, covariance[:, :b, :b]):
            beside = forward(chain, c, len(chain.layers) - 2, slopes=slopes)
            covariance = wider(covariance, _covariance_of_all(chain, c, q, depth, beside), b)
        deviation = np.where(at_rest, input_deviation(chain, c, covariance[:, :b, :b]), math.inf)
        along = np.where(at_rest, _along_all(chain, at, passed, depth, covariance), math.inf)
    return Refined(c, q, at.residual, deviation, at_rest, along)


def _step(xp: Namespace, at: System) -> tuple[Array, HostArray]:
    """The step (k, u) of Gauss-Newton from a point, and its length (k,) in standard deviations for each equation."""
    gram, jacobian, length = _scaled_normal(xp, at.jacobian)
    identity = xp.eye(gram.shape[1], dtype=gram.dtype, device=array_api_compat.device(gram))
    inverse = solve_or_nan(xp, gram, xp.broadcast_to(identity[None, :, :], gram.shape))
    inverse = xp.where(xp.isfinite(inverse), inverse, xp.zeros_like(inverse))
    right = (at.residual[:, None, :] @ jacobian)[:, 0, :]
    step = (inverse @ right[:, :, None])[:, :, 0]
    moved = to_host(xp.sqrt(xp.abs(xp.sum(step * right, axis=1)) / int(at.residual.shape[1])))
    return step / length, moved


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
