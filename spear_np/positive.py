"""Stacks of symmetric positive definite systems, solved by the inverses of their Cholesky factors.

A stack is factored, inverted and applied by products of stacks alone, the operations that every library is fast at:
`inv` and `solve` of a whole stack take an LU decomposition of each matrix, three times the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import array_api_compat
import numpy as np

from .arrays import Array, Namespace
from .backend.algebra import reported_failures

INVERTED_WHOLE = 32
"""Rows of a triangular matrix up to which it is inverted by the library; larger ones are inverted by halves.

Measured: at 20 rows the library takes 2 µs a matrix and halves twice that, at 64 rows 46 and 11 µs (one core, OpenBLAS).
"""
FORM_COLUMNS = 64
"""Columns of an inverse factor that a quadratic form is summed over at a time.

Heuristic: a third of the products with the zeros above the diagonal is left out, and blocks still fill a processor.
"""


@dataclass(frozen=True, eq=False)
class Positive:
    """A stack of k positive definite matrices H (r, r)."""

    inverse_factor: Array
    """(k, r, r): L⁻¹ of H = L Lᵀ, lower triangular; NaN where H is not positive definite."""

    def solve(self, right: Array) -> Array:
        """H⁻¹ `right` (k, r, p)."""
        xp: Namespace = array_api_compat.array_namespace(right)
        return xp.matrix_transpose(self.inverse_factor) @ (self.inverse_factor @ right)

    def forms(self, vectors: Array) -> Array:
        """(k, n): v · H⁻¹ v for the rows v of `vectors` (k or 1, n, r)."""
        xp: Namespace = array_api_compat.array_namespace(vectors)
        total = xp.zeros(vectors.shape[:2], dtype=vectors.dtype, device=array_api_compat.device(vectors))
        for start in range(0, vectors.shape[2], FORM_COLUMNS):
            stop = min(start + FORM_COLUMNS, vectors.shape[2])
            factor = xp.matrix_transpose(self.inverse_factor[:, start:stop, :stop])
            part = vectors[:, :, :stop] @ factor
            total = total + xp.vecdot(part, part)
        return total

    def trace_of_inverse(self) -> Array:
        """(k,): trace of H⁻¹, no less than any norm of it."""
        xp: Namespace = array_api_compat.array_namespace(self.inverse_factor)
        return xp.sum(self.inverse_factor**2, axis=(1, 2))

    def inverse(self) -> Array:
        """(k, r, r): H⁻¹."""
        xp: Namespace = array_api_compat.array_namespace(self.inverse_factor)
        return xp.matrix_transpose(self.inverse_factor) @ self.inverse_factor


def positive(xp: Namespace, matrices: Array) -> Positive:
    """Factor the symmetric `matrices` (k, r, r)."""
    return Positive(inverse_of_triangular(xp, cholesky_or_nan(xp, matrices)))


def cholesky_or_nan(xp: Namespace, matrices: Array) -> Array:
    """(k, r, r): lower triangular Cholesky factors; NaN for the `matrices` that have none."""
    with reported_failures(xp):
        try:
            return xp.linalg.cholesky(matrices)
        except np.linalg.LinAlgError:
            pass
        factors = []
        for row in range(matrices.shape[0]):
            one = matrices[row, :, :]
            try:
                factors.append(xp.linalg.cholesky(one))
            except np.linalg.LinAlgError:
                factors.append(xp.full_like(one, float("nan")))
    return xp.stack(factors)


def positive_definite(xp: Namespace, matrices: Array) -> Array:
    """(k,) bool: which of the symmetric `matrices` (k, r, r) have a Cholesky factor; none that holds NaN has."""
    return xp.all(xp.isfinite(cholesky_or_nan(xp, matrices)), axis=(1, 2))


def inverse_of_triangular(xp: Namespace, lower: Array) -> Array:
    """Inverses of lower triangular matrices (k, r, r), by halves: [[A, 0], [B, C]]⁻¹ = [[A⁻¹, 0], [-C⁻¹ B A⁻¹, C⁻¹]]."""
    size = lower.shape[1]
    if size <= INVERTED_WHOLE:
        return xp.linalg.inv(lower)
    half = size // 2
    first = inverse_of_triangular(xp, lower[:, :half, :half])
    last = inverse_of_triangular(xp, lower[:, half:, half:])
    below = -(last @ (lower[:, half:, :half] @ first))
    above = xp.zeros_like(xp.matrix_transpose(below))
    return xp.concat([xp.concat([first, above], axis=2), xp.concat([below, last], axis=2)], axis=1)


def orthonormalised(xp: Namespace, columns: Array) -> Array:
    """`columns` (k, r, p) made orthonormal, one after the other.

    By a QR decomposition where that is one call for the whole stack; where its matrices would be taken one at a time, as on a
    GPU, after Gram and Schmidt, twice: the first pass loses digits for nearly dependent columns, the second mends that.
    """
    if array_api_compat.is_numpy_namespace(xp):
        return xp.linalg.qr(columns).Q
    return by_gram_schmidt(xp, columns)


def by_gram_schmidt(xp: Namespace, columns: Array) -> Array:
    """As `orthonormalised`; what is zero outside the columns before it becomes a unit vector orthogonal to these."""
    none = columns[:, :, :0]
    basis = _unit(xp, columns[:, :, :1], _outside(xp, none))
    for number in range(1, columns.shape[2]):
        outside = _outside(xp, basis)
        rest = columns[:, :, number : number + 1]
        for _ in range(2):
            rest = _unit(xp, rest - basis @ (xp.matrix_transpose(basis) @ rest), outside)
        basis = xp.concat([basis, rest], axis=2)
    return basis


def _outside(xp: Namespace, basis: Array) -> Array:
    """(k, r, 1): a unit vector orthogonal to the orthonormal columns of `basis` (k, r, p), p < r."""
    axes = xp.arange(basis.shape[1], device=array_api_compat.device(basis))
    least = xp.argmin(xp.sum(basis**2, axis=2), axis=1)
    axis = xp.astype(axes[None, :] == least[:, None], basis.dtype)[:, :, None]
    rest = axis - basis @ (xp.matrix_transpose(basis) @ axis)
    return rest / xp.linalg.vector_norm(rest, axis=1, keepdims=True)


def _unit(xp: Namespace, columns: Array, otherwise: Array) -> Array:
    """`columns` (k, r, 1) of length one, those of none replaced by `otherwise` (k, r, 1)."""
    largest = xp.max(xp.abs(columns), axis=1, keepdims=True)  # squares of huge entries would overflow
    there = largest > 0
    columns = columns / xp.where(there, largest, xp.ones_like(largest))
    length = xp.linalg.vector_norm(columns, axis=1, keepdims=True)
    return xp.where(there, columns / xp.where(there, length, xp.ones_like(length)), otherwise)
