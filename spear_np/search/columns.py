"""Reflections between what a ReLU layer can hold and what the output layer can pass back to it.

The gradient of an output layer of few units t does not show the inputs of a larger batch, but it need not: its weights alone
say that a column of ∂L/∂Z is ``d = [z > 0] ∘ e`` with ``e = W_2ᵀ δ``, in t unknowns. A point holds z, d and e of one input, each
in an affine set of its own:

- ``z = M c`` with s · c = 1, and c orthogonal to the duals of all known inputs;
- d in the column space of weight_grad;
- ``e = W_2ᵀ δ`` with one entry of δ fixed, which also fixes the scale of d.

The other set asks each unit alone to be off, ``z ≤ 0`` and ``d = 0``, or on, ``z ≥ 0`` and ``d = e``. Steps are those of
`search.reflect`. With the units on that a start ends with, δ is the null vector of what they leave of W_2ᵀ outside the column
space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import orthogonal_complement
from ..backend.devices import Device
from ..backend.host import to_host
from ..directions.disaggregate import bias_direction
from ..directions.null_vectors import distinct
from ..directions.pool import Pool
from ..factors.behind import Behind
from ..factors.factorize import Factors
from ..factors.row_space import RowSpace
from ..factors.signs import SignModel, missing_inputs
from ..factors.singular import thin_svd
from ..kernels.columns import nearer_on, nearest_side
from ..kernels.reflect import relaxed
from . import Proposals
from .completion import MOST_GUESSED, SPREADS
from .reflect import ROUND_STEPS, SETTLED
from .reflections import RELAXATION

COLUMN_STARTS = 32
"""Starts at once.

Heuristic: they end on some twenty different columns where a hundred are missing.
"""
COLUMN_STEPS = 200
"""Steps of a start, at most; twice as many each time that blocks find little.

Measured: at m = 1000, b = 250 blocks of 150 find as many new columns as blocks of 600, whether 0 or 246 are known: those that go on
for long end on known ones. At m = 200, b = 100 some hundred more are of use.
"""
MOST_DOUBLINGS = 3
"""How often the steps are doubled, at most.

Heuristic: more starts are then of more use.
"""
DEPTH_SCALES = (0.25, 1.0, 4.0)
"""Root mean squares of the z nearest to zero, where that of e is one: the first until half of the columns are known, then any.

Measured: at m = 200, b = 100 a quarter brings 33 of 48 starts to a column and twice as much 4, but the last fifteen of 122 at m = 1000
are found three times as often at four, and the last of 254 at one.
"""
PASSED_WEIGHT = 3.0
"""Weight of e beside d.

Measured: 0.3 to 10 bring 83 to 93 of 96 starts to a column at m = 200, b = 80.
"""
COLUMN_RADII = (0.0, 2.0)
"""Logarithms of the smallest and the largest distance of a start from the z nearest to zero, in lengths of that.

Heuristic: once and twice that length do as well as each other; far starts find what is left near the end of a search.
"""
PAIRED = 0.5
"""Share of the starts whose δ is that of an input which the network takes for another class for sure.

Heuristic: the other half belongs to a network that does not know; which of the two fits is not known beforehand.
"""
MASK_STEPS = 16
"""Times that the units on and δ are computed from each other.

Heuristic: more than any start near a column takes.
"""
ALONE = 1e-6
"""Complement of the leverage of a unit below which no other unit speaks of it.

Heuristic: far above the rounding of float64.
"""
FITS = 2.0
"""Root mean square of what a column misses the column space by, in standard deviations of its noise, to be handed on.

Derived: one at most for a true column, whose noise is an upper estimate, and thousands with one unit on the wrong side.
"""
SAME_COLUMN = 0.999
"""Cosine from which two ends are one column.

Heuristic: ends at one column differ by far less.
"""
UNCERTAIN = 0.15
"""Share of the blocks that rely on no known column.

Heuristic: so that none that is wrong does lasting harm.
"""
SHOWN = 1e-12
"""Share of the largest singular value of weight_grad from which a direction of its columns takes part in the search.

