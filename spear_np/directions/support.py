"""Where the columns of ∂L/∂Z are zero, and systems restricted to where they are not."""

from __future__ import annotations

from ..arrays import Array
from ..backend.devices import Device
from ..factors.factorize import Factors
from ..factors.zero import ZERO_SIGMAS


def zero_support(factors: Factors, q: Array, dual: Array) -> Array:
    """(m, k) bool: units without gradient in the directions `q` (k, b), and off for the inputs `dual` (k, b) in V."""
    space, layer, xp = factors.space, factors.layer, factors.space.xp
    silent = xp.abs(space.columns(q)) <= ZERO_SIGMAS * space.deviation(q)
    if layer is None or not factors.signs_known:
        return xp.zeros_like(silent)
    return silent & layer.states(layer.preactivations(dual))[1]


def restricted(device: Device, matrix: Array, used: Array) -> Array:
    """(ℓ, k, k): `matrix` (k, k) on the indices where each row of `used` (ℓ, k) is 1, the identity where it is 0."""
    eye = device.eye(matrix.shape[0])
    return used[:, :, None] * matrix[None, :, :] * used[:, None, :] + eye[None, :, :] * (1 - used)[:, None, :]
