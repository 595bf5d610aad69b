"""Null spaces of the rows of many candidates at once, without a decomposition of any of them."""

from __future__ import annotations

from dataclasses import dataclass

import array_api_compat
import numpy as np

from ..arrays import Array, Namespace
from ..backend.algebra import TINIEST
from ..factors.row_space import RowSpace
from ..positive import orthonormalised, positive

NULL_BLOCK = 3
"""Null vectors followed at once.

Derived: three tell nullity one from two from more.
"""
GRAM_RIDGE = 1e-15
"""Share of its trace that is added to a Gram matrix before it is inverted.

Derived: the rounding of float64; one refinement from the rows themselves takes it back.
"""


@dataclass(frozen=True, eq=False)
class NullSpace:
    """The null spaces of the zero rows of k candidates, as far as w vectors show them."""

    basis: Array
    """(k, w, b): vectors of least energy first, orthonormal after division by S."""
    energy: Array
    """(k, w): mean square of the products with the zero rows, in noise units; about 1 or less for a
    true null vector, above `ZERO_SIGMAS`² for a direction that some row tells apart."""

    def only(self, index: Array) -> NullSpace:
        """Those of the candidates `index`."""
        xp: Namespace = array_api_compat.array_namespace(index)
        return NullSpace(xp.take(self.basis, index, axis=0), xp.take(self.energy, index, axis=0))


def null_space(space: RowSpace, order: Array, counts: Array, width: int = NULL_BLOCK) -> NullSpace:
    """Null spaces of the first ``counts[i]`` rows of ``order[i]``, for a block of candidates.

    Parameters
    ----------
    order : (k, r) int array
        Row indices of U, the rows to use first.
    counts : (k,) int array
        How many of them to use.
    width : int
        Vectors to follow, as far as there are so many.

    Notes
    -----
    Minimises ‖U_Z q‖² / ‖q/S‖², the noise-weighted total least squares problem, by block inverse iteration on
    H = U_Zᵀ U_Z with the metric S⁻². H is formed once; its rounding would limit the null vector to eps·cond(H),
    so one step of refinement follows whose residual is taken from U_Z itself.
    """
    xp = space.xp
    k, r = order.shape
    b = space.batch_size
    used = xp.arange(r, device=space.device.handle)[None, :] < counts[:, None]
    rows = space.rows(order, used)
    transposed = xp.matrix_transpose(rows)
    H = transposed @ rows
    ridge = GRAM_RIDGE * xp.sum(xp.linalg.diagonal(H), axis=1) + TINIEST
    system = positive(xp, H + ridge[:, None, None] * space.device.eye(b)[None, :, :])
    width = min(width, b)
    start = space.device.normal(np.random.default_rng(b), (b, width))
    metric = (1 / space.S**2)[None, :, None]
    X = xp.broadcast_to(start[None, :, :], (k, b, width))
    for _ in range(3):
        X = orthonormalised(xp, system.solve(metric * X))
    X = X - system.solve(transposed @ (rows @ X))
    # Rayleigh-Ritz in the metric of the noise.
    X = space.S[None, :, None] * orthonormalised(xp, X / space.S[None, :, None])
    product = rows @ X
    energy, turn = xp.linalg.eigh(xp.matrix_transpose(product) @ product)
    basis = xp.matrix_transpose(X @ turn)
    return NullSpace(basis, energy / xp.astype(xp.maximum(counts, xp.ones_like(counts)), xp.float64)[:, None])
