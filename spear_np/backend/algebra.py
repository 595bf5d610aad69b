"""Operations on arrays that the array API standard lacks, or that libraries are slow at in different ways."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat
import numpy as np

from ..arrays import Array, HostArray, Namespace
from .devices import Device
from .host import to_host

TINIEST = 1e-300
"""Stands for zero where something is divided by it, or takes its place.

Derived: its inverse, and its product with any number of this package, stay in the range of float64.
"""


OWN_ROUNDING = float(np.finfo(np.float64).eps)
"""Relative error of a number by our own arithmetic: smaller steps are no progress, and smaller parts of a sum are lost.

Derived: one rounding in float64.
"""


def contiguous(xp: Namespace, array: Array) -> Array:
    """`array` with its last axis next to each other in memory, as kernels read it; a copy only if it is not yet."""
    if array_api_compat.is_cupy_namespace(xp):
        import cupy

        made: Array = cupy.ascontiguousarray(array)
        return made
    if array_api_compat.is_numpy_namespace(xp):
        return np.ascontiguousarray(array)
    return array


def stacked(device: Device, arrays: Sequence[Array]) -> Array:
    """(s, …): `arrays` of `device`, of two axes and one dtype, side by side and filled up with zeros; a view of a single one."""
    if len(arrays) == 1:
        return arrays[0][None, :, :]
    shape = [max(array.shape[axis] for array in arrays) for axis in range(2)]
    stack = device.xp.zeros((len(arrays), *shape), dtype=arrays[0].dtype, device=device.handle)
    for place, array in enumerate(arrays):
        stack[place, : array.shape[0], : array.shape[1]] = array
    return stack


def product(xp: Namespace, left: Array, right: Array, out: Array | None) -> Array:
    """Product of matrices or of stacks, written into `out` if that has its shape and the library can: no memory is asked for in a loop."""
    if out is None or out.shape[-2:] != (left.shape[-2], right.shape[-1]):
        return xp.matmul(left, right)
    if array_api_compat.is_numpy_namespace(xp):
        return xp.matmul(left, right, out=out)
    if array_api_compat.is_cupy_namespace(xp):
        if left.ndim == 3 and left.shape[0] == 1:  # what is no stack is multiplied the faster way
            xp.matmul(left[0, :, :], right[0, :, :], out=out[0, :, :])
            return out
        return xp.matmul(left, right, out=out)
    return xp.matmul(left, right)


def erf(xp: Namespace, values: Array) -> Array:
    """Error function of `values`, in their dtype; through the host where the library has none."""
    if array_api_compat.is_cupy_namespace(xp):
        from cupyx.scipy.special import erf as cupy_erf

        made: Array = cupy_erf(values)
        return made
    from scipy.special import erf as scipy_erf  # slow to import, needed for one activation

    if array_api_compat.is_numpy_namespace(xp):
        host: HostArray = scipy_erf(to_host(values))
        return host
    return xp.asarray(scipy_erf(to_host(values)), device=array_api_compat.device(values))


def triangular_factor(xp: Namespace, matrix: Array) -> Array:
    """R of the QR decomposition of (rows, columns) `matrix`, without forming Q where the library can."""
    if array_api_compat.is_numpy_namespace(xp):
        return np.asarray(np.linalg.qr(matrix, mode="r"))
    if array_api_compat.is_cupy_namespace(xp):
        import cupy

        factor: Array = cupy.linalg.qr(matrix, mode="r")
        return factor
    return xp.linalg.qr(matrix).R


CUPY_BATCHED = 256
"""Columns up to which CuPy solves a stack at once; larger systems go one by one.

Derived: the limit of `cupyx.set_batched_gesv_limit`.
"""


CUPY_BATCHED_SVD = 32
"""Rows and columns up to which CuPy decomposes a stack into singular values at once; larger ones go one by one.

