"""What the layer itself says of a direction: is its on/off pattern one that an input can produce, and which input?

Pre-activations of every input lie in the span of the columns of ``M = W V`` and the bias. A direction fixes the
pattern of its input (on where ∂L/∂Z is not zero), so the input's coordinates can be estimated from the pattern by
logistic regression, and a pattern that no input produces gives itself away by the rows on which the fit disagrees.

With a ceiling (ReLU6) a unit is on in two half-spaces, z > 0 and ceiling - z > 0, and one without gradient lies outside one
of them. Which one is not told: those that are on say where the input is, and that tells. Where hardly a unit reaches the
ceiling the second half-space only misleads the ridge: each pattern is fitted with it and without, and the better fit counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import TINIEST, between, inverse_or_pseudoinverse
from ..backend.host import to_host
from .factorize import Factors
from .row_space import RowSpace
from .singular import thin_svd

FIT_STEPS = 60
"""Accelerated gradient steps of a logistic regression.

Heuristic: the agreement of true patterns no longer grows beyond it.
"""
FIT_RIDGE = 1e-3
"""Penalty on the coefficients of a logistic regression, in units of the number of rows.

Heuristic: small beside the curvature of 1/4, large enough for patterns that can be separated to have one fit.
"""
PRIOR_RIDGE = 1.0
"""Variance of what a soft pattern adds to pre-activations of mean square one.

Heuristic: as much as the pre-activations themselves.
"""
SIDINGS = 4
"""Times that units without gradient are put on the side of the ceiling where the fit before sees them.

Heuristic: fits of true patterns grow no more beyond it.
"""
CONDITION = 1e-10
"""Ratio of the diagonal of R from which units depend on each other, and the layer tells nothing.

Heuristic: far below what independent units show, far above the rounding of float64.
"""
LEAST_EIGENVALUE = 1e-12
"""Share of the largest eigenvalue that replaces smaller ones of a covariance.

Derived: rounding of float64, by some margin.
"""
LARGEST_LOGIT = 30.0
"""Exponent beyond which a logistic slope counts as zero.

Derived: exp(-30) is below the rounding of float32.
"""
WARM_START = 1.5
"""Multiple of the projection of a pattern from which its regression starts.

