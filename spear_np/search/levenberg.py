"""Levenberg-Marquardt on the membership in the next layers, inside what is left to be found; for any activation.

From nearly every start it ends on an input where the activation is smooth: there are no other zeros to be caught in.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np

from ..arrays import Array, HostArray
from ..backend.algebra import replace_rows, solve_or_nan
from ..backend.host import to_host
from ..backend.work import block_length
from ..chain.layers import Chain
from ..chain.sets import RADII, Open
from ..kernels.width import MOST_STARTS, starts_at_once
from . import Ends

MOST_STEPS = 40
"""Steps after which a start is given up.

Heuristic: six to thirteen suffice where it ends on an input.
"""
DRY_STEPS = 8_000
"""Steps without a new input after which another search, or the same with more layers, has its turn.

Heuristic: some six hundred starts, where nearly every one ends on an input or none does.
"""
CLOSE = 1e-4
"""Residual, as a share of what activations differ by from input to input, from which the polish takes over.

Heuristic: within reach of float32, and near enough for Gauss-Newton.
"""
CANDIDATE = 1e-2
"""The same, up to which an end is handed to the polish.

Heuristic: other ends lie above it, and the polish refuses what is none.
"""
STALLED = 0.9999
"""Share of the squared residual that a step must leave behind to count as progress.

Heuristic: it only ends a start.
"""
DAMPING = 0.1
"""First damping, in units of the diagonal of JᵀJ.

Heuristic: it settles within three steps.
"""
EASIER = 5.0
"""What the damping is divided by after a good step.

Heuristic: as usual for Levenberg-Marquardt.
"""
HARDER = 4.0
"""What it is multiplied by after a bad one.

Heuristic: as `EASIER`.
"""
EVEN = 0.1
"""Share of the mean of the diagonal that is added to each of its entries.

Heuristic: keeps directions that no unit sees from running away.
"""
GIVE_UP = 1e3
"""Damping from which steps are too short to lead anywhere.