Derived: the limit of cuSOLVER's `gesvdjBatched`.
"""


def decomposes_slowly(xp: Namespace, matrices: Array) -> bool:
    """Whether the library finds eigenvectors of a few Gram matrices in less time than singular vectors of `matrices` (…, r, b).

    On a GPU: above a size it does the latter one matrix after the other, in steps that wait for each other.
    """
    return bool(array_api_compat.is_cupy_namespace(xp)) and max(matrices.shape[-2:]) > CUPY_BATCHED_SVD


def eigenvectors(xp: Namespace, matrices: Array) -> tuple[Array, Array]:
    """Eigenvalues (…, b), ascending, and eigenvectors (…, b, b), as columns, of symmetric `matrices` (…, b, b).

    CuPy takes stacks by the method of Jacobi, which is slow where there is a single matrix in one.
    """
    if array_api_compat.is_cupy_namespace(xp) and matrices.ndim == 3 and matrices.shape[0] == 1:
        values, vectors = xp.linalg.eigh(matrices[0, :, :])
        return values[None, :], vectors[None, :, :]
    values, vectors = xp.linalg.eigh(matrices)
    return values, vectors


def solve_by_inverse(xp: Namespace, matrices: Array, right: Array) -> Array:
    """As `solve_or_nan`, by inverses, which CuPy computes at once whatever their size, and a step of refinement."""
    inverse = xp.linalg.inv(matrices)
    solution = inverse @ right
    return solution + inverse @ (right - matrices @ solution)


def solve_or_nan(xp: Namespace, matrices: Array, right: Array) -> Array:
    """Solve a stack of square systems; where the library refuses a singular one, its answer is NaN.

    `matrices` (..., r, r), `right` (..., r, p); returns (..., r, p). LAPACK's callers raise for the whole stack
    when one matrix is exactly singular, CUDA's return non-finite numbers for that one: this makes them alike.
    """
    if array_api_compat.is_cupy_namespace(xp) and matrices.ndim > 2 and matrices.shape[-1] > CUPY_BATCHED:
        return solve_by_inverse(xp, matrices, right)
    try:
        return xp.linalg.solve(matrices, right)
    except np.linalg.LinAlgError:
        pass
    # Exact singularity is rare (repeated rows): find the culprits by their LU determinant, replace them.
    sign, _ = xp.linalg.slogdet(matrices)
    singular = (sign == 0)[..., None, None]
    size = matrices.shape[-1]
    identity = xp.eye(size, dtype=matrices.dtype, device=array_api_compat.device(matrices))
    solution = xp.linalg.solve(xp.where(singular, identity, matrices), right)
    return xp.where(singular, xp.full_like(solution, float("nan")), solution)


def reported_failures(xp: Namespace) -> AbstractContextManager[Any]:
    """Make a decomposition that fails raise `numpy.linalg.LinAlgError`: CuPy hands back what it has, unless it is asked."""
    if array_api_compat.is_cupy_namespace(xp):
        from cupyx import errstate

        raising: AbstractContextManager[Any] = errstate(linalg="raise")
        return raising
    return nullcontext()


def inverse_or_pseudoinverse(xp: Namespace, matrix: Array) -> Array:
    """Inverse of square matrices; the pseudoinverse where the library finds one singular, or its inverse overflows.

    What holds NaN or infinity has no inverse, and gives NaN.
    """
    try:
        inverse = xp.linalg.inv(matrix)
        if bool(xp.all(xp.isfinite(inverse))):
            return inverse
    except np.linalg.LinAlgError:
        pass
    if not bool(xp.all(xp.isfinite(matrix))):
        return xp.full_like(matrix, float("nan"))
    return xp.linalg.pinv(matrix)


def least_squares(xp: Namespace, columns: Array, right: Array) -> Array:
    """(f, p): the combinations of independent `columns` (b, f), f ≤ b, that are nearest to those of `right` (b, p)."""
    Q, R = xp.linalg.qr(columns)
    return inverse_or_pseudoinverse(xp, R) @ (Q.T @ right)


def inverse_or_zero(xp: Namespace, gram: Array) -> Array:
    """Inverse of a stack (k, u, u) of float64 normal equations; zero for those that leave a direction open.

    An eigenvalue below the rounding of the largest is no smaller than that rounding once it is computed: its inverse would
    pass for something that is known.
    """
    size = int(gram.shape[1])
    identity = xp.eye(size, dtype=gram.dtype, device=array_api_compat.device(gram))
    inverse = solve_or_nan(xp, gram, xp.broadcast_to(identity[None, :, :], gram.shape))
    norms = [xp.max(xp.sum(xp.abs(one), axis=2), axis=1) for one in (gram, inverse)]
    condition = norms[0] * norms[1]
    determined = condition < 1 / (size * OWN_ROUNDING)  # false for NaN
    return xp.where(determined[:, None, None], inverse, xp.zeros_like(inverse))


def orthogonal_complement(xp: Namespace, vectors: Array) -> Array:
    """(b, b-f): orthonormal basis, as columns, of what is orthogonal to the independent columns `vectors` (b, f)."""
    return xp.linalg.qr(vectors, mode="complete").Q[:, vectors.shape[1] :]


def between(xp: Namespace, values: Array, low: float, high: float) -> Array:
    """`values`, those below `low` or above `high` replaced by these: `clip` without its checks, which wait for a GPU."""
    if array_api_compat.is_numpy_namespace(xp):
        return np.clip(values, low, high)
    return xp.minimum(xp.maximum(values, low), high)


def smallest(xp: Namespace, values: Array, count: int) -> Array:
    """Indices (k, count) of the `count` smallest entries in each row of `values` (k, m), in no order."""
    if array_api_compat.is_numpy_namespace(xp):
        return np.argpartition(values, count - 1, axis=-1)[..., :count]
    if array_api_compat.is_cupy_namespace(xp):
        import cupy

        order: Array = cupy.argpartition(values, count - 1, axis=-1)
        return order[..., :count]
    return xp.argsort(values, axis=-1)[..., :count]


def gather(xp: Namespace, matrix: Array, indices: Array) -> Array:
    """Rows of `matrix` (m, b) picked by `indices` (k, r): (k, r, b)."""
    k, r = indices.shape
    return xp.reshape(xp.take(matrix, xp.reshape(indices, (-1,)), axis=0), (k, r, matrix.shape[1]))


def scatter_columns(values: Array, indices: Array, size: int) -> Array:
    """(k, size) array with the columns of `values` (k, r) at the ascending `indices` (r,), zero elsewhere."""
    xp: Namespace = array_api_compat.array_namespace(values)
    device = array_api_compat.device(values)
    every = xp.arange(size, dtype=indices.dtype, device=device)
    place = between(xp, xp.searchsorted(indices, every), 0, indices.shape[0] - 1)
    taken = xp.take(values, place, axis=1)
    present = xp.take(indices, place) == every
    return xp.where(present[None, :], taken, xp.zeros_like(taken))


def rows_of(values: Array, rows: Array) -> Array:
    """(r, …): the rows of `values` (k, …) at the ascending places `rows` (r,); a copy, unless they are all there are."""
    if rows.shape[0] == values.shape[0]:
        return values
    xp: Namespace = array_api_compat.array_namespace(values)
    return xp.take(values, rows, axis=0)


def replace_rows(values: Array, rows: Array, new: Array) -> Array:
    """`values` (k, …) with the rows of `new` (r, …) at the ascending places `rows` (r,)."""
    if rows.shape[0] == values.shape[0]:
        return new
    xp: Namespace = array_api_compat.array_namespace(values)
    every = xp.arange(values.shape[0], dtype=rows.dtype, device=array_api_compat.device(values))
    place = between(xp, xp.searchsorted(rows, every), 0, rows.shape[0] - 1)
    present = xp.take(rows, place) == every
    present = xp.reshape(present, (-1, *(1 for _ in values.shape[1:])))
    return xp.where(present, xp.take(new, place, axis=0), values)