Derived: the rounding of float64 turns it by 1e-4 at most.
"""


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns that the output layer can pass back. Shapes: ℓ live units, b coordinates, t numbers at the output."""

    to_units: Array
    """(ℓ, b): M, the pre-activations of an input with coordinates c."""
    ones: Array
    """(b,): s, with s · c = 1 for every input."""
    passed: Array
    """(ℓ, t): W_2ᵀ in units of the noise."""
    span: Array
    """(ℓ, r): orthonormal, what the columns of weight_grad span, in its own units: columns of all sizes are known alike well there."""
    model: SignModel
    typical: HostArray
    """(t,): softmax of the output bias, what a network says that knows nothing."""
    name: str = "columns"

    @classmethod
    def prepare(cls, factors: Factors, model: SignModel | None, behind: Behind | None) -> Columns | None:
        """None where nothing is known of what the layer `behind` passes back, or bias_grad contradicts weight_grad."""
        space, layer = factors.space, factors.layer
        total = bias_direction(factors)
        if model is None or layer is None or layer.has_ceiling or total is None:
            return None
        if behind is None or space.passed is None:
            return None
        xp, ones = space.xp, space.device.float64(total)
        rows = space.live_of(space.noise)[:, None] * space.U * space.S[None, :]
        left, values, _ = thin_svd(xp, rows)
        shown = int(xp.sum(xp.astype(values > SHOWN * values[0], xp.int64)))
        bias = to_host(behind.gradients.vector("bias", device=space.device))
        bias = bias if np.all(np.isfinite(bias)) else np.zeros_like(bias)
        odds = np.exp(bias - np.max(bias))
        return cls(
            to_units=space.live_of(layer.weight_in_basis + layer.bias[:, None] * ones[None, :]),
            ones=ones,
            passed=space.passed,
            span=xp.astype(left[:, :shown], xp.float32),
            model=model,
            typical=odds / np.sum(odds),
        )

    def propose(self, space: RowSpace, pool: Pool, rng: np.random.Generator) -> Proposals:
        """Return the columns that one block of starts ends on."""
        xp, device = space.xp, space.device
        known = [] if rng.random() < UNCERTAIN else pool.trusted
        delta, fixed = self._output_grads(COLUMN_STARTS, rng)
        duals = device.float64(pool.q[known]) / space.S
        late = 2 * len(known) >= space.batch_size
        scale = float(rng.choice(DEPTH_SCALES)) if late else DEPTH_SCALES[0]
        sets = self._sets(space, duals, device.float64(delta), scale)
        points = _drawn(device, sets, delta, fixed, rng)
        on, steps = _settle(device, sets, points, COLUMN_STEPS << min(pool.effort, MOST_DOUBLINGS))
        if known and space.batch_size - len(known) <= MOST_GUESSED:
            on = xp.concat([on, points.z > 0, self._guessed(space, pool.q[known], rng)], axis=0)
        on = _masks(xp, space.U, self.passed, on)
        d = xp.astype(on, xp.float64) * (_null_vectors(xp, space.U, self.passed, on) @ self.passed.T)
        q = d @ space.U
        missed = to_host(xp.sqrt(xp.mean((d - q @ space.U.T) ** 2, axis=1)))
        allowed = FITS * to_host(space.noise_norm(q))
        fitting = np.argsort(missed)
        fitting = fitting[(missed <= allowed)[fitting] & (allowed > 0)[fitting]]
        q = to_host(xp.take(q, device.integers(fitting), axis=0))
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        return Proposals(
            device.float64(q[distinct(q, SAME_COLUMN, COLUMN_STARTS)]), steps, self.name, sharp=True
        )

    def forecast(self, space: RowSpace) -> float | None:
        """No forecast."""
        return None

    def _guessed(self, space: RowSpace, known: HostArray, rng: np.random.Generator) -> Array:
        """(k, ℓ) bool: the units that guesses of an input turn on, which is none of those with the directions `known` (f, b)."""
        mean, root = missing_inputs(space, self.model, to_host(self.ones), known)
        device = space.device
        spread = device.float64(rng.choice(SPREADS, (COLUMN_STARTS, 1)))
        guesses = mean[None, :] + (device.normal(rng, (COLUMN_STARTS, mean.shape[0])) * spread) @ root.T
        return guesses @ self.to_units.T > 0

    def _output_grads(self, count: int, rng: np.random.Generator) -> tuple[HostArray, HostArray]:
        """Guess δ (count, t), one entry of each minus one and the others shares of one; also which entry it is (count,)."""
        t = len(self.typical)
        rows, fixed = np.arange(count), rng.integers(t, size=count)
        sure = np.eye(t)[rng.integers(t, size=count)]
        delta = np.where(rng.random((count, 1)) < PAIRED, sure, self.typical[None, :])
        delta[rows, fixed] = 0.0
        total = np.sum(delta, axis=1, keepdims=True)
        delta = np.divide(delta, total, out=np.full_like(delta, 1 / t), where=total > 0)
        delta[rows, fixed] = -1.0
        return delta, fixed

    def _sets(self, space: RowSpace, duals: Array, delta: Array, scale: float) -> _Sets:
        """The affine sets of an input that is none of those with the `duals` (f, b), scaled for starts with `delta` (k, t).

        `scale` is one of `DEPTH_SCALES`.
        """
        xp = space.xp
        equations = xp.concat([self.ones[None, :], duals], axis=0)
        length = xp.linalg.vector_norm(equations, axis=1)
        equations = equations / length[:, None]
        directions = xp.linalg.qr(self.to_units @ orthogonal_complement(xp, equations.T)).Q
        centre = self.to_units @ (xp.linalg.pinv(equations)[:, 0] / length[0])
        centre = centre - directions @ (directions.T @ centre)
        size = xp.sqrt(xp.mean(centre**2))
        back = space.live_of(space.noise)[:, None] * self.passed
        back = back / xp.sqrt(xp.mean((delta @ back.T) ** 2))
        inverse = xp.linalg.pinv(back.T @ back)
        return _Sets(
            centre=xp.astype(centre * (scale / size), xp.float32),
            directions=xp.astype(directions, xp.float32),
            columns=self.span,
            passed=xp.astype(back.T, xp.float32),
            to_delta=xp.astype(back @ inverse, xp.float32),
            gain=to_host(inverse),
        )


