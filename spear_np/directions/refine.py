"""The maximum-likelihood directions, given which gradients are zero.

With every row divided by its noise, weight_grad V = D C + N: N of unit variance, D zero off its support, C the inputs in
V. With D fitted, what row a_j leaves unexplained follows from its zero entries t_j = a_j Y, Y = C⁻¹, and their covariance
K = YᵀY:

    f(Y) = Σ_j t_j,off (K_off,off)⁻¹ t_j,offᵀ

Null vectors, a column at a time, minimise that sum without the off-diagonal entries of K, as if the noise of a row were
another one in each column. Alternating least squares minimises all of it, but hardly moves along the directions that mix
two inputs, which are what is uncertain. Gauss-Newton steps Y ← Y (1 + E) do.
"""

from __future__ import annotations

from collections.abc import Callable

from ..arrays import Array, Namespace
from ..backend.algebra import TINIEST, inverse_or_pseudoinverse, solve_or_nan
from ..backend.work import blocks, one_by_one
from ..factors.factorize import Factors
from ..factors.row_space import RowSpace
from .disaggregate import Disaggregation, disaggregate
from .support import restricted, zero_support

STEPS = 4
"""Gauss-Newton steps, each with the support that the signs before it tell.

Heuristic: convergence is quadratic, and a step that does not lower f is not taken.
"""
CONJUGATE_STEPS = 30
"""Steps of conjugate gradients for one Gauss-Newton step, at most.

Heuristic: `CONVERGED` is reached before.
"""
CONVERGED = 1e-3
"""Share of the slope at which the linear system of a step counts as solved.

Heuristic: the next Gauss-Newton step mends what is left.
"""
COVARIANCE_NUMBERS = 40_000_000
"""Entries of the inverse covariances of all rows beyond which each column is fitted by itself.

Heuristic: 320 MB; columns by themselves are less accurate, see tests/test_refine.py.
"""
SYSTEM_RIDGE = 1e-10
"""Regularisation of the columns' systems, in units of their mean diagonal.

Heuristic: far above the rounding of float64, far below what the system holds.
"""


def refined(factors: Factors, choice: Disaggregation) -> Disaggregation:
    """Return `choice` with the directions that minimise f; unchanged where rounding is the only noise.

    A step is taken only if it lowers f at the support it was made for.
    """
    space, xp = factors.space, factors.space.xp
    if not space.noisy or choice.sign_agreement is None or space.batch_size == 1:
        return choice
    rows = space.U * space.S
    for _ in range(STEPS):
        off = space.live_of(zero_support(factors, choice.q, choice.input_coords))
        Y = gauss_newton_step(space, rows, (choice.q / space.S).T, xp.astype(off, xp.float64))
        if Y is None:
            break
        choice = disaggregate(factors, Y.T * space.S, lenient=choice.lenient)
    return choice


def gauss_newton_step(space: RowSpace, rows: Array, Y: Array, off: Array) -> Array | None:
    """Y (b, b) after one Gauss-Newton step; None if that does not lower f.

    `rows` (ℓ, b) are those of weight_grad V in noise units, `off` (ℓ, b) is 1 where an entry of D is zero.
    """
    xp = space.xp
    Y = Y / xp.linalg.vector_norm(Y, axis=0)
    covariance, weigh = _weighing(space, Y, off)
    t = rows @ Y
    zeros = t * off
    weighted = weigh(zeros)
    on = (t - weighted @ covariance) * (1 - off)  # ∂L/∂Z as fitted
    mixed = 1 - space.device.eye(Y.shape[0])
    slope = (on.T @ weighted) * mixed
    before = float(xp.sum(zeros * weighted))

    def curvature(E: Array) -> Array:
        return (on.T @ weigh((on @ E) * off)) * mixed

    E = _conjugate_gradients(xp, curvature, _preconditioner(space, on, off), -slope)
    moved = Y + Y @ E
    moved = moved / xp.linalg.vector_norm(moved, axis=0)
    if not bool(xp.all(xp.isfinite(moved))):
        return None
    zeros = (rows @ moved) * off
    after = float(xp.sum(zeros * _weighing(space, moved, off)[1](zeros)))
    return moved if after < before else None


def _weighing(space: RowSpace, Y: Array, off: Array) -> tuple[Array, Callable[[Array], Array]]:
    """K (b, b), and what multiplies each row of an (ℓ, b) array, zero where `off` is, by (K_off,off)⁻¹ of that row.

    For layers so large that each column is fitted by itself, K has nothing off its diagonal.
    """
    xp, b = space.xp, Y.shape[1]
    covariance, eye = Y.T @ Y, space.device.eye(b)
    if off.shape[0] * b * b > COVARIANCE_NUMBERS:
        diagonal = xp.linalg.diagonal(covariance)
        return covariance * eye, lambda values: values / diagonal
    system = restricted(space.device, covariance, off)
    inverse = solve_or_nan(xp, system, xp.broadcast_to(eye[None, :, :], system.shape))
    return covariance, lambda values: (inverse @ values[:, :, None])[:, :, 0] * off


def _preconditioner(space: RowSpace, on: Array, off: Array) -> Callable[[Array], Array]:
    """What solves the system of each column of E (b, b) by itself, for columns of Y of length one."""
    xp, b = space.xp, on.shape[1]
    eye = space.device.eye(b)

    def normal(part: slice) -> Array:
        zeros = xp.matrix_transpose(off[:, part])
        return on.T[None, :, :] @ (on[None, :, :] * zeros[:, :, None])

    parts = blocks(space.device, b, on.shape[0] * b)
    system = xp.concat(one_by_one(space.device, normal, parts), axis=0)
    # A column has no share of itself to be solved for.
    mixed = (1 - eye)[:, :, None] * (1 - eye)[:, None, :]
    size = xp.sum(xp.linalg.diagonal(system), axis=1) / b
    ridge = (SYSTEM_RIDGE * size + TINIEST)[:, None, None] * eye[None, :, :]
    inverse = inverse_or_pseudoinverse(
        xp, system * mixed + ridge + eye[:, :, None] * eye[:, None, :] * size[:, None, None]
    )
    return lambda values: xp.matrix_transpose((inverse @ values.T[:, :, None])[:, :, 0])


def _conjugate_gradients(
    xp: Namespace, multiply: Callable[[Array], Array], precondition: Callable[[Array], Array], right: Array
) -> Array:
    """Solution of a positive semidefinite system for a matrix of unknowns (Hestenes and Stiefel 1952)."""
    solution = xp.zeros_like(right)
    rest, direction = right, precondition(right)
    energy = float(xp.sum(rest * direction))
    target = CONVERGED**2 * energy
    for _ in range(CONJUGATE_STEPS):
        product = multiply(direction)
        curvature = float(xp.sum(direction * product))
        if not curvature > 0 or not energy > target:
            break
        solution = solution + (energy / curvature) * direction
        rest = rest - (energy / curvature) * product
        conditioned = precondition(rest)
        energy, previous = float(xp.sum(rest * conditioned)), energy
        direction = conditioned + (energy / previous) * direction
    return solution
