"""Directions that the layer itself asks for: the null vectors of the rows on which a known input is off.

An input may be right although its own direction is wrong or missing: ``c_i`` depends on the *other* directions only
(c_i · y_j = 0). Its pre-activations then tell which output units are off, and these rows determine y_i.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import to_host
from ..disaggregate import Disaggregation, bias_direction
from ..factorize import Factors
from ..polish import null_space
from ..pool import Pool

Array = Any


def repair_candidates(factors: Factors, pool: Pool, choice: Disaggregation | None) -> Array:
    """Return directions (k, b) for the columns that disagree with the layer, or for a single missing one."""
    xp, device = factors.xp, factors.device
    nothing = device.zeros((0, factors.batch_size))
    if factors.layer is None or not factors.signs_known:
        return nothing
    if choice is not None and choice.agreement is not None:
        wrong = np.flatnonzero(to_host(choice.agreement) < 1.0)
        coordinates = xp.take(choice.dual, device.integers(wrong), axis=0)
    elif len(pool.basis) == factors.batch_size - 1 and factors.bias_grad is not None:
        coordinates = _last_input(factors, pool)
    else:
        return nothing
    if not coordinates.shape[0]:
        return nothing
    z = xp.take(factors.layer @ coordinates.T + factors.bias[:, None], factors.live, axis=0).T
    order = xp.argsort(z, axis=1)
    counts = xp.sum(xp.astype(z < 0, xp.int64), axis=1)
    usable = xp.nonzero(counts >= factors.batch_size - 1)[0]
    if not usable.shape[0]:
        return nothing
    space = null_space(factors, xp.take(order, usable, axis=0), xp.take(counts, usable))
    return space.basis[:, 0, :]


def units_off_last(factors: Factors, pool: Pool) -> int | None:
    """Number of units that the last input leaves off; None unless all others' directions are known for sure."""
    if factors.layer is None or not factors.signs_known or factors.bias_grad is None:
        return None
    if len(pool.basis) != factors.batch_size - 1 or len(pool.solid) < len(pool.basis):
        return None
    coordinates = _last_input(factors, pool)
    if not coordinates.shape[0]:
        return None
    z = factors.layer @ coordinates[0, :] + factors.bias
    return int(factors.xp.sum(factors.xp.astype(factors.xp.take(z, factors.live) < 0, factors.xp.int64)))


def _last_input(factors: Factors, pool: Pool) -> Array:
    """(1, b): the input that none of the b - 1 known directions sees, scaled by ``weight_grad V ȳ = bias_grad``.

    (0, b) where bias_grad contradicts weight_grad or says nothing of that input.
    """
    y = pool.basis_vectors / to_host(factors.S)
    unseen = np.linalg.svd(y, full_matrices=True)[2][-1]
    total = bias_direction(factors)
    if total is None:
        return factors.device.zeros((0, factors.batch_size))
    seen = float(total @ unseen)
    if seen == 0:
        return factors.device.zeros((0, factors.batch_size))
    return factors.device.float64(unseen[None, :] / seen)