@dataclass(frozen=True, eq=False)
class _Sets:
    """The affine sets of one block, scaled to count alike; float32."""

    centre: Array
    """(ℓ,): the z nearest to zero."""
    directions: Array
    """(ℓ, f): orthonormal, along which z may move."""
    columns: Array
    """(ℓ, r): orthonormal, what the columns of weight_grad span."""
    passed: Array
    """(t, ℓ): W_2, e = δ · passed."""
    to_delta: Array
    """(ℓ, t): pseudoinverse of `passed`."""
    gain: HostArray
    """(t, t): (W_2 W_2ᵀ)⁻¹, how δ gives way where one entry is held."""


@dataclass(frozen=True, eq=False)
class _Points:
    """k starts under way; float32."""

    z: Array
    d: Array
    e: Array
    fixed: HostArray
    """(k,) int: which entry of δ is minus one."""

    def only(self, device: Device, rows: HostArray) -> _Points:
        """The starts `rows`."""
        xp, index = device.xp, device.integers(rows)
        z, d, e = (xp.take(values, index, axis=0) for values in (self.z, self.d, self.e))
        return _Points(z, d, e, self.fixed[rows])


def _drawn(
    device: Device, sets: _Sets, delta: HostArray, fixed: HostArray, rng: np.random.Generator
) -> _Points:
    """Starts in the sets, with these δ."""
    xp, count = device.xp, len(delta)
    away = rng.standard_normal((count, sets.directions.shape[1]))
    away *= np.exp(rng.uniform(*COLUMN_RADII, (count, 1))) / np.maximum(
        np.linalg.norm(away, axis=1, keepdims=True), 1
    )
    reach = xp.linalg.vector_norm(sets.centre)
    z = sets.centre[None, :] + reach * (device.float32(away) @ sets.directions.T)
    e = device.float32(delta) @ sets.passed
    d = xp.where(z > 0, e, xp.zeros_like(e))
    return _Points(z, (d @ sets.columns) @ sets.columns.T, e, fixed)


def _settle(device: Device, sets: _Sets, points: _Points, most: int) -> tuple[Array, int]:
    """Let all starts go on until they rest, `most` steps each; returns which units are on at their ends (k, ℓ), and all steps."""
    ends, total = [], 0
    for step in range(0, most, ROUND_STEPS):
        points, on, gap = _steps(device, sets, points)
        total += ROUND_STEPS * len(points.fixed)
        last = step + ROUND_STEPS >= most
        ends.append(device.xp.take(on, device.integers(np.flatnonzero(last | (gap < SETTLED))), axis=0))
        going = np.flatnonzero(~(gap < SETTLED))
        if last or not len(going):
            break
        points = points.only(device, going)
    return device.xp.concat(ends, axis=0), total


