"""Inputs of a batch of which only some directions are known: estimates and how far they can be off.

Two ways, and for each input the one with the smaller bound:

- *Weak rest.* With D_f the known columns, weight_grad = D_f X_f + M, M what the others add. Least squares gives
  ``X̂ = D_f⁺ weight_grad = X_f + D_f⁺ M``. If the others are faint, as examples that a trained network is sure of, M
  is small. What is seen of it is the residual ``(1 - D_f D_f⁺) M``; columns in general position hide no more than a
  modest share of themselves in the span of D_f, for which `HIDDEN_SHARE` allows. Tried where two thirds of the
  directions are known.
- *Signs.* The polytope of `polytope.bound_inputs`, whatever the others add.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import to_host
from .factorize import Factors
from .polytope import PartialInputs, bound_inputs
from .reconstruct import least_squares_inputs

Array = Any
HostArray = np.ndarray[Any, Any]

HIDDEN_SHARE = 4.0
"""How many times larger than the residual the gradients of unknown inputs may be."""
LARGEST_BOUND = 0.1
"""Bound, as a share of the largest entry of an input, up to which the others count as weak."""
LARGEST_LEVERAGE = 0.8
"""Leverage of a row in the fit by the known columns from which it decides the fit alone."""
LEAST_SHARE = 0.15
"""Share of the gradients of every unknown combination that must lie on units which an input leaves off."""
LEAST_AGREEMENT = 0.98
"""Share of the live units on which an estimate must have the signs of its pattern."""


def partial_inputs(factors: Factors, q: Array) -> PartialInputs:
    """Estimate and bound the inputs behind the sound directions `q` (f, b), 0 < f < b.

    Needs bias_grad, which scales them, and W, whose signs they must have.
    """
    by_signs = bound_inputs(factors, q)
    estimate, bound = _weak_rest(factors, q)
    coordinates, best = estimate, bound.copy()
    for row, which in enumerate(by_signs.which):
        if not by_signs.error_bound[row] >= best[which]:
            coordinates[which], best[which] = by_signs.coordinates[row], by_signs.error_bound[row]
    known = np.flatnonzero(np.isfinite(best))
    return PartialInputs(known, coordinates[known], best[known])


def _weak_rest(factors: Factors, q: Array) -> tuple[HostArray, HostArray]:
    """Least-squares estimates (f, b) in V, and their bounds (f,), infinite where they bound nothing."""
    xp, f = factors.xp, q.shape[0]
    coordinates, nothing = np.zeros(q.shape), np.full(f, np.inf)
    if factors.bias_grad is None or factors.layer is None or f < 2 * (factors.batch_size - f):
        return coordinates, nothing
    columns = factors.columns(q)
    recovery = least_squares_inputs(factors, columns)
    scale = recovery @ factors.bias_grad
    if not bool(xp.all(xp.abs(scale) > 0)):
        return coordinates, nothing
    recovery, columns = recovery / scale[:, None], columns * scale[None, :]
    # A row that decides a fit leaves no residual, however much the others add to it: what it would leave if it were not
    # fitted counts, and where there is such a row nothing is known of the others.
    leverage = xp.sum(columns * recovery.T, axis=1)
    if float(xp.max(leverage)) > LARGEST_LEVERAGE:
        return coordinates, nothing
    reach = xp.abs(recovery) / (1 - leverage)[None, :]
    largest, rest = factors.device.zeros(f), factors.device.zeros(f)
    for _, (block,) in factors.gradients.blocks("weight_grad", device=factors.device):
        x = recovery @ block
        largest = xp.maximum(largest, xp.max(xp.abs(x), axis=1))
        rest = xp.maximum(rest, xp.max(reach @ xp.abs(block - columns @ x), axis=1))
    bias_rest = reach @ xp.abs(factors.bias_grad - xp.sum(columns, axis=1))
    bound = HIDDEN_SHARE * to_host(rest + bias_rest * largest)
    dual = recovery @ factors.coordinates
    z = xp.take(factors.layer @ dual.T + factors.bias[:, None], factors.live, axis=0).T
    agree = factors.states(z)[0] == ~factors.zeros(q)
    agreement = to_host(xp.sum(xp.astype(agree, xp.float64), axis=1)) / agree.shape[1]
    weak = (bound <= LARGEST_BOUND * to_host(largest)) & (agreement >= LEAST_AGREEMENT)
    weak &= _own_share(factors, q, columns, dual) >= LEAST_SHARE
    return to_host(dual).copy(), np.where(weak, bound, np.inf)


def _own_share(factors: Factors, q: Array, columns: Array, dual: Array) -> HostArray:
    """(f,): least share of its energy that a column in the span of the rest has on the units that each input leaves off.

    About a half for columns of other inputs. What lies within the units of one input may be its own: the difference of
    two inputs with the same pattern, which least squares takes for their mean, is as faint as a faint input.
    """
    xp, (f, b) = factors.xp, q.shape
    rest = (factors.coordinates - columns @ dual) / factors.noise[:, None]
    left = xp.linalg.svd(xp.take(rest, factors.live, axis=0), full_matrices=False)[0][:, : b - f]
    off = xp.astype(factors.zeros(q), xp.float64)
    within = left[None, :, :] * off[:, :, None]
    gram = xp.matrix_transpose(within) @ within
    return to_host(xp.min(xp.linalg.eigvalsh(gram), axis=1))
