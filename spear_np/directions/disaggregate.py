"""From b independent directions to ∂L/∂Z and the inputs: Q, its scale from bias_grad, its choice by λ.

With directions q_i as rows, ``y_i = q_i / S`` and Y = [y_1 … y_b]: ∂L/∂Z = (weight_grad V) Y and Xᵀ = Y⁻¹ Vᵀ
(Dimitrov et al. 2024, Theorem 3.1). The scale of each y_i follows from ``bias_grad = ∂L/∂Z · 1``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import OWN_ROUNDING, TINIEST, between, inverse_or_pseudoinverse
from ..backend.host import to_host
from ..factors.factorize import Factors
from ..factors.layer import Layer
from ..factors.row_space import RowSpace
from ..factors.zero import ZERO_SIGMAS
from .pool import Pool

MAX_BIAS_RESIDUAL = 100.0
"""Relative residual of bias_grad, in units of the relative noise, up to which the batch explains it.

Heuristic: noise alone stays below one; an input that is missing leaves thousands.
"""
EXPLAINED = 5.0
"""The same up to which noise alone explains it.

Measured: below 1, whatever the noise is.
"""
HIDDEN_SHARE = 4.0
"""Assumed upper ratio between unknown inputs' gradients and the part of them outside the span of the known columns.

Derived: columns in general position have at most a share of f / ℓ ≤ 1 / 2 of their energy in that span; four allows for 15 / 16.
"""
HUGE = 1e50
"""Sensitivity of a scale from which nothing is known of it.

Derived: its square leaves room below the overflow.
"""
AGREES = 0.995
"""λ of a column that is kept when all others are forgotten.