def _steps(device: Device, sets: _Sets, points: _Points) -> tuple[_Points, Array, HostArray]:
    """Some steps; also which units are on (k, ℓ) bool in the last, and how far it goes, as a share of a point's length (k,)."""
    xp = device.xp
    z, d, e = points.z, points.d, points.e
    held, yielding = _held(device, sets, points.fixed)
    weight = PASSED_WEIGHT / (1 + PASSED_WEIGHT)
    # Copies: a step may overwrite them.
    z, d, e = (xp.asarray(v, copy=True) for v in (z, d, e))
    moved = size = xp.ones_like(z[:, 0])
    on = z > 0
    for step in range(ROUND_STEPS):
        last = step == ROUND_STEPS - 1
        if last:
            on = nearer_on(xp, z, d, e, weight)
        sides = nearest_side(device, z, d, e, weight)
        turned_z, turned_d, turned_e = sides.turned
        onto_z = (turned_z @ sets.directions) @ sets.directions.T
        onto_d = (turned_d @ sets.columns) @ sets.columns.T
        delta = turned_e @ sets.to_delta
        delta = delta - xp.sum((delta + 1) * held, axis=1, keepdims=True) * yielding
        z, to_z = relaxed(device, z, onto_z, sets.centre, sides.near[0], RELAXATION)
        d, to_d = relaxed(device, d, onto_d, None, sides.near[1], RELAXATION)
        e, _ = relaxed(device, e, delta @ sets.passed, None, sides.near[2], RELAXATION)
        if last:
            moved = xp.sum(to_z**2 + to_d**2, axis=1)
            size = xp.sum(sides.near[0] ** 2 + sides.near[1] ** 2, axis=1)
    gap: HostArray = np.sqrt(to_host(moved) / np.maximum(to_host(size), np.finfo(np.float32).tiny))
    return _Points(z, d, e, points.fixed), on, np.nan_to_num(gap, nan=np.inf)


def _held(device: Device, sets: _Sets, fixed: HostArray) -> tuple[Array, Array]:
    """(k, t) each: one at the entry of δ that is held, and how δ gives way when that entry is moved by one."""
    held = np.eye(len(sets.gain))[fixed]
    yielding = (
        sets.gain[fixed] / np.maximum(np.diagonal(sets.gain)[fixed], np.finfo(np.float64).tiny)[:, None]
    )
    return device.float32(held), device.float32(yielding)


def _masks(xp: Namespace, columns: Array, passed: Array, on: Array) -> Array:
    """Units that are `on` (k, ℓ), changed until they and the δ that fits them agree on each other; shapes as in `_null_vectors`."""
    leverage = xp.sum(columns**2, axis=1)[None, :]
    apart = 1 - xp.minimum(leverage, xp.full_like(leverage, 1 - ALONE))
    for _ in range(MASK_STEPS):
        e = _null_vectors(xp, columns, passed, on) @ passed.T
        taken = xp.astype(on, xp.float64) * e
        # What all other units say of one, whatever it was taken for.
        d = ((taken @ columns) @ columns.T - leverage * taken) / apart
        better = xp.abs(d) > xp.abs(d - e)
        if bool(xp.all(better == on)):
            break
        on = better
    return on


def _null_vectors(xp: Namespace, columns: Array, passed: Array, on: Array) -> Array:
    """The δ (k, t) whose columns ``on ∘ passed δ`` lie in the span of `columns` as far as that goes.

    Shapes: `columns` (ℓ, r) orthonormal, `passed` (ℓ, t), `on` (k, ℓ) bool.
    """
    rows = xp.astype(on, xp.float64)[:, :, None] * passed[None, :, :]
    Q, R = xp.linalg.qr(rows)
    inside = xp.matrix_transpose(columns)[None, :, :] @ Q
    outside = Q - columns[None, :, :] @ inside
    _, vectors = xp.linalg.eigh(xp.matrix_transpose(outside) @ outside)
    return xp.matrix_transpose(xp.linalg.pinv(R) @ vectors[:, :, :1])[:, 0, :]
