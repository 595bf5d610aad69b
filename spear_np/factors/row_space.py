"""What weight_grad alone tells of a layer, whatever follows it: its row space, its noise, its zeros.

Notation (see docs/method.md): weight_grad = D Xᵀ + noise, of rank b. Each row is divided by the standard
deviation η of its own noise, so that "zero" means the same in all of them. With V (n, b) an orthonormal basis
of the row space, the whitened rows are ``weight_grad V / η = U diag(S)``, U (ℓ, b) with orthonormal columns.
A direction q (b,) gives the column ``D q̂ = η · U q`` of ∂L/∂Z, up to its scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from ..arrays import Array, Namespace
from ..backend.algebra import between, gather, scatter_columns
from ..backend.devices import Device
from .rank import Spectrum
from .zero import is_zero

NOISY_FROM = 1e-5
"""Relative noise from which it is more than rounding to float32: it hides gradients, and averaging over it gains accuracy.

Derived: float32 rounds to 6e-8 and a sum of a thousand products to some 2e-6; the next precision, float16, to 5e-4.
"""
ANGLE_SIGMAS = 10.0
"""Standard deviations by which noise may turn a direction in each of its b coordinates.

Heuristic: a generous bound; two directions of inputs are rarely closer than a hundred times that.
"""
SMALLEST_ANGLE = 1e-6
"""Radians below which two directions count as the same, whatever the noise.

Derived: the cosine of such an angle differs from one by 5e-13, a few thousand roundings of float64.
"""
LARGEST_ANGLE = 0.1
"""Radians above which two directions count as different, whatever the noise.

Heuristic: directions of different inputs are nearly orthogonal in these coordinates.
"""


@dataclass(frozen=True, eq=False)
class RowSpace:
    """Row space, noise and zeros of one weight_grad (m, n); all arrays on `device`, float64.

    ℓ ≤ m counts the live output units: those whose row stands out of its noise.
    """

    device: Device
    shape: tuple[int, int]
    """(m, n)."""
    unit_roundoff: float
    """Largest relative rounding error of one entry of weight_grad."""
    spectrum: Spectrum
    batch_size: int
    """b, the rank used."""
    U: Array
    """(ℓ, b): whitened live rows, orthonormal columns."""
    S: Array
    """(b,): singular values in noise units."""
    live: Array
    """(ℓ,) int64: which rows of weight_grad they are."""
    noise: Array
    """(m,): standard deviation η of one entry of each row of weight_grad, an upper estimate."""
    row_norm: Array
    """(m,): Euclidean norm of each row of weight_grad."""
    to_basis: Array
    """(m, b): V = weight_gradᵀ · to_basis."""
    coordinates: Array
    """(m, b): weight_grad · V, the rows before whitening."""
    relative_noise: float
    """Median over live rows of η divided by the row's root mean square: dimensionless."""
    hidden_input_factor: float
    """Factor by which error bounds grow because an input may be hidden below the rank; 1 if none can be."""
    passed: Array | None = None
    """(ℓ, t): W_2ᵀ in units of the noise, what a layer of t units behind this one passes back for each of their gradients; None
    if it is not known, or too much to tell anything."""

    @property
    def xp(self) -> Namespace:
        """Array namespace of all arrays here."""
        return self.device.xp

    @property
    def noisy(self) -> bool:
        """Whether noise is more than rounding to float32."""
        return self.relative_noise > NOISY_FROM

    @cached_property
    def _padded(self) -> Array:
        """(ℓ + 1, b): U with a row of zeros below."""
        return self.xp.concat([self.U, self.xp.zeros_like(self.U[:1, :])], axis=0)

    def rows(self, order: Array, used: Array) -> Array:
        """(k, r, b): the rows `order` (k, r) of U; zeros where not `used` (k, r)."""
        none = self.xp.full_like(order, self.U.shape[0])
        return gather(self.xp, self._padded, self.xp.where(used, order, none))

    def noise_norm(self, q: Array) -> Array:
        """(k,): standard deviation of the noise in ``U q`` for each row of `q` (k, b)."""
        return self.xp.linalg.vector_norm(q / self.S, axis=-1)

    def noise_units(self, q: Array) -> Array:
        """(k, ℓ): |U q| in standard deviations of its noise, for each row of `q` (k, b)."""
        return self.xp.abs(q @ self.U.T) / self.noise_norm(q)[:, None]

    def columns(self, q: Array) -> Array:
        """(m, k): the columns of ∂L/∂Z that belong to the directions `q` (k, b)."""
        return self.coordinates @ (q / self.S).T

    def deviation(self, q: Array) -> Array:
        """(m, k): standard deviation of the entries of ``columns(q)``."""
        return self.noise[:, None] * self.noise_norm(q)[None, :]

    def zeros(self, q: Array) -> Array:
        """(k, ℓ) bool: which output units the directions `q` (k, b) leave without gradient."""
        return is_zero(self.noise_units(q))

    def angle_noise(self, q: Array) -> Array:
        """(k,): how far, in radians, noise may turn the directions `q` (k, b), a generous estimate."""
        xp = self.xp
        angle = (
            ANGLE_SIGMAS * math.sqrt(self.batch_size) * self.noise_norm(q) / xp.linalg.vector_norm(q, axis=-1)
        )
        return between(xp, angle, SMALLEST_ANGLE, LARGEST_ANGLE)

    def live_of(self, rows: Array) -> Array:
        """Those of `rows` (m, …) that are live: (ℓ, …)."""
        return self.xp.take(rows, self.live, axis=0)

    def whole(self, live_rows: Array) -> Array:
        """(m, r): `live_rows` (ℓ, r) in their places, zero elsewhere."""
        spread = scatter_columns(self.xp.matrix_transpose(live_rows), self.live, self.shape[0])
        return self.xp.matrix_transpose(spread)

    def expand(self, live_mask: Array) -> Array:
        """(m, k) bool from a mask (k, ℓ) over the live rows: false elsewhere."""
        spread = scatter_columns(self.xp.astype(live_mask, self.xp.float64), self.live, self.shape[0])
        return spread.T > 0.5