Heuristic: a few gradients may drown in noise.
"""


@dataclass(frozen=True, eq=False)
class Disaggregation:
    """A complete choice of directions, scaled; shapes m, b as in `Factors`."""

    q: Array
    """(b, b): one direction a row, scaled so that ``space.columns(q)`` is ∂L/∂Z."""
    scale_variance: Array
    """(b,): relative variance of each scale; zeros if there was no bias_grad."""
    bias_residual: float | None
    """Relative residual of bias_grad, in units of the relative noise of weight_grad; None if missing."""
    input_coords: Array
    """(b, b): row i is c_i, the coordinates of input i in V."""
    sign_agreement: Array | None
    """(b,): λ of each column, the share of output units where gradient and layer agree; None without W."""
    lenient: bool = False
    """Whether λ passes over units that are on but have no gradient, as behind dropout."""

    def mean_agreement(self) -> float | None:
        """λ over all columns."""
        if self.sign_agreement is None:
            return None
        return float(np.mean(to_host(self.sign_agreement)))


def disaggregate(factors: Factors, q: Array, *, lenient: bool = False) -> Disaggregation:
    """Scale the directions `q` (b, b) and compute the coordinates of their inputs and their λ.

    A `lenient` λ counts only what no layer explains: gradients of units that are off. Units that are on may lack one.
    """
    scaled, variance, residual = _scaled(factors, q)
    dual = inverse_or_pseudoinverse(factors.space.xp, scaled / factors.space.S).T
    agreement = None
    if factors.layer is not None and factors.signs_known:
        agreement = _agreement(factors.space, factors.layer, scaled, dual, lenient=lenient)
    return Disaggregation(scaled, variance, residual, dual, agreement, lenient)


def doubtful(choice: Disaggregation, pool: Pool) -> list[int]:
    """Candidate behind the column that agrees least with the layer; empty if all agree."""
    if choice.sign_agreement is None:
        return []
    agreement = to_host(choice.sign_agreement)
    worst = int(np.argmin(agreement))
    return [] if float(agreement[worst]) >= 1.0 else _candidates(choice, pool, np.asarray([worst]))


def contradicting(choice: Disaggregation, pool: Pool) -> list[int]:
    """Candidates behind all columns that agree with the layer on less than `AGREES` of the units."""
    if choice.sign_agreement is None:
        return []
    return _candidates(choice, pool, np.flatnonzero(to_host(choice.sign_agreement) < AGREES))


def _candidates(choice: Disaggregation, pool: Pool, columns: HostArray) -> list[int]:
    """Indices in the pool of the directions of some columns."""
    if not len(columns) or not pool.basis:
        return []
    cosine = np.abs(to_host(choice.q)[columns] @ pool.basis_vectors.T)
    return [pool.basis[int(position)] for position in np.argmax(cosine, axis=1)]


def bias_direction(factors: Factors) -> HostArray | None:
    """(b,): ȳ with ``weight_grad V ȳ = bias_grad``; every input with coordinates c satisfies ``c · ȳ = 1``.

    None without bias_grad, or if the rows of weight_grad do not explain it: then there are inputs that leave no trace
    in weight_grad.
    """
    if factors.bias_grad is None:
        return None
    space, xp = factors.space, factors.space.xp
    # Rows of weight_grad V over their noise are U diag(S).
    target = space.live_of(factors.bias_grad / space.noise)
    along = space.U.T @ target
    told = OWN_ROUNDING * max(space.U.shape) * space.S[0] < space.S
    solution = to_host(xp.where(told, along / space.S, xp.zeros_like(along)))
    size = float(xp.linalg.vector_norm(target))
    rest = float(xp.linalg.vector_norm(target - space.U @ xp.where(told, along, xp.zeros_like(along))))
    rest = math.hypot(rest, factors.silent_bias)
    explained = rest <= MAX_BIAS_RESIDUAL * space.relative_noise * size
    return solution if explained and size > 0 else None


def _scaled(factors: Factors, q: Array) -> tuple[Array, Array, float | None]:
    """Scale rows of `q` by weighted least squares on bias_grad: (q, relative variances, residual)."""
    space, xp = factors.space, factors.space.xp
    columns = space.columns(q)
    if factors.bias_grad is None:
        # No scale to be had: unit columns, the sign by the layer where it is known.
        length = xp.linalg.vector_norm(columns, axis=0)
        q = q / length[:, None]
        return q * _signs(factors, q)[:, None], space.device.zeros(q.shape[0]), None
    weights = 1 / space.live_of(space.noise)
    A = space.live_of(columns) * weights[:, None]
    target = space.live_of(factors.bias_grad) * weights
    Q, R = xp.linalg.qr(A)
    inverse = inverse_or_pseudoinverse(xp, R)
    inverse = between(xp, xp.where(xp.isfinite(inverse), inverse, xp.full_like(inverse, HUGE)), -HUGE, HUGE)
    scale = inverse @ (Q.T @ target)
    rest = math.hypot(float(xp.linalg.vector_norm(target - Q @ (Q.T @ target))), factors.silent_bias)
    size = float(xp.linalg.vector_norm(target))
    dof = max(1, A.shape[0] - A.shape[1])
    residual = rest / size / space.relative_noise if size > 0 else math.inf
    # bias_grad carries the relative noise of its rows at least, even if the residual happens to be smaller. What noise
    # does not explain is the gradient of inputs that are not among these: up to `HIDDEN_SHARE` times as much may lie along
    # the columns.
    sigma = max(rest / math.sqrt(dof), space.relative_noise * size / math.sqrt(A.shape[0]))
    sigma = max(sigma, HIDDEN_SHARE / ZERO_SIGMAS * rest) if residual > EXPLAINED else sigma
    variance = xp.sum(inverse**2, axis=1) * sigma**2 / xp.maximum(scale**2, xp.full_like(scale, HUGE**-2))
    scaled = q * scale[:, None]
    # A scale that nothing is left by says nothing, as of a direction that others nearly make up.
    gone = (xp.abs(scale) < TINIEST) | (xp.linalg.vector_norm(scaled, axis=1) == 0)
    return xp.where(gone[:, None], q, scaled), variance, residual


def _signs(factors: Factors, q: Array) -> Array:
    """(b,) ±1: the sign of each input that its activation pattern asks for; 1 without W."""
    space, xp = factors.space, factors.space.xp
    ones = xp.ones(q.shape[0], dtype=xp.float64, device=space.device.handle)
    if factors.layer is None:
        return ones
    dual = inverse_or_pseudoinverse(xp, q / space.S).T
    z = space.live_of(factors.layer.weight_in_basis @ dual.T)
    return signs_asked(xp, has_gradient(space, q), z)


def signs_asked(xp: Namespace, passing: Array, z: Array) -> Array:
    """(…, k) ±1: the sign that pre-activations `z` (…, ℓ, k) must have for most units to be on exactly if `passing` (…, ℓ, k) bool."""
    votes = xp.sum(2 * xp.astype(passing == (z > 0), xp.float64) - 1, axis=-2)
    return xp.where(votes < 0, -xp.ones_like(votes), xp.ones_like(votes))


def has_gradient(space: RowSpace, q: Array) -> Array:
    """(ℓ, k) bool: live units whose gradient in the directions `q` (k, b) is not zero."""
    return space.xp.abs(space.live_of(space.columns(q))) > ZERO_SIGMAS * space.live_of(space.deviation(q))


def _agreement(space: RowSpace, layer: Layer, q: Array, dual: Array, *, lenient: bool) -> Array:
    """(b,): share of the live units of each column where the gradient is non-zero exactly if the unit passes it on.

    Or, if `lenient`, only if it does.
    """
    xp = space.xp
    active = has_gradient(space, q)
    on = layer.states(space.live_of(layer.preactivations(dual)))[0]
    agree = agreeing(on, active, lenient=lenient)
    return xp.sum(xp.astype(agree, xp.float64), axis=0) / agree.shape[0]


def agreeing(on: Array, passing: Array, *, lenient: bool) -> Array:
    """Where units that are `on` and those `passing` a gradient on, bool arrays, agree; `lenient` passes over those that are on without one."""
    return on | ~passing if lenient else passing == on
