"""Where the columns of ∂L/∂Z are zero, and systems restricted to where they are not."""

from __future__ import annotations

from typing import Any

from ..factors.factorize import ZERO_SIGMAS, Factors

Array = Any


def zero_support(factors: Factors, q: Array, dual: Array) -> Array:
    """(m, k) bool: units without gradient in the directions `q` (k, b), and off for the inputs `dual` (k, b) in V."""
    xp = factors.xp
    silent = xp.abs(factors.columns(q)) <= ZERO_SIGMAS * column_deviation(factors, q)
    if factors.layer is None or not factors.signs_known:
        return xp.zeros_like(silent)
    return silent & factors.states(factors.layer @ dual.T + factors.bias[:, None])[1]


def column_deviation(factors: Factors, q: Array) -> Array:
    """(m, k): standard deviation of the entries of ``factors.columns(q)``."""
    return factors.noise[:, None] * factors.noise_norm(q)[None, :]


def restricted(factors: Factors, matrix: Array, used: Array) -> Array:
    """(ℓ, k, k): `matrix` (k, k) on the indices where each row of `used` (ℓ, k) is 1, the identity where it is 0."""
    eye = factors.device.eye(matrix.shape[0])
    return used[:, :, None] * matrix[None, :, :] * used[:, None, :] + eye[None, :, :] * (1 - used)[:, None, :]
