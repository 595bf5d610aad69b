"""Inputs of a batch that was found only in part: what the signs of the layer leave of them.

A found direction y_i fixes which units its input turns on: linear inequalities on the input's coordinates c,
``sign(W V c + b) = pattern``, besides ``c · y_j = 0`` for every other found direction and ``c · ȳ = 1`` with
``weight_grad V ȳ = bias_grad`` (because ∂L/∂Z 1 = bias_grad, every input satisfies it). The centre of the largest
ball in that polytope is the estimate, its bounding box the error bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..arrays import Array, HostArray
from ..backend.host import to_host
from ..directions.disaggregate import bias_direction
from ..factors.factorize import Factors
from ..factors.zero import is_nonzero, is_zero, surely_nonzero, zeros_tell

MOST_UNBOUNDED = 24
"""Missing directions up to which bounds are computed.

Heuristic: each costs two linear programs an input, and the box of many dimensions is wide.
"""
MAX_WORK = 20_000_000
"""Entries of all linear programs together, beyond which the last directions get no bound.

Heuristic: tens of seconds.
"""
SIGN_SLACK = 1e-6
"""Relative slack on the signs.

Derived: rounding of a forward pass in float32, some 16 times.
"""
MOVED = 0.2
"""Slack on the signs, as a share of the typical pre-activation, where noise is more than rounding.

Heuristic: the update may be that of several steps, in which some units changed sides.
"""
LEAST_OFF = 0.2
"""Share of the units that an input must leave off for all its signs to bound it where those alone do not.

Heuristic: below a quarter, what two inputs of usual patterns both leave off; a direction with fewer may belong to more.
"""
WIDENED = 8.0
"""Factor on that bound.

Measured: bounds by all signs fell short by up to six times where inputs depend on each other, and by three where W and the bias are
not quite those of the gradient (benchmarks/alterations.py, 10,094 layers).
"""
EMPTY = 2
"""Status of a linear program that nothing satisfies.

Definition: of `scipy.optimize.linprog`.
"""
EVIDENCE = 20
"""Minimum log2 ratio between all patterns with this share of ones and those the layer can produce.

