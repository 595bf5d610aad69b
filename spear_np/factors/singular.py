"""Singular values and vectors: the library's, or, where it takes a card's matrices one by one, those of a few Gram matrices."""

from __future__ import annotations

import array_api_compat
import numpy as np

from ..arrays import SVD, Array, Namespace
from ..backend.algebra import OWN_ROUNDING, decomposes_slowly, eigenvectors
from ..backend.host import to_host
from ..positive import positive

SEPARATED = 1e4
"""Errors of a decomposition that two singular values must be apart for their vectors to be turned towards each other.

Derived: the turn is by no more than 1/`SEPARATED` then, and taken to first order off from orthogonal by the square of that, which one step
of Newton and Schulz squares again: 1e-16, rounding. Vectors of values that are closer are nearly any basis of what they span together.
"""
SVD_ERROR = 1e-14
"""Singular value, relative to the largest, that float64 cannot tell from zero.

Derived: backward stability of the SVD, with some margin.
"""
IN_SIGHT = 1e-3
"""Singular value, relative to the largest, that the eigenvectors of a Gram matrix tell from others; smaller ones take another one.

Derived: squared it is 1e-6, 1e10 times the rounding, so that values a millionth apart are turned off each other (`SEPARATED`). Those
that are nearer to each other, and near to the edge of sight, may be left more than `SVD_ERROR` off: the library decomposes these.
"""
MOST_GRAMS = 6
"""Gram matrices that a decomposition takes, at most.

Derived: `IN_SIGHT` to that power is below the rounding.
"""


def thin_svd(xp: Namespace, matrices: Array) -> SVD:
    """Singular value decomposition of `matrices` (…, r, b), as ``svd(matrices, full_matrices=False)`` of the library.

    Where the library is slow at it, by `svd_by_gram`, and by the library what that cannot vouch for.
    """
    if not decomposes_slowly(xp, matrices):
        return xp.linalg.svd(matrices, full_matrices=False)
    if matrices.shape[-2] < matrices.shape[-1]:
        U, S, transposed = thin_svd(xp, xp.matrix_transpose(matrices))
        return SVD(xp.matrix_transpose(transposed), S, xp.matrix_transpose(U))
    found, error = svd_by_gram(xp, matrices)
    sure = to_host(error) <= SVD_ERROR
    if np.all(sure):
        return found
    if matrices.ndim == 2:
        return xp.linalg.svd(matrices, full_matrices=False)
    each = [
        SVD(*(part[row, ...] for part in found))
        if known
        else xp.linalg.svd(matrices[row, :, :], full_matrices=False)
        for row, known in enumerate(sure.tolist())
    ]
    return SVD(*(xp.stack([one[place] for one in each]) for place in range(len(found))))


def singular_values(xp: Namespace, matrix: Array) -> Array:
    """Singular values of `matrix` (r, b), largest first."""
    return thin_svd(xp, matrix).S if decomposes_slowly(xp, matrix) else xp.linalg.svdvals(matrix)


def right_singular(xp: Namespace, columns: Array) -> tuple[Array, Array]:
    """Singular values (…, b), largest first, and right singular vectors (…, b, b), as rows, of tall `columns` (…, r, b)."""
    if decomposes_slowly(xp, columns) and columns.shape[-2] >= columns.shape[-1]:
        return thin_svd(xp, columns)[1:]
    return xp.linalg.svd(xp.linalg.qr(columns).R)[1:]


def pseudoinverse(xp: Namespace, matrix: Array) -> Array:
    """Pseudoinverse (b, r) of `matrix` (r, b); singular values count as zero as they do for the library."""
    if not decomposes_slowly(xp, matrix):
        return xp.linalg.pinv(matrix)
    U, S, transposed = thin_svd(xp, matrix)
    there = max(matrix.shape) * OWN_ROUNDING * xp.max(S) < S
    inverse = xp.where(there, 1 / xp.where(there, S, xp.ones_like(S)), xp.zeros_like(S))
    return (transposed.T * inverse) @ U.T


def spectral_norm(xp: Namespace, matrices: Array) -> Array:
    """(k,): largest singular values of `matrices` (k, r, b)."""
    if not decomposes_slowly(xp, matrices):
        return xp.linalg.matrix_norm(matrices, ord=2)
    return xp.sqrt(xp.max(xp.linalg.eigvalsh(xp.matrix_transpose(matrices) @ matrices), axis=1))


def svd_by_gram(xp: Namespace, matrices: Array) -> tuple[SVD, Array]:
    """Singular value decompositions of float64 `matrices` (…, r, b), r ≥ b, by eigenvectors; and how far each is off (…).

    That is the largest difference from one in a column of A V and U S, beside the largest singular value, or in an entry of UᵀU or
    VᵀV: what backward stability bounds of any decomposition.

    Notes
    -----
    A Gram matrix shows singular values down to the root of the rounding. Those below `IN_SIGHT` are taken from another, of the
    matrix times the vectors that are left, and so on. In each, values that are close are told apart as well as any are;
    what rounding leaves between distant ones is turned away, to first order, by the products of A V themselves.
    """
    largest = xp.max(xp.abs(matrices), axis=(-2, -1), keepdims=True)
    scale = xp.where(largest > 0, largest, xp.ones_like(largest))
    A = matrices / scale
    one = xp.eye(A.shape[-1], dtype=A.dtype, device=array_api_compat.device(A))
    V = _right_vectors(xp, A, one)
    S = xp.linalg.vector_norm(A @ V, axis=-2)
    order = xp.argsort(-S, axis=-1)
    S = xp.take_along_axis(S, order, axis=-1)
    V = xp.take_along_axis(V, xp.broadcast_to(order[..., None, :], V.shape), axis=-1)
    W = A @ V
    # The vectors of smaller values make no difference: any will do that complete the others.
    seen = SVD_ERROR / 2 * S[..., :1] < S
    U = _orthonormal_in_order(xp, W / _or_one(xp, S)[..., None, :], seen)
    U = U if bool(xp.all(seen)) else _completed(xp, U, seen, one)
    error = xp.max(xp.linalg.vector_norm(W - U * S[..., None, :], axis=-2), axis=-1) / _or_one(xp, S[..., 0])
    for columns in (U, V):
        off = xp.abs(xp.matrix_transpose(columns) @ columns - one)
        error = xp.maximum(error, xp.max(off, axis=(-2, -1)))
    return SVD(U, S * scale[..., 0], xp.matrix_transpose(V)), error


