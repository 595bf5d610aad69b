"""What the layer itself says of a direction: is its on/off pattern one that an input can produce, and which input?

Pre-activations of every input lie in the span of the columns of ``M = W V`` and the bias. A direction fixes the
pattern of its input (on where ∂L/∂Z is not zero), so the input's coordinates can be estimated from the pattern by
logistic regression, and a pattern that no input produces gives itself away by the rows on which the fit disagrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import inverse_or_pseudoinverse, to_host
from .factorize import Factors
from .row_space import RowSpace

Array = Any
HostArray = np.ndarray[Any, Any]

FIT_STEPS = 60
RIDGE = 1e-3
PRIOR_RIDGE = 1.0


@dataclass(frozen=True)
class SignModel:
    """The space of pre-activations on the live rows, prepared once for each layer; float64 on the device.

    ℓ live rows, r = b + 1 (b if the layer has no bias).
    """

    basis: Array
    """(ℓ, r): orthonormal basis of span[M, bias]."""
    to_coordinates: Array
    """(b, r): coordinates in V of an input whose pre-activations are ``basis · θ``."""
    weight_in_basis: Array
    """(ℓ, b): M."""
    bias: Array
    """(ℓ,)."""
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
    stacked = _with_bias(xp, weight, bias)
    if stacked.shape[1] > stacked.shape[0]:
        return None
    Q, R = xp.linalg.qr(stacked)
    b = weight.shape[1]
    diagonal = xp.abs(xp.linalg.diagonal(R))
    if float(xp.min(diagonal)) <= 1e-10 * float(xp.max(diagonal)):
        return None
    inverse = xp.linalg.solve(R, space.device.eye(R.shape[0]))
    # weight_gradᵀ weight_grad = X (DᵀD) Xᵀ: as far as DᵀD is near a multiple of one, its eigenvalues in V are the
    # second moments of the unknown coordinates.
    values, rotation = xp.linalg.svd(space.coordinates, full_matrices=False)[1:]
    moments = values**2 / xp.sum(values**2) * space.shape[1]
    return SignModel(Q, inverse[:b, :], weight, bias, moments, rotation.T)


def _with_bias(xp: Any, weight: Array, bias: Array) -> Array:
    """`weight` (ℓ, b) with `bias` (ℓ,) as a further column if it is not zero."""
    return weight if not bool(xp.any(bias != 0)) else xp.concat([weight, bias[:, None]], axis=1)


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
        values = xp.maximum(values, 1e-12 * xp.max(values) * xp.ones_like(values))
        root = model.weight_in_basis @ (complement @ (vectors / xp.sqrt(values)))
    root = xp.concat([root, model.bias[:, None]], axis=1)
    values, turn = xp.linalg.eigh(root.T @ root)
    values = xp.maximum(values, 1e-12 * xp.max(values) * xp.ones_like(values))
    energy = values * (root.shape[0] / xp.sum(values))
    return root @ (turn / xp.sqrt(values)), energy / (energy + PRIOR_RIDGE)


def fit_signs(space: RowSpace, model: SignModel, active: Array) -> tuple[HostArray, HostArray]:
    """Estimate the inputs that produce the patterns `active` (k, ℓ) bool.

    Returns
    -------
    agreement : (k,) share of rows on which the fitted pre-activations have the sign of the pattern
    coordinates : (k, b) estimated coordinates in V, up to a positive factor
    """
    xp = space.xp
    if not active.shape[0]:
        return np.empty(0), np.empty((0, space.batch_size))
    # A pattern has no more than ℓ bits: float32 is plenty.
    theta, _ = _logistic(space, space.device.float32(model.basis), None, active)
    agree = (theta @ space.device.float32(model.basis).T > 0) == active
    agreement = xp.sum(xp.astype(agree, xp.float64), axis=1) / active.shape[1]
    return to_host(agreement), to_host(xp.astype(theta, xp.float64) @ model.to_coordinates.T)


def fit_known(space: RowSpace, model: SignModel, complement: Array, dual: Array, active: Array) -> Array:
    """Coordinates (f, b) in V of the inputs behind f known directions, up to a factor: those that fit best together.

    An input is orthogonal to all directions but its own, so it lies in the span of the `complement` (b, b-f) of all
    of them and its own `dual` vector (a row of (f, b)): far fewer unknowns than its pattern `active` (f, ℓ) has rows.
    """
    xp = space.xp
    Q, R = xp.linalg.qr(_with_bias(xp, model.weight_in_basis @ complement, model.bias))
    own = dual @ model.weight_in_basis.T
    along = own @ Q
    own = own - along @ Q.T
    length = xp.linalg.vector_norm(own, axis=1, keepdims=True) + 1e-300
    own = own / length
    theta, share = _logistic(space, space.device.float32(Q), space.device.float32(own), active)
    assert share is not None
    share = xp.astype(share, xp.float64)[:, None] / length
    theta = xp.astype(theta, xp.float64) - share * along
    free = inverse_or_pseudoinverse(xp, R) @ theta.T
    return free[: complement.shape[1], :].T @ complement.T + share * dual


def _logistic(space: RowSpace, basis: Array, own: Array | None, active: Array) -> tuple[Array, Array | None]:
    """Ridge-penalised logistic regression of the patterns `active` (k, ℓ), float32.

    On the columns of `basis` (ℓ, r), orthonormal, and for each pattern on a further unit vector of its own, a row of
    `own` (k, ℓ) orthogonal to them. Returns the coefficients (k, r) and those of `own` (k,).

    Notes
    -----
    In an orthonormal basis the curvature is at most ℓ/4 + ridge, so plain accelerated gradient steps of that size
    converge (Nesterov 1983) and the whole block costs two matrix products a step, where Newton's method would
    factorise one matrix for each pattern.
    """
    xp = space.xp
    rows = basis.shape[0]
    scale = float(rows) ** 0.5
    transposed = basis.T
    curvature = rows * (0.25 + RIDGE)
    target = 2 * xp.astype(active, xp.float32) - 1
    theta = 1.5 * (target @ basis) / scale
    share = None if own is None else 1.5 * xp.sum(target * own, axis=1) / scale
    momentum: Array = theta
    push: Array = share
    weight = 1.0
    for _ in range(FIT_STEPS):
        z = momentum @ transposed
        if own is not None:
            z += push[:, None] * own
        slope = target / (1 + xp.exp(xp.clip(scale * target * z, -30.0, 30.0)))
        next_weight = (1 + (1 + 4 * weight**2) ** 0.5) / 2
        inertia = (weight - 1) / next_weight
        step = momentum + (scale * (slope @ basis) - RIDGE * rows * momentum) / curvature
        momentum, theta = step + inertia * (step - theta), step
        if own is not None:
            along = push + (scale * xp.sum(slope * own, axis=1) - RIDGE * rows * push) / curvature
            push, share = along + inertia * (along - share), along
        weight = next_weight
    return theta, share
