"""Directions that the layer itself asks for: the null vectors of the rows on which a known input is off.

An input may be right although its own direction is wrong or missing: ``c_i`` depends on the *other* directions only
(c_i · y_j = 0). Its pre-activations then tell which output units are off, and these rows determine y_i.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array, HostArray
from ..backend.host import to_host
from ..backend.work import blocks, mapped
from ..factors.factorize import Factors
from ..factors.layer import Layer
from ..factors.row_space import RowSpace
from .disaggregate import Disaggregation, bias_direction, disaggregate
from .null_space import null_space
from .pool import Pool

REALIGNMENTS = 10
"""Steps of a realignment, at most.

Heuristic: it ends when λ no longer grows, mostly after a few.
"""
MOST_REALIGNED = 32
"""Directions that are realigned together, those that disagree most.

Heuristic: it bounds the time of a step.
"""


def repair_candidates(factors: Factors, pool: Pool, choice: Disaggregation | None) -> Array:
    """Return directions (k, b) for the columns that disagree with the layer, or for a single missing one."""
    space = factors.space
    nothing = space.device.zeros((0, space.batch_size))
    if factors.layer is None or not factors.signs_known:
        return nothing
    if choice is not None and choice.sign_agreement is not None:
        wrong = np.flatnonzero(to_host(choice.sign_agreement) < 1.0)
        return _by_layer(
            space, factors.layer, space.xp.take(choice.input_coords, space.device.integers(wrong), axis=0)
        )[0]
    if len(pool.basis) == space.batch_size - 1 and factors.bias_grad is not None:
        return _by_layer(space, factors.layer, _last_input(factors, pool))[0]
    return nothing


def realigned(factors: Factors, choice: Disaggregation) -> Disaggregation:
    """Take the directions that disagree with the layer from the layer, as long as the agreement grows.

    Where noise hides which gradients are zero, the layer still tells which units an input leaves off: all of them
    together determine the direction better than those that look like zeros.
    """
    space, layer = factors.space, factors.layer
    for _ in range(REALIGNMENTS):
        if layer is None or choice.sign_agreement is None or choice.mean_agreement() == 1.0:
            break
        agreement = to_host(choice.sign_agreement)
        wrong = np.flatnonzero(agreement < 1.0)
        wrong = wrong[np.argsort(agreement[wrong], kind="stable")][:MOST_REALIGNED]
        dual = space.xp.take(choice.input_coords, space.device.integers(wrong), axis=0)
        q, usable = _by_layer(space, layer, dual)
        better = None
        for count in {1, len(usable)}:
            replaced = _replaced(space, choice.q, q[:count, :], wrong[usable[:count]])
            candidate = disaggregate(factors, replaced, lenient=choice.lenient)
            if (candidate.mean_agreement() or 0.0) > ((better or choice).mean_agreement() or 0.0):
                better = candidate
        if better is None:
            break
        choice = better
    return choice


def _replaced(space: RowSpace, q: Array, rows: Array, which: HostArray) -> Array:
    """`q` (b, b) with `rows` (k, b) in the places `which` (k,)."""
    changed = to_host(q).copy()
    changed[which] = to_host(rows)
    return space.device.float64(changed)


def _by_layer(space: RowSpace, layer: Layer, coordinates: Array) -> tuple[Array, HostArray]:
    """Directions (k', b) of the inputs at `coordinates` (k, b) in V by the units they leave off, and which they are."""
    xp = space.xp
    depth = layer.depth(space.live_of(layer.preactivations(coordinates))).T
    counts = xp.sum(xp.astype(depth > 0, xp.int64), axis=1)
    usable = np.flatnonzero(to_host(counts) >= space.batch_size - 1)
    if not len(usable):
        return space.device.zeros((0, space.batch_size)), usable
    chosen = space.device.integers(usable)
    depth, counts = xp.take(depth, chosen, axis=0), xp.take(counts, chosen)

    def directions(part: slice) -> Array:
        most = int(xp.max(counts[part]))
        order = xp.argsort(-depth[part, :], axis=1)[:, :most]
        return null_space(space, order, counts[part]).basis[:, 0, :]

    parts = blocks(space.device, len(usable), space.U.shape[0] * space.batch_size)
    return xp.concat(mapped(space.device, directions, parts), axis=0), usable


def units_off_last(factors: Factors, pool: Pool) -> int | None:
    """Number of units that the last input leaves off; None unless all others' directions are known for sure."""
    space, layer = factors.space, factors.layer
    if layer is None or not factors.signs_known or factors.bias_grad is None:
        return None
    if len(pool.basis) != space.batch_size - 1 or len(pool.trusted) < len(pool.basis):
        return None
    coordinates = _last_input(factors, pool)
    if not coordinates.shape[0]:
        return None
    depth = layer.depth(space.live_of(layer.preactivations(coordinates)))
    return int(space.xp.sum(space.xp.astype(depth > 0, space.xp.int64)))


def _last_input(factors: Factors, pool: Pool) -> Array:
    """(1, b): the input that none of the b - 1 known directions sees, scaled by ``weight_grad V ȳ = bias_grad``.

    (0, b) where bias_grad contradicts weight_grad or says nothing of that input.
    """
    space = factors.space
    y = pool.basis_vectors / to_host(space.S)
    unseen = np.linalg.qr(y.T, mode="complete").Q[:, -1]
    total = bias_direction(factors)
    if total is None:
        return space.device.zeros((0, space.batch_size))
    seen = float(total @ unseen)
    if seen == 0:
        return space.device.zeros((0, space.batch_size))
    return space.device.float64(unseen[None, :] / seen)
