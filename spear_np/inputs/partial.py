"""Inputs of a batch of which only some directions are known: estimates and how far they can be off.

Two ways, and for each input the one with the smaller bound:

- *Weak rest.* With D_f the known columns, weight_grad = D_f X_f + M, M what the others add: small if they are faint,
  as examples that a trained network is sure of. Least squares gives ``X̂ = D_f⁺ weight_grad = X_f + D_f⁺ M``. What is
  seen of M is the residual ``(1 - D_f D_f⁺) M``; columns in general position hide no more than a modest share of
  themselves in the span of D_f, for which `HIDDEN_SHARE` allows: ``|row i of D_f⁺ M| ≤ |row i of D_f⁺| |M|``, for each
  feature. Tried where two thirds of the directions are known.
- *Signs.* The polytope of `polytope.bound_inputs`, whatever the others add.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array, HostArray
from ..backend.algebra import inverse_or_pseudoinverse, scatter_columns
from ..backend.host import to_host
from ..directions.disaggregate import HIDDEN_SHARE
from ..directions.uniqueness import uniqueness
from ..factors.factorize import Factors
from ..factors.row_space import RowSpace
from ..factors.singular import thin_svd
from .bounds import noise_bound
from .polytope import PartialInputs, bound_inputs

LARGEST_BOUND = 0.3
"""Bound, as a share of the largest entry of an input, up to which the others count as weak.

Definition: as `ROW_TOLERANCE` of a whole batch.
"""
LARGEST_LEVERAGE = 0.8
"""Leverage of a row in the fit by the known columns from which it decides the fit alone.

Heuristic: what such a row would leave if it were not fitted is five times what it leaves.
"""
LARGEST_PART = 0.5
"""Share of its energy that a column in the span of the rest may have on one unit.

Heuristic: inputs turn on many units.
"""
LEAST_SHARE = 0.15
"""Share of the gradients of every unknown combination that must lie on units which an input leaves off.

Heuristic: a half is usual for columns of other inputs.
"""
LEAST_AGREEMENT = 0.98
"""Share of the live units on which an estimate must have the signs of its pattern.

Heuristic: as `NEAR_AGREEMENT` of a whole batch.
"""


def partial_inputs(factors: Factors, q: Array) -> PartialInputs:
    """Estimate and bound the inputs behind the sound directions `q` (f, b), 0 < f < b.

    Needs bias_grad, which scales them, and W, whose signs they must have.
    """
    by_signs = bound_inputs(factors, q)
    coordinates, best = _weak_rest(factors, q)
    signs = np.zeros(len(best), dtype=np.bool_)
    for row, which in enumerate(by_signs.which):
        if not by_signs.error_bound[row] >= best[which]:
            coordinates[which], best[which] = by_signs.coordinates[row], by_signs.error_bound[row]
            signs[which] = True
    known = np.flatnonzero(np.isfinite(best))
    if len(known):
        best += _noise_bound(factors, q, factors.space.device.float64(coordinates))
        known = known[np.isfinite(best[known])]
    return PartialInputs(known, coordinates[known], best[known], signs[known])


def _noise_bound(factors: Factors, q: Array, coordinates: Array) -> HostArray:
    """(f,): what the noise of the known directions does to the inputs at `coordinates` (f, b) in V."""
    space = factors.space
    unique = uniqueness(space, q, coordinates / space.S, space.expand(space.zeros(q)))
    recovery = coordinates @ space.to_basis.T
    largest = space.device.zeros(q.shape[0])
    for _, (block,) in factors.gradients.blocks("weight_grad", device=space.device):
        largest = space.xp.maximum(largest, space.xp.max(space.xp.abs(recovery @ block), axis=1))
    return noise_bound(space, recovery, to_host(largest), np.zeros(q.shape[0]), unique)


def _weak_rest(factors: Factors, q: Array) -> tuple[HostArray, HostArray]:
    """Least-squares estimates (f, b) in V, and their bounds (f,), infinite where they bound nothing."""
    space, layer, xp, f = factors.space, factors.layer, factors.space.xp, q.shape[0]
    coordinates, nothing = np.zeros(q.shape), np.full(f, np.inf)
    if factors.bias_grad is None or layer is None or f < 2 * (space.batch_size - f):
        return coordinates, nothing
    fit = _fit(space, factors.bias_grad, space.columns(q))
    if fit is None:
        return coordinates, nothing
    columns, recovery, leverage = fit
    # A row that decides a fit leaves no residual, however much the others add to it: what it would leave if it were not
    # fitted counts.
    reach = xp.linalg.vector_norm(recovery / (1 - leverage)[None, :], axis=1)
    largest, rest = space.device.zeros(f), space.device.zeros(())
    for _, (block,) in factors.gradients.blocks("weight_grad", device=space.device):
        x = recovery @ block
        largest = xp.maximum(largest, xp.max(xp.abs(x), axis=1))
        rest = xp.maximum(rest, xp.max(xp.linalg.vector_norm(block - columns @ x, axis=0)))
    bias_rest = xp.linalg.vector_norm(factors.bias_grad - xp.sum(columns, axis=1))
    bound = HIDDEN_SHARE * to_host(reach * (rest + bias_rest * largest))
    dual = recovery @ space.coordinates
    z = space.live_of(layer.preactivations(dual)).T
    agree = layer.states(z)[0] == ~space.zeros(q)
    agreement = to_host(xp.sum(xp.astype(agree, xp.float64), axis=1)) / agree.shape[1]
    weak = (bound <= LARGEST_BOUND * to_host(largest)) & (agreement >= LEAST_AGREEMENT)
    weak &= _own_share(space, q, columns, dual) >= LEAST_SHARE
    return to_host(dual).copy(), np.where(weak, bound, np.inf)


def _fit(space: RowSpace, bias_grad: Array, columns: Array) -> tuple[Array, Array, Array] | None:
    """Scaled known columns (m, f), recovery (f, m) and leverages (m,) of a fit of weight_grad by `columns` alone.

    All live rows weigh the same: what the others add is no smaller where the noise is. None if single rows decide it.
    """
    xp, live, m = space.xp, space.live, space.shape[0]
    Q, R = xp.linalg.qr(space.live_of(columns))
    leverage = xp.sum(Q**2, axis=1)
    recovery = inverse_or_pseudoinverse(xp, R) @ Q.T
    scale = recovery @ space.live_of(bias_grad)
    if float(xp.max(leverage)) > LARGEST_LEVERAGE or not bool(xp.all(xp.abs(scale) > 0)):
        return None
    return (
        columns * scale[None, :],
        scatter_columns(recovery / scale[:, None], live, m),
        scatter_columns(leverage[None, :], live, m)[0, :],
    )


def _own_share(space: RowSpace, q: Array, columns: Array, dual: Array) -> HostArray:
    """(f,): least share of its energy that a column in the span of the rest has on the units that each input leaves off.

    About a half for columns of other inputs. A residual inside one input's active units may come from a second input with the
    same pattern, so it is no evidence. Zero if one unit carries most of a residual column.
    """
    xp, (f, b) = space.xp, q.shape
    rest = space.coordinates - columns @ dual
    left = thin_svd(xp, space.live_of(rest))[0][:, : b - f]
    if float(xp.max(xp.sum(left**2, axis=1))) > LARGEST_PART:
        return np.zeros(f)
    off = xp.astype(space.zeros(q), xp.float64)
    within = left[None, :, :] * off[:, :, None]
    gram = xp.matrix_transpose(within) @ within
    return to_host(xp.min(xp.linalg.eigvalsh(gram), axis=1))
