"""How much of W there is in what a low-rank gradient leaves of weight_grad."""

from __future__ import annotations

import math
from dataclasses import dataclass

import array_api_compat

from ..arrays import Array, Namespace
from ..backend.algebra import OWN_ROUNDING, TINIEST
from .row_space import RowSpace

ARITHMETIC_STEPS = 8.0
"""Roundings of our own by which μ may be off, beside the size of all of weight_grad.

Heuristic: what blocked float64 sums of products accumulate to.
"""

KURTOSIS = 3.0
"""Factor on the variance of μ: the rounding of W follows the size of its entries, as their weight in the fit does.

Derived: the mean of w⁴ over that of w² squared, for normal weights.
"""


@dataclass(frozen=True)
class Multiple:
    """A multiple μ of W in what lies outside the row and column space of weight_grad, by least squares.

    Energies are sums of squares, rows weighted by their noise, in units that mean nothing.
    """

    value: float
    """μ, dimensionless if weight_grad is a gradient in the units of W."""
    deviation: float
    """Its standard deviation."""
    weight_energy: float
    """What lies there of W."""
    left_energy: float
    """What lies there of weight_grad without μ W."""

    def share(self, change: float) -> float:
        """Share of the energy out there that a multiple `change` explains where nothing else but the rest is."""
        explained = change**2 * self.weight_energy
        return explained / max(explained + self.left_energy, TINIEST)


def multiple_of_weight(
    space: RowSpace,
    residual: Array,
    cross: Array,
    weight_in_basis: Array,
    weight_squares: Array,
    weight_gram: Array | None = None,
) -> Multiple:
    """Return the multiple of W outside the spaces of weight_grad at its rank b.

    Parameters
    ----------
    space : RowSpace
        V and U, the spaces; η, the noise of each row.
    residual : (m,) array
        Norm of what is left of each row of weight_grad outside V.
    cross : (m, m) array
        W · weight_gradᵀ.
    weight_in_basis : (m, b) array
        W V.
    weight_squares : (m,) array
        Squared norms of the rows of W.
    weight_gram : (m, m) array, optional
        W Wᵀ. Without it what W has in the column space is not known: μ is then too small, never too large.

    Notes
    -----
    With P = 1 − U Uᵀ on whitened rows and Q = 1 − V Vᵀ, μ minimises ‖P η⁻¹ (weight_grad − μ W) Q‖². A gradient of rank b
    has nothing there, to first order in how far U and V are off: each repetition squares their error.
    """
    xp: Namespace = array_api_compat.array_namespace(residual)
    n = space.shape[1]
    # Rows that are exactly zero have no noise to divide by.
    least = max(float(xp.max(space.row_norm)) * OWN_ROUNDING, TINIEST)
    scale = least / xp.maximum(space.noise, least * xp.ones_like(space.noise))
    outside = weight_squares - xp.sum(weight_in_basis**2, axis=1)
    weight_rows = xp.maximum(outside, xp.zeros_like(outside)) * scale**2
    product = cross.T - space.coordinates @ weight_in_basis.T
    U = space.live_of(scale)[:, None] * space.U
    numerator = float(
        xp.sum(xp.linalg.diagonal(product) * scale**2) - xp.sum(U * (_live(space, product) @ U))
    )
    energy = float(xp.sum(weight_rows))
    if weight_gram is not None:
        gram = weight_gram - weight_in_basis @ weight_in_basis.T
        energy -= float(xp.sum(U * (_live(space, gram) @ U)))
    total = float(xp.sum((residual * scale) ** 2))
    if not energy > OWN_ROUNDING * float(xp.sum(weight_squares * scale**2)):
        return Multiple(0.0, math.inf, 0.0, total)
    value = numerator / energy
    left = max(total - value * numerator, 0.0)
    # The rows need not be equally noisy: each counts with what is left of it, W's own part taken off evenly.
    spread = float(xp.sum((residual * scale) ** 2 * (weight_rows / energy))) * left / max(total, TINIEST)
    size = float(xp.sum((space.row_norm * scale) ** 2))
    variance = (
        KURTOSIS * spread / max(n - space.batch_size, 1) + (ARITHMETIC_STEPS * OWN_ROUNDING) ** 2 * size
    )
    return Multiple(value, math.sqrt(variance / energy), energy, left)


def _live(space: RowSpace, square: Array) -> Array:
    """The live rows and columns of a matrix (m, m)."""
    return space.xp.take(space.live_of(square), space.live, axis=1)