Heuristic: it only ends a start.
"""


class Levenberg:
    """One start after the other, or a block of them at once, each in what the last left open."""

    name = "levenberg"
    patience = DRY_STEPS

    def __init__(self, count: int = 1) -> None:
        self.count = count

    @classmethod
    def suited(cls, chain: Chain) -> Levenberg:
        """As many starts as the device of `chain` follows in the time of one."""
        units, b = chain.layers[0].units, chain.batch_size
        most = min(MOST_STARTS, block_length(units * b))
        return cls(starts_at_once(chain.device, 2.0 * units * b**2, 1, most=most))

    def start(self, left: Open, rng: np.random.Generator) -> None:
        """Nothing is carried from one block to the next."""

    def propose(self, left: Open, memory: None, rng: np.random.Generator) -> Ends:
        """Follow a block of starts to their ends and hand out those close to an input, the closest first."""
        xp = left.chain.xp
        y, residual, steps = _descend(left, _starts(left, self.count, rng))
        good = np.argsort(residual)[: np.count_nonzero(residual <= CANDIDATE)]
        one = left.sets[0]
        y = xp.take(y, left.chain.device.integers(good), axis=0)
        z = one.offset + xp.astype(y, xp.float64) @ one.directions.T
        return Ends(z @ one.to_coordinates.T, None, steps)


def _starts(left: Open, count: int, rng: np.random.Generator) -> Array:
    """(count, d) float32 points of the first set, drawn from the second moment of the inputs."""
    xp, device = left.chain.xp, left.chain.device
    root, one = left.roots[0], left.sets[0]
    radius = np.exp(rng.uniform(*RADII, (count, 1)))
    c = device.float64(rng.standard_normal((count, root.shape[1])) * radius) @ root.T
    z = left.scales[0] * (c @ left.chain.layers[0].to_units.T)
    return xp.astype((z - one.offset) @ one.directions, xp.float32)


def _residual(left: Open, y: Array, *, derivatives: bool) -> tuple[Array, Array, list[Array], list[Array]]:
    """Squared residual (k,), squared size (k,), and for each layer residual (k, m) and, if asked for, Jacobian (k, m, d)."""
    xp, chain = left.chain.xp, left.chain
    offset, directions = left.sets[0].single
    z = (y @ directions.T + offset) * (1 / left.scales[0])
    by_y = (directions * (1 / left.scales[0]))[None, :, :]
    residuals, jacobians = [], []
    total = size = xp.zeros_like(z[:, 0])
    for number in range(1, left.depth + 1):
        a, slope = chain.layers[number - 1].sigma.value_and_slope(z)
        scale = left.scales[number - 1]
        units = int(a.shape[1])
        offset, directions = left.sets[number].single
        offset, directions = offset[:units], directions[:units, :]
        rest = scale * a - offset
        inside = _inverse_part(left, number)
        rest = rest - (rest @ directions) @ inside
        residuals.append(rest)
        total = total + xp.sum(rest**2, axis=1)
        size = size + xp.sum((scale * a - offset) ** 2, axis=1)
        if derivatives:
            by_y = slope[:, :, None] * by_y
            turned = scale * by_y
            jacobians.append(turned - inside.T[None, :, :] @ (directions.T[None, :, :] @ turned))
        if number < left.depth:
            layer = chain.layers[number]
            weight = xp.astype(layer.weight, xp.float32)
            z = a @ weight.T + xp.astype(layer.bias, xp.float32)
            if derivatives:
                by_y = weight[None, :, :] @ by_y
    return total, size, residuals, jacobians


def _inverse_part(left: Open, number: int) -> Array:
    """(d, m): maps the products of inputs with the directions of a set back, so that what remains is orthogonal to them."""
    units = int(left.chain.layers[number].basis.shape[0])
    directions = left.sets[number].single[1][:units, :]
    if number == left.depth:
        return directions.T
    xp = left.chain.xp
    gram = directions.T @ directions
    return xp.linalg.solve(gram, directions.T)


def _descend(left: Open, y: Array) -> tuple[Array, HostArray, int]:
    """Follow the starts `y` (k, d); returns their ends, the residuals there as a share of the activations, and the steps."""
    xp, device = left.chain.xp, left.chain.device
    k, d = y.shape
    ends = y
    residual = np.full(k, np.inf)
    live = np.arange(k)
    damping = np.full(k, DAMPING)
    identity = xp.astype(device.eye(d), xp.float32)[None, :, :]
    total, _, parts, jacobians = _residual(left, y, derivatives=True)
    steps = 0
    for _ in range(MOST_STEPS):
        steps += len(live)
        gram = reduce(add, (xp.matrix_transpose(j) @ j for j in jacobians))
        slope = reduce(add, ((r[:, None, :] @ j)[:, 0, :] for r, j in zip(parts, jacobians, strict=True)))
        diagonal = xp.linalg.diagonal(gram)
        weight = diagonal + EVEN * xp.sum(diagonal, axis=1, keepdims=True) / max(
            d, 1
        )  # a last input has d = 0
        damped = gram + identity * (weight * device.float32(damping)[:, None])[:, None, :]
        step = solve_or_nan(xp, damped, slope[:, :, None])[:, :, 0]
        step = xp.where(xp.isfinite(step), step, xp.zeros_like(step))
        tried = y - step
        new_total, new_size, _, _ = _residual(left, tried, derivatives=False)
        before, after = to_host(total), np.nan_to_num(to_host(new_total), nan=np.inf)
        better = after < before
        stalled = np.where(better, after > STALLED * before, damping > GIVE_UP)
        damping = np.where(better, damping / EASIER, damping * HARDER)
        taken = device.booleans(better)
        y = xp.where(taken[:, None], tried, y)
        share = np.sqrt(np.minimum(before, after) / np.maximum(to_host(new_size), np.finfo(np.float32).tiny))
        done = stalled | (share < CLOSE)
        residual[live] = share
        ends = replace_rows(ends, device.integers(live), y)
        if np.all(done):
            break
        if np.any(done):
            kept = device.integers(np.flatnonzero(~done))
            live, damping, y = live[~done], damping[~done], xp.take(y, kept, axis=0)
        total, _, parts, jacobians = _residual(left, y, derivatives=True)
    return ends, residual, steps
