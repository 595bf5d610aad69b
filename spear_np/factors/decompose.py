"""Singular vectors as sharp as products are, whatever a decomposition leaves.

LAPACK's are off by some roundings, by tens of them in some builds, and those of other devices by more. In a float64 gradient
nothing but rounding hides the zeros: singular vectors that are off by 1e-14 hide all of them.
"""

from __future__ import annotations

import array_api_compat

from ..arrays import Array, Namespace
from ..backend.algebra import OWN_ROUNDING, inverse_or_pseudoinverse
from .singular import SEPARATED, orthonormal, thin_svd

ABSORBED = 64 * OWN_ROUNDING
"""Share of a singular value up to which what nearly equal ones leave over goes into the left vectors, which it takes from orthogonal.

Derived: a decomposition is off by some tens of roundings, see `rank.OWN_ERROR`. Measured: of 8 orthonormal inputs whose norms differ by 1e-16 to
1e-9, directions were off by 49 roundings without it, and are by 5 with it; a bound of 31 promised otherwise.
"""


def sharp_svd(xp: Namespace, matrix: Array) -> tuple[Array, Array, Array]:
    """U (m, b), S (b,), Vᵀ (b, b) of a float64 `matrix` (m, b), m ≥ b: the singular value decomposition, refined once.

    References
    ----------
    .. [1] Ogita, Aishima, "Iterative refinement for singular value decomposition based on matrix multiplication", J. Comput.
       Appl. Math. 369 (2020) 112512, for square matrices: here the R of a QR decomposition.
    """
    Q, R = xp.linalg.qr(matrix)
    U, _, transposed = thin_svd(xp, R)
    V = transposed.T
    one = xp.eye(R.shape[0], dtype=R.dtype, device=array_api_compat.device(R))
    left, right, turned = one - U.T @ U, one - V.T @ V, U.T @ R @ V
    S = xp.linalg.diagonal(turned) / (1 - (xp.linalg.diagonal(left) + xp.linalg.diagonal(right)) / 2)
    off = xp.max(xp.abs(turned - one * S)) + xp.max(S) * (xp.max(xp.abs(left)) + xp.max(xp.abs(right)))
    equal = xp.abs(S[None, :] - S[:, None]) <= SEPARATED * off
    gap = xp.where(equal, xp.ones_like(turned), (S[None, :] - S[:, None]) * (S[None, :] + S[:, None]))
    along, across = turned + left * S[None, :], turned.T + right * S[None, :]
    to_left = xp.where(equal, left / 2, (along * S[None, :] + across * S[:, None]) / gap)
    to_right = xp.where(equal, right / 2, (along * S[:, None] + across * S[None, :]) / gap)
    U, V = orthonormal(xp, U + U @ to_left, one), orthonormal(xp, V + V @ to_right, one)
    # Vectors of equal values are any basis, but U diag(S) Vᵀ must be the matrix: what is off goes into U.
    rest = U.T @ R @ V * (1 - one)
    small = equal & (xp.abs(rest) <= ABSORBED * xp.abs(S)[None, :])
    rest = xp.where(small, rest, xp.zeros_like(rest)) / xp.where(S != 0, S, xp.ones_like(S))[None, :]
    return Q @ (U + U @ rest), xp.abs(S), V.T


def sharp_row_space(xp: Namespace, rows: Array, left: Array, values: Array) -> tuple[Array, Array]:
    """T (m, b) and an orthonormal basis rowsᵀ T (n, b) of what the leading singular vectors of `rows` (m, n) span.

    Half a step of subspace iteration from the singular vectors `left` (m, b) with their `values` (b,): what is left is the
    rounding of one product.
    """
    weights = left / values
    Q, R = xp.linalg.qr(xp.matrix_transpose(rows) @ weights)
    return weights @ inverse_or_pseudoinverse(xp, R), Q