Derived: a pattern of no input fits one of them with a probability of 2^-20, one in a million.
"""


@dataclass(frozen=True, eq=False)
class PartialInputs:
    """Bounded estimates of some inputs."""

    which: HostArray
    """(k,) int: rows of the directions they belong to."""
    coordinates: HostArray
    """(k, b): estimates in V."""
    error_bound: HostArray
    """(k,): bound on the largest error of each input, in units of the input."""
    by_signs: HostArray
    """(k,) bool: whether the signs of the layer bound it."""


def bound_inputs(
    factors: Factors, q: Array, around: HostArray | None = None, *, lenient: bool = False
) -> PartialInputs:
    """Estimate and bound the inputs of the sound directions `q` (f, b), f < b, from the layer's signs.

    Needs W and bias_grad; returns no rows where they are missing, too many directions are missing or the signs
    leave an input unbounded.

    Parameters
    ----------
    around : (f, b), optional
        Estimates in V that are already there: kept where the signs allow them, and bounded.
    lenient : bool
        Whether units that are on may lack a gradient, as behind dropout: those that have one are too little to go by, and
        nothing is bounded.
    """
    found = None if lenient else _bounded(factors, q, around)
    return _none(q.shape[1]) if found is None else found


def _none(b: int) -> PartialInputs:
    """No input, of a batch of b."""
    return PartialInputs(
        np.empty(0, dtype=np.int64), np.empty((0, b)), np.empty(0), np.empty(0, dtype=np.bool_)
    )


def _bounded(factors: Factors, q: Array, around: HostArray | None) -> PartialInputs | None:
    """As `bound_inputs`; None if no input has the pattern of some direction.

    Then something else than the layer zeroes gradients (dropout), W and the bias are not those of the gradient, or this is not the
    plain one.
    """
    f, b = q.shape
    nothing = _none(b)
    total = bias_direction(factors)
    space, layer = factors.space, factors.layer
    if layer is None or total is None or not f or b - f > MOST_UNBOUNDED:
        return nothing
    y = to_host(q / space.S)
    # Equations of very different size would lose the small ones to the cut-off of least squares.
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    weight = 1 / float(np.linalg.norm(total))
    W, bias = to_host(space.live_of(layer.weight_in_basis)), to_host(space.live_of(layer.bias))
    units = to_host(space.noise_units(q))
    found: list[int] = []
    centres: list[HostArray] = []
    widths: list[tuple[HostArray, HostArray]] = []
    d = b - f
    moved = 0.0 if space.spectrum.rounding else MOVED
    for index in range(min(f, int(MAX_WORK // ((2 * d + 1) * d * len(bias))))):
        others = np.delete(y, index, axis=0)
        state = states_known(units[index], ceiling=layer.has_ceiling)
        pattern = np.where(is_nonzero(units[index]), 1.0, -1.0)[state]
        if _information(pattern) < _pattern_bits(len(pattern), d) + EVIDENCE:
            continue
        # Every input sees total · c = 1; the other found directions do not see it at all.
        constraints = np.concatenate([others, weight * total[None, :]])
        start = np.linalg.lstsq(constraints, weight * np.eye(f)[-1], rcond=None)[0]
        free = np.linalg.svd(constraints, full_matrices=True)[2][f:].T
        given = None if around is None else free.T @ (around[index] - start)
        slope, offset = (W @ free)[state], (W @ start + bias)[state]
        offset = offset + moved * pattern * math.sqrt(float(np.mean(offset**2)))
        box = _open_half(slope, offset, pattern, given)
        if box is None:
            return None
        centre, half = box
        if np.all(np.isfinite(half)):
            found.append(index)
            centres.append(start + free @ centre if around is None else around[index])
            widths.append((free, half))
    if not found:
        return nothing
    bounds = _largest_errors(factors, widths)
    return PartialInputs(np.asarray(found), np.asarray(centres), bounds, np.ones(len(found), dtype=np.bool_))


def _open_half(
    slope: HostArray, offset: HostArray, pattern: HostArray, given: HostArray | None
) -> tuple[HostArray, HostArray] | None:
    """Centre and half-widths of what a pattern leaves open, with room for what it may be wrong about; None if it leaves nothing.

    That some input has all its signs is the evidence for direction and layer. Bounds rest on the units that are off alone:
    where inputs depend on each other, a direction may belong to several, all of which leave these off, but not all of which turn on
    the others. And as far as all signs leave the input open, W and the bias may be off without leaving none.
    """
    box = _bounding_box(slope, offset, pattern, given)
    if box is None or not np.any(pattern < 0):
        return box
    off = pattern < 0
    wider = _bounding_box(slope[off], offset[off], pattern[off], box[0])
    if wider is None:
        return None
    # What turns on nearly every unit bounds nothing on one side of those that are off.
    otherwise = WIDENED * box[1] if np.mean(off) >= LEAST_OFF else np.full_like(box[1], math.inf)
    return box[0], np.where(np.isfinite(wider[1]), box[1] + wider[1], otherwise)


def states_known(units: HostArray, *, ceiling: bool) -> HostArray:
    """(ℓ,) bool: units whose state the gradient tells, from its size in noise `units` (ℓ,).

    A gradient that stands well out of the noise tells that its unit is on. That a unit without one is off can only be
    said if no gradient is expected to be hidden in the noise, where near zero their density is even, and if the
    activation has no `ceiling` where it leaves none either.
    """
    on = to_host(surely_nonzero(units))
    return on if ceiling or not zeros_tell(units) else on | to_host(is_zero(units))


def _information(pattern: HostArray) -> float:
    """Bits of a pattern of ±1: its entropy, as what nearly all inputs turn on tells little of one of them."""
    share = np.mean(pattern > 0) if len(pattern) else 0.0
    if share in (0.0, 1.0):
        return 0.0
    return float(-len(pattern) * (share * np.log2(share) + (1 - share) * np.log2(1 - share)))


def _pattern_bits(units: int, dimensions: int) -> float:
    """Logarithm to base 2 of the number of cells into which `units` hyperplanes cut a space (Schläfli)."""
    return math.log2(sum(math.comb(units, i) for i in range(min(units, dimensions) + 1)))


def _bounding_box(
    slope: HostArray, start: HostArray, pattern: HostArray, centre: HostArray | None = None
) -> tuple[HostArray, HostArray] | None:
    """Centre and half-widths of ``{t : pattern · (slope t + start) >= -slack}``; None if empty, infinite if unbounded.

    `slope` (ℓ, d), `start` (ℓ,), `pattern` (ℓ,) ±1; the `centre` (d,) is the Chebyshev centre unless given.
    """
    from scipy.optimize import linprog  # slow to import, needed only for what could not be found whole

    d = slope.shape[1]
    unbounded = np.full(d, np.inf)
    scale = np.linalg.norm(slope, axis=0)
    if centre is None:
        centre = _centre(slope, start, pattern)
        if centre is None:
            return None
    if not np.all(np.isfinite(centre)) or np.any(scale == 0):
        return centre, unbounded
    A, limit = _inequalities(slope, start, pattern)
    half = np.empty(d)
    for axis in range(d):
        objective = np.zeros(d)
        for sign in (1.0, -1.0):
            objective[axis] = sign
            end = linprog(objective, A, limit, bounds=[(None, None)] * d)
            if end.status != 0 or end.x is None:
                return None if end.status == EMPTY else (centre, unbounded)
            reach = abs(end.x[axis] - centre[axis] * scale[axis])
            half[axis] = reach if sign > 0 else max(half[axis], reach)
    return centre, half / scale


def _centre(slope: HostArray, start: HostArray, pattern: HostArray) -> HostArray | None:
    """Chebyshev centre (d,) of the polytope of `_bounding_box`; None if it is empty, infinite if unbounded."""
    from scipy.optimize import linprog

    d = slope.shape[1]
    scale = np.linalg.norm(slope, axis=0)
    unbounded = np.full(d, np.inf)
    if np.any(scale == 0):
        return unbounded
    A, limit = _inequalities(slope, start, pattern)
    ball = linprog(
        np.append(np.zeros(d), -1.0),
        np.column_stack([A, np.linalg.norm(A, axis=1)]),
        limit,
        bounds=[(None, None)] * d + [(0, None)],
    )
    if ball.status != 0 or ball.x is None:
        return None if ball.status == EMPTY else unbounded
    centre: HostArray = ball.x[:d] / scale
    return centre


def _inequalities(slope: HostArray, start: HostArray, pattern: HostArray) -> tuple[HostArray, HostArray]:
    """(ℓ, d) A and (ℓ,) limit: ``A (scale · t) <= limit`` in the polytope of `_bounding_box`, columns of unit length."""
    scale = np.linalg.norm(slope, axis=0)
    return -(pattern[:, None] * slope / scale), pattern * start + SIGN_SLACK * np.abs(start)


def _largest_errors(factors: Factors, widths: list[tuple[HostArray, HostArray]]) -> HostArray:
    """(k,): largest error over the entries of each input, for boxes of given axes (b, d) and half-widths (d,)."""
    xp, device = factors.space.xp, factors.space.device
    errors = np.zeros(len(widths))
    axes = device.float64(np.concatenate([free for free, _ in widths], axis=1))
    half = device.float64(np.concatenate([width for _, width in widths]))
    ends = np.cumsum([len(width) for _, width in widths])
    for _, (block,) in factors.gradients.blocks("weight_grad", device=device):
        moved = to_host(xp.abs((block.T @ factors.space.to_basis) @ axes) * half[None, :])
        per_input = np.add.reduceat(moved, np.concatenate([[0], ends[:-1]]), axis=1)
        errors = np.maximum(errors, per_input.max(axis=0))
    return errors