def _right_vectors(xp: Namespace, A: Array, one: Array) -> Array:
    """(…, b, b): right singular vectors of `A` (…, r, b), as columns, in no order; `one` is the identity."""
    V = xp.broadcast_to(one, (*A.shape[:-2], *one.shape))
    known = V[..., 0, :] != V[..., 0, :]  # none
    # Eigenvalues for what is known already, descending, above those of any matrix of trace one.
    above = 3 - xp.cumulative_sum(xp.linalg.diagonal(one)) / one.shape[0]
    for number in range(MOST_GRAMS):
        if number:
            V = _turned(xp, A, V, known[..., :, None] != known[..., None, :])
        W = A @ V
        length = xp.linalg.vector_norm(W, axis=-2)
        left = xp.max(xp.where(known, xp.zeros_like(length), length), axis=-1, keepdims=True)
        if not bool(xp.any(left > OWN_ROUNDING * xp.max(length, axis=-1, keepdims=True))):
            break
        W = xp.where(known[..., None, :], xp.zeros_like(W), W / _or_one(xp, left)[..., None, :])
        gram = xp.matrix_transpose(W) @ W
        trace = xp.sum(xp.linalg.diagonal(gram), axis=-1)[..., None, None]
        gram = gram / _or_one(xp, trace) + one * xp.where(known, above, xp.zeros_like(above))[..., None, :]
        values, turn = (xp.flip(part, axis=-1) for part in eigenvectors(xp, gram))
        V = V @ xp.where(known[..., :, None] | known[..., None, :], one, turn)
        first = xp.max(xp.where(known, xp.zeros_like(values), values), axis=-1, keepdims=True)
        known = known | (values >= IN_SIGHT**2 * first)
    return _turned(xp, A, _turned(xp, A, orthonormal(xp, V, one)))


def _or_one(xp: Namespace, values: Array) -> Array:
    """`values`, one in the place of zero."""
    return xp.where(values > 0, values, xp.ones_like(values))


def _turned(xp: Namespace, A: Array, V: Array, among: Array | None = None) -> Array:
    """`V` (…, b, b) turned so that the columns of ``A V`` are orthogonal, to first order; of all pairs, or those `among` (…, b, b)."""
    W = A @ V
    product = xp.matrix_transpose(W) @ W
    squares = xp.linalg.diagonal(product)
    gap = squares[..., None, :] - squares[..., :, None]
    turns = (gap != 0) & (SEPARATED * xp.abs(product) <= xp.abs(gap))
    turns = turns if among is None else turns & among
    turn = xp.where(turns, product / xp.where(turns, gap, xp.ones_like(gap)), xp.zeros_like(gap))
    one = xp.eye(V.shape[-1], dtype=V.dtype, device=array_api_compat.device(V))
    return orthonormal(xp, V + V @ turn, one)


def _orthonormal_in_order(xp: Namespace, nearly: Array, which: Array) -> Array:
    """Unit columns `nearly` (…, r, b) made orthogonal to those before them, to first order and again; zero but for `which` (…, b).

    The first, of the largest singular values, stay where they are: a little of them in the last ones is what rounding leaves there.
    """
    columns = xp.where(which[..., None, :], nearly, xp.zeros_like(nearly))
    for _ in range(3):
        columns = columns - columns @ xp.triu(xp.matrix_transpose(columns) @ columns, k=1)
        columns = columns / _or_one(xp, xp.linalg.vector_norm(columns, axis=-2, keepdims=True))
    return columns


def _completed(xp: Namespace, columns: Array, known: Array, one: Array) -> Array:
    """Orthonormal `columns` (…, r, b), zero but for those that are `known` (…, b), with others in the place of zero."""
    drawn = np.random.default_rng(0).standard_normal(columns.shape[-2:])
    there = known[..., None, :]
    rest = xp.where(there, xp.zeros_like(columns), xp.asarray(drawn, device=array_api_compat.device(columns)))
    for _ in range(3):  # what is left of them in little room may be nearly dependent
        rest = rest - columns @ (xp.matrix_transpose(columns) @ rest)
        gram = xp.matrix_transpose(rest) @ rest + one * xp.astype(there, one.dtype)
        factor = positive(xp, xp.reshape(gram, (-1, *one.shape))).inverse_factor
        rest = rest @ xp.matrix_transpose(xp.reshape(factor, gram.shape))
    return xp.where(there, columns, rest)


def orthonormal(xp: Namespace, nearly: Array, one: Array) -> Array:
    """Columns that are orthonormal but for a little, without its first order: one step of Newton and Schulz from `one`, the identity."""
    return nearly + nearly @ (one - xp.matrix_transpose(nearly) @ nearly) / 2