Heuristic: only the number of steps depends on it.
"""


@dataclass(frozen=True, eq=False)
class HalfSpaces:
    """What must be positive where units are on: h = ℓ rows z, or 2ℓ with those of ceiling - z below them.

    r = b + 1, or b without a bias and a ceiling.
    """

    basis: Array
    """(h, r): orthonormal basis of the values that inputs and the bias give them."""
    to_coordinates: Array
    """(b, r): coordinates in V, up to a factor, of an input for which the values are ``basis · θ``."""


@dataclass(frozen=True, eq=False)
class SignModel:
    """The space of pre-activations on the live rows, prepared once for each layer; float64 on the device.

    ℓ live rows.
    """

    plain: HalfSpaces
    """z > 0."""
    capped: HalfSpaces | None
    """z > 0 and ceiling - z > 0; None for a plain ReLU."""
    weight_in_basis: Array
    """(ℓ, b): M."""
    bias: Array
    """(ℓ,)."""
    ceiling: float
    """Pre-activation above which units are off again; infinite for a plain ReLU."""
    second_moment: Array
    """(b,): prior for the squared coordinates, from the squared singular values of weight_grad."""
    rotation: Array
    """(b, b): orthonormal axes of the prior, as columns in V."""


def sign_model(factors: Factors) -> SignModel | None:
    """Prepare the sign model of a layer; None without W, or if its units are too few or depend on each other.

    It needs no bias_grad: the bias itself tells the scale of an input that produces a pattern.
    """
    if factors.layer is None:
        return None
    space, xp = factors.space, factors.space.xp
    weight = space.live_of(factors.layer.weight_in_basis)
    bias = space.live_of(factors.layer.bias)
    ceiling = factors.layer.ceiling
    plain = _prepared(space, weight, bias, math.inf)
    if plain is None:
        return None
    capped = _prepared(space, weight, bias, ceiling) if factors.layer.has_ceiling else None
    # weight_gradᵀ weight_grad = X (DᵀD) Xᵀ: as far as DᵀD is near a multiple of one, its eigenvalues in V are the
    # second moments of the unknown coordinates.
    values, rotation = thin_svd(xp, space.coordinates)[1:]
    moments = values**2 / xp.sum(values**2) * space.shape[1]
    return SignModel(plain, capped, weight, bias, ceiling, moments, rotation.T)


def _prepared(space: RowSpace, weight: Array, bias: Array, ceiling: float) -> HalfSpaces | None:
    """Orthonormal basis of the half-spaces of a layer (ℓ, b); None if its units are too few or depend on each other."""
    xp, b = space.xp, weight.shape[1]
    stacked = _half_spaces(xp, weight, bias, ceiling)
    if stacked.shape[1] > stacked.shape[0]:
        return None
    Q, R = xp.linalg.qr(stacked)
    diagonal = xp.abs(xp.linalg.diagonal(R))
    if float(xp.min(diagonal)) <= CONDITION * float(xp.max(diagonal)):
        return None
    return HalfSpaces(Q, xp.linalg.solve(R, space.device.eye(R.shape[0]))[:b, :])


def _with_bias(xp: Namespace, weight: Array, bias: Array) -> Array:
    """`weight` (ℓ, b) with `bias` (ℓ,) as a further column if it is not zero."""
    return weight if not bool(xp.any(bias != 0)) else xp.concat([weight, bias[:, None]], axis=1)


def _half_spaces(xp: Namespace, weight: Array, bias: Array, ceiling: float) -> Array:
    """Rows that are positive where a unit is above zero, (ℓ, b or b + 1), and below them where it is under the `ceiling`."""
    if math.isinf(ceiling):
        return _with_bias(xp, weight, bias)
    return _with_bias(xp, xp.concat([weight, -weight], axis=0), xp.concat([bias, ceiling - bias]))


def _inside(values: Array, units: int) -> Array:
    """(k, ℓ) bool: which of the ℓ `units` are on, by the values (k, h) of their half-spaces."""
    on = values[:, :units] > 0
    return on if values.shape[1] == units else on & (values[:, units:] > 0)


def smoother(
    space: RowSpace, model: SignModel, complement: Array | None, *, prior: bool = True
) -> tuple[Array, Array]:
    """Return (E (ℓ, r), w (r,)) with ``E diag(w) Eᵀ``, the ridge smoother of pre-activations under the prior.

    Σ = M C Mᵀ + bias biasᵀ of trace ℓ, with C the prior covariance of the coordinates; the smoother is
    Σ (Σ + 1)⁻¹. `complement` (b, b-f) restricts the coordinates to those that no known direction sees,
    ``c · y = 0``, and conditions the prior on it. Without `prior` it is the projector on the pre-activations.
    """
    xp = space.xp
    if not prior:
        weight = model.weight_in_basis if complement is None else model.weight_in_basis @ complement
        plain = xp.linalg.qr(_with_bias(xp, weight, model.bias)).Q
        return plain, xp.ones_like(plain[0, :])
    if complement is None:
        root = model.weight_in_basis @ (model.rotation * xp.sqrt(model.second_moment))
    else:
        # Covariance given Nᵀ-restriction: N (Nᵀ C⁻¹ N)⁻¹ Nᵀ.
        precision = (complement.T @ (model.rotation / model.second_moment)) @ (model.rotation.T @ complement)
        values, vectors = xp.linalg.eigh(precision)
        values = xp.maximum(values, LEAST_EIGENVALUE * xp.max(values) * xp.ones_like(values))
        root = model.weight_in_basis @ (complement @ (vectors / xp.sqrt(values)))
    root = xp.concat([root, model.bias[:, None]], axis=1)
    values, turn = xp.linalg.eigh(root.T @ root)
    values = xp.maximum(values, LEAST_EIGENVALUE * xp.max(values) * xp.ones_like(values))
    energy = values * (root.shape[0] / xp.sum(values))
    return root @ (turn / xp.sqrt(values)), energy / (energy + PRIOR_RIDGE)


def missing_inputs(
    space: RowSpace, model: SignModel, total: HostArray, known: HostArray
) -> tuple[Array, Array]:
    """Mean (b,) and root (b, b) of the covariance of a missing input's coordinates, given the `known` directions (f, b).

    The prior of `smoother`, conditioned on ``c · ȳ = 1`` with ȳ = `total` (b,) and on ``c · y = 0`` for all known y.
    """
    xp, device = space.xp, space.device
    ones = device.float64(total)
    prior = (model.rotation * model.second_moment) @ model.rotation.T
    prior = prior / (ones @ prior @ ones)
    equations = xp.concat([device.float64(known) / space.S, ones[None, :]], axis=0)
    length = xp.linalg.vector_norm(equations, axis=1)
    equations = equations / length[:, None]
    right = xp.concat([xp.zeros_like(length[:-1]), 1 / length[-1:]])
    seen = prior @ equations.T
    gain = xp.linalg.pinv(equations @ seen) @ seen.T
    left = prior - seen @ gain
    values, vectors = xp.linalg.eigh((left + left.T) / 2)
    return right @ gain, vectors * xp.sqrt(xp.maximum(values, xp.zeros_like(values)))


def fit_signs(space: RowSpace, model: SignModel, active: Array) -> tuple[HostArray, HostArray]:
    """Estimate the inputs that produce the patterns `active` (k, ℓ) bool.

    Returns
    -------
    agreement : (k,) share of rows on which the fitted pre-activations have the sign of the pattern
    coordinates : (k, b) estimated coordinates in V, up to a positive factor
    """
    if not active.shape[0]:
        return np.empty(0), np.empty((0, space.batch_size))
    best = _fit_half_spaces(space, model.plain, active)
    if model.capped is not None:
        best = _better(best, _fit_half_spaces(space, model.capped, active))
    return best


def _fit_half_spaces(space: RowSpace, half_spaces: HalfSpaces, active: Array) -> tuple[HostArray, HostArray]:
    """As `fit_signs`, by some half-spaces."""
    xp = space.xp
    # A pattern has no more than ℓ bits: float32 is plenty.
    basis = space.device.float32(half_spaces.basis)
    theta, _ = _fit(space, basis, None, active)
    agreement = _share(xp, _inside(theta @ basis.T, active.shape[1]) == active)
    return agreement, to_host(xp.astype(theta, xp.float64) @ half_spaces.to_coordinates.T)


def _share(xp: Namespace, agree: Array) -> HostArray:
    """(k,): share of the rows of `agree` (k, ℓ) that are true."""
    return to_host(xp.sum(xp.astype(agree, xp.float64), axis=1) / agree.shape[1])


def _better(
    one: tuple[HostArray, HostArray], other: tuple[HostArray, HostArray]
) -> tuple[HostArray, HostArray]:
    """Of two fits of k patterns, agreement (k,) and coordinates (k, b), those that agree more; `one` if they are even."""
    wins = other[0] > one[0]
    return np.where(wins, other[0], one[0]), np.where(wins[:, None], other[1], one[1])


def fit_known(space: RowSpace, model: SignModel, complement: Array, dual: Array, active: Array) -> Array:
    """Coordinates (f, b) in V of the inputs behind f known directions, up to a factor: those that fit best together.

    An input is orthogonal to all directions but its own, so it lies in the span of the `complement` (b, b-f) of all
    of them and its own `dual` vector (a row of (f, b)): far fewer unknowns than its pattern `active` (f, ℓ) has rows.
    """
    best = _fit_known(space, model, complement, dual, active, math.inf)
    if model.capped is not None:
        best = _better(best, _fit_known(space, model, complement, dual, active, model.ceiling))
    return space.device.float64(best[1])


def _fit_known(
    space: RowSpace, model: SignModel, complement: Array, dual: Array, active: Array, ceiling: float
) -> tuple[HostArray, HostArray]:
    """Agreement (f,) and coordinates (f, b) of `fit_known`, by the half-spaces of a `ceiling`."""
    xp = space.xp
    Q, R = xp.linalg.qr(_half_spaces(xp, model.weight_in_basis @ complement, model.bias, ceiling))
    own = dual @ model.weight_in_basis.T
    if math.isfinite(ceiling):
        own = xp.concat([own, -own], axis=1)
    along = own @ Q
    own = own - along @ Q.T
    length = xp.linalg.vector_norm(own, axis=1, keepdims=True) + TINIEST
    own = own / length
    basis, single = space.device.float32(Q), space.device.float32(own)
    theta, share = _fit(space, basis, single, active)
    assert share is not None
    values = theta @ basis.T + share[:, None] * single
    share = xp.astype(share, xp.float64)[:, None] / length
    theta = xp.astype(theta, xp.float64) - share * along
    free = inverse_or_pseudoinverse(xp, R) @ theta.T
    coordinates = free[: complement.shape[1], :].T @ complement.T + share * dual
    return _share(xp, _inside(values, active.shape[1]) == active), to_host(coordinates)


def _fit(space: RowSpace, basis: Array, own: Array | None, active: Array) -> tuple[Array, Array | None]:
    """`_logistic` of the patterns `active` (k, ℓ); two half-spaces a unit in `basis` (h, r) mean that there is a ceiling."""
    xp, units = space.xp, active.shape[1]
    if basis.shape[0] == units:
        return _logistic(space, basis, own, 2 * xp.astype(active, xp.float32) - 1)
    on = xp.astype(active, xp.float32)
    theta, share = _logistic(space, basis, own, xp.concat([on, on], axis=1))
    for _ in range(SIDINGS):
        values = theta @ basis.T
        if own is not None and share is not None:
            values += share[:, None] * own
        high = xp.astype(values[:, :units] > values[:, units:], xp.float32)
        # One without gradient is outside one of its half-spaces, and inside the other.
        above, below = on + (1 - on) * (2 * high - 1), on + (1 - on) * (1 - 2 * high)
        theta, share = _logistic(space, basis, own, xp.concat([above, below], axis=1))
    return theta, share


def _logistic(space: RowSpace, basis: Array, own: Array | None, target: Array) -> tuple[Array, Array | None]:
    """Ridge-penalised logistic regression of the signs `target` (k, h), ±1 or 0 where nothing is known, float32.

    On the columns of `basis` (h, r), orthonormal, and for each pattern on a further unit vector of its own, a row of
    `own` (k, h) orthogonal to them. Returns the coefficients (k, r) and those of `own` (k,).

    Notes
    -----
    In an orthonormal basis the curvature is at most h/4 + ridge, so plain accelerated gradient steps of that size
    converge (Nesterov 1983) and the whole block costs two matrix products a step, where Newton's method would
    factorise one matrix for each pattern.
    """
    xp = space.xp
    rows = basis.shape[0]
    scale = float(rows) ** 0.5
    transposed = basis.T
    curvature = rows * (0.25 + FIT_RIDGE)
    theta = WARM_START * (target @ basis) / scale
    share = None if own is None else WARM_START * xp.sum(target * own, axis=1) / scale
    momentum: Array = theta
    push = share
    weight = 1.0
    for _ in range(FIT_STEPS):
        z = momentum @ transposed
        if own is not None and push is not None:
            z += push[:, None] * own
        slope = target / (1 + xp.exp(between(xp, scale * target * z, -LARGEST_LOGIT, LARGEST_LOGIT)))
        next_weight = (1 + (1 + 4 * weight**2) ** 0.5) / 2
        inertia = (weight - 1) / next_weight
        step = momentum + (scale * (slope @ basis) - FIT_RIDGE * rows * momentum) / curvature
        momentum, theta = step + inertia * (step - theta), step
        if own is not None and push is not None and share is not None:
            along = push + (scale * xp.sum(slope * own, axis=1) - FIT_RIDGE * rows * push) / curvature
            push, share = along + inertia * (along - share), along
        weight = next_weight
    return theta, share
