"""Is a candidate an input? Polished in the full problem, held against every equation at the noise of the data.

Deflated problems only make starts. What is accepted here rests on the gradients themselves, not on what was found before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from ..backend import solve_or_nan, to_host
from .equations import (
    Forward,
    System,
    backward_map,
    backward_side,
    columns_of,
    forward,
    membership,
    null_vectors,
    system,
)
from .layers import Chain

Array = Any
HostArray = np.ndarray[Any, Any]

LINEARISATIONS = 6
"""Gauss-Newton converges in two or three from a settled start; a start that needs more has not settled."""
CHORD_STEPS = 4
"""Steps with the same linearisation: each only costs the residual."""
CONVERGED = 0.05
"""Length of a step in standard deviations of the data, for each equation, after which the next one changes nothing."""
CONSISTENT = 3.0
"""Root mean square of the equations, in standard deviations, up to which they hold. Noise is an upper estimate, so that
true inputs stay below one on average; the margin is for rounding that is not independent."""
APART = 10.0
"""How many times worse than the best column of ∂L/∂Z the second best must fit for there to be only one."""
LARGE_GRAM = 128
"""Coordinates from which normal equations are formed in float32: their products then take most of the time, and the steps,
whose residuals stay in float64, converge all the same."""


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
    duals: tuple[Array, ...]
    """(k, b) for each of the layers 0 … K: what the coordinates of all other inputs are orthogonal to."""
    forward_residual: HostArray
    """(k,): root mean square of the membership equations, in standard deviations."""
    backward_residual: HostArray
    """(k,): the same of the backward side."""
    apart: HostArray
    """(k,): residual of the second best column of ∂L/∂Z over that of the best."""

    @property
    def accepted(self) -> HostArray:
        """(k,) bool: whether every equation holds and no other column would do."""
        holds: HostArray = (
            (self.forward_residual <= CONSISTENT)
            & (self.backward_residual <= CONSISTENT)
            & (self.apart >= APART)
        )
        return holds


def examine(chain: Chain, c: Array, depth: int, known: Array | None = None) -> Examined:
    """Polish the candidates `c` (k, b) on the membership up to layer `depth`, and judge them by all equations.

    With the duals `known` (f, b) of inputs that were found, they are held orthogonal to these: what an input needs that
    turns on fewer units than it has coordinates.
    """
    xp = chain.xp
    c, covariance = polish(chain, c, depth, known)
    passed = forward(chain, c, len(chain.layers) - 2, derivatives=False)
    ahead = _membership_rms(chain, passed, c, depth)
    q, best, second = null_vectors(chain, backward_map(chain, passed))
    first = chain.layers[0]
    own = xp.sum(first.dual(columns_of(chain, passed, q)[0]) * c, axis=1)
    q = q / xp.where(own != 0, own, xp.ones_like(own))[:, None]
    columns = columns_of(chain, passed, q)
    doubt = _of_units(first.to_units, covariance)
    behind = backward_side(chain, c, q, passed, doubt=doubt).residual
    count = min(len(columns), chain.depth + 1)
    duals = [chain.layers[number].dual(columns[number]) for number in range(count)]
    apart = to_host(second) / np.maximum(to_host(best), np.finfo(np.float64).tiny)
    return Examined(
        c=c,
        q=q,
        deviation=input_deviation(chain, c, covariance),
        duals=tuple(duals),
        forward_residual=ahead,
        backward_residual=_rms(to_host(behind), c.shape[1] + q.shape[1]),
        apart=apart,
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
    return np.nan_to_num(deviation, nan=math.inf)


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


def _membership_rms(chain: Chain, passed: Forward, c: Array, depth: int) -> HostArray:
    parts = [membership(chain, passed, number, derivatives=False).residual for number in range(1, depth + 1)]
    return _rms(to_host(chain.xp.concat(parts, axis=1)), c.shape[1])


def polish(chain: Chain, c: Array, depth: int, known: Array | None = None) -> tuple[Array, Array]:
    """Gauss-Newton on the membership up to layer `depth` from `c` (k, b), with s · c = 1 kept, and p · c = 0 for `known`.

    Returns the coordinates and their covariance (k, b, b).
    """
    xp, ones = chain.xp, chain.layers[0].ones
    b = c.shape[1]
    for _ in range(LINEARISATIONS):
        passed = forward(chain, c, depth - 1)
        blocks = [membership(chain, passed, number) for number in range(1, depth + 1)]
        if known is not None:
            blocks.append(_orthogonal(chain, c, known))
        gram = sum(_gram(xp, block.jacobian) for block in blocks)
        # The condition weighs as much as all other directions together: exact as far as it matters.
        weight = xp.sum(xp.linalg.diagonal(gram), axis=1) / (ones @ ones)
        gram = gram + weight[:, None, None] * (ones[:, None] * ones[None, :])[None, :, :]
        identity = xp.broadcast_to(chain.device.eye(b)[None, :, :], gram.shape)
        inverse = solve_or_nan(xp, gram, identity)
        inverse = xp.where(xp.isfinite(inverse), inverse, xp.zeros_like(inverse))
        converged = False
        length = None
        for _ in range(CHORD_STEPS):
            right = weight[:, None] * (c @ ones - 1)[:, None] * ones[None, :]
            for block in blocks:
                right = right + (block.residual[:, None, :] @ block.jacobian)[:, 0, :]
            step = (inverse @ right[:, :, None])[:, :, 0]
            c = c - step
            energy = xp.sum(step * right, axis=1)
            moved = xp.sqrt(xp.abs(energy) / (sum(block.residual.shape[1] for block in blocks)))
            converged = bool(xp.all(moved <= CONVERGED))
            if converged or (length is not None and bool(xp.any(moved > 0.3 * length))):
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
        if converged:
            break
    return c, inverse


def _orthogonal(chain: Chain, c: Array, known: Array) -> System:
    """(k, f) equations: p · c = 0 for the duals `known` (f, b); noise enters through the coordinates and the duals alike."""
    xp = chain.xp
    deviation = 2**0.5 * chain.layers[0].spread(c)[:, None] * xp.linalg.vector_norm(known, axis=1)[None, :]
    return System((c @ known.T) / deviation, known[None, :, :] / deviation[:, :, None])


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


def rms_of_system(refined: Refined) -> HostArray:
    """(k,): root mean square of all equations, for each degree of freedom."""
    return _rms(to_host(refined.residual), refined.c.shape[1] + refined.q.shape[1])


def refine(chain: Chain, c: Array, q: Array, depth: int) -> Refined:
    """Gauss-Newton on all equations, forward and backward, from `c` (k, b) and `q` (k, t)."""
    xp, b = chain.xp, c.shape[1]
    inverse = None
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
        moved = xp.sqrt(xp.abs(xp.sum(step * right, axis=1)) / at.residual.shape[1])
        step = step / length
        inverse = inverse / (length[:, :, None] * length[:, None, :])
        c, q = c - step[:, :b], q - step[:, b:]
        if bool(xp.all(moved <= CONVERGED)):
            break
    assert inverse is not None
    residual = system(chain, c, q, depth).residual
    return Refined(c, q, residual, input_deviation(chain, c, inverse[:, :b, :b]))
