"""Starts of chains on their way: damped Gauss-Newton steps on the membership in the next layers, for several chains side by side.

Where starts come from and which ends are candidates is in `levenberg`. A chain for itself is the case of one: the same steps in
the same order, without padding.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import contiguous, product, solve_or_nan, stacked
from ..backend.devices import Device
from ..backend.host import to_host
from ..chain.sets import Open
from ..factors.activation import Activation

MOST_STEPS = 40
"""Steps after which a start is given up.

Heuristic: six to thirteen suffice where it ends on an input.
"""
CLOSE = 1e-4
"""Residual, as a share of what activations differ by from input to input, from which the polish takes over.

Heuristic: within reach of float32, and near enough for Gauss-Newton.
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


@dataclass(frozen=True, eq=False)
class Equations:
    """What an input of one chain must meet: σ_l(z_l), scaled, lies in the set of a_{l+1}, for l = 0 … K - 1; float32.

    A point is y (d,), the free coordinates of the first set; see `Open`.
    """

    activations: tuple[Activation, ...]
    """Of the layers 0 … K - 1."""
    scales: tuple[float, ...]
    """Of z_l and a_{l+1}."""
    offsets: tuple[Array, ...]
    """(1, m): z_0 of the first set nearest to zero, then a_1 … a_K of the others."""
    directions: tuple[Array, ...]
    """(m, d) each: of z_0, then of a_1 … a_K."""
    inverses: tuple[Array, ...]
    """(d, m) for a_1 … a_K: maps the products with the directions back, so that what remains is orthogonal to them."""
    weights: tuple[Array, ...]
    """(m_l, m_{l-1}) for l = 1 … K - 1."""
    biases: tuple[Array, ...]
    """(1, m_l) for l = 1 … K - 1."""

    @classmethod
    def of(cls, left: Open) -> Equations:
        """Those of what is left open."""
        xp, layers = left.chain.xp, left.chain.layers
        offset, directions = left.sets[0].single
        offsets, along, inverses = [offset[None, :]], [directions], []
        for number in range(1, left.depth + 1):
            units = int(layers[number].basis.shape[0])
            offset, directions = left.sets[number].single
            directions = directions[:units, :]
            offsets.append(offset[None, :units])
            along.append(directions)
            if number == left.depth:
                inverses.append(directions.T)
            else:
                inverses.append(xp.linalg.solve(directions.T @ directions, directions.T))
        between = layers[1 : left.depth]
        return cls(
            tuple(layer.sigma for layer in layers[: left.depth]),
            left.scales,
            tuple(offsets),
            tuple(along),
            tuple(inverses),
            tuple(xp.astype(layer.weight, xp.float32) for layer in between),
            tuple(xp.astype(layer.bias, xp.float32)[None, :] for layer in between),
        )


@dataclass(frozen=True, eq=False)
class Fit:
    """k starts of one chain, and the equations that they are to meet; each array on the host, or where the steps are taken."""

    equations: Equations
    starts: Array
    """(k, d) float32."""

    @property
    def kind(self) -> Hashable:
        """What fits must have in common to be made together."""
        return self.equations.activations


@dataclass(frozen=True, eq=False)
class Fitted:
    """Where the starts of a fit ended."""

    equations: Equations
    """Those of the fit, where the steps were taken."""
    ends: HostArray
    """(k, d) float32."""
    residual: HostArray
    """(k,): root mean square residual as a share of what activations differ by from input to input."""
    steps: int
    """Of all starts together."""


def fit_on(device: Device, fits: Sequence[Fit]) -> list[Fitted]:
    """Follow the starts of `fits` of one `kind`, whose arrays are on `device`, each to its end.

    Starts, units and free coordinates may differ in number: those that a chain has not are zero.

    Notes
    -----
    Read back from the device are three numbers for each start after each step, and where it ended.
    """
    xp = device.xp
    equations = _Equations.of(device, [one.equations for one in fits])
    y = stacked(device, [one.starts for one in fits])
    s, k, d = y.shape
    sizes = np.asarray([one.starts.shape for one in fits])
    free = device.float32(np.maximum(sizes[:, 1], 1))[:, None, None]
    identity = xp.astype(device.eye(d), xp.float32)
    ends, residual = np.zeros((s, k, d), dtype=np.float32), np.full((s, k), np.inf)
    alive, damping = np.arange(k) < sizes[:, :1], np.full((s, k), DAMPING)
    share = residual
    steps = np.zeros(s, dtype=np.int64)
    places = np.arange(k)  # of starts of which one is under way in some chain

    def end(which: HostArray) -> None:
        """Keep where those starts are of which `which` (s, places) is true."""
        chain, place = np.nonzero(which)
        if len(chain):
            rows = device.integers(chain * len(places) + place)
            ends[chain, places[place]] = to_host(xp.take(xp.reshape(y, (s * len(places), d)), rows, axis=0))
            residual[chain, places[place]] = share[chain, place]

    total, _, parts, jacobians = equations.residual(xp, y, derivatives=True)
    for _ in range(MOST_STEPS):
        steps += np.count_nonzero(alive, axis=1)
        gram = reduce(add, (xp.matrix_transpose(j) @ j for j in jacobians))
        slope = reduce(add, (r[:, :, None, :] @ j for r, j in zip(parts, jacobians, strict=True)))
        diagonal = xp.linalg.diagonal(gram)
        weight = diagonal + EVEN * xp.sum(diagonal, axis=-1, keepdims=True) / free
        damped = gram + identity * (weight * device.float32(damping)[:, :, None])[:, :, None, :]
        count = s * len(places)  # said in full: a last input has d = 0
        step = solve_or_nan(xp, xp.reshape(damped, (count, d, d)), xp.reshape(slope, (count, d, 1)))
        step = xp.reshape(step, y.shape)
        tried = y - xp.where(xp.isfinite(step), step, xp.zeros_like(step))
        new_total, new_size, _, _ = equations.residual(xp, tried, derivatives=False)
        before, after, size = to_host(xp.stack([total, new_total, new_size]))
        after = np.nan_to_num(after, nan=np.inf)
        better = after < before
        stalled = np.where(better, after > STALLED * before, damping > GIVE_UP)
        damping = np.where(better, damping / EASIER, damping * HARDER)
        y = xp.where(device.booleans(better)[:, :, None], tried, y)
        share = np.sqrt(np.minimum(before, after) / np.maximum(size, np.finfo(np.float32).tiny))
        done = alive & (stalled | (share < CLOSE))
        if np.any(done):
            end(done)
            alive = alive & ~done
            kept = np.any(alive, axis=0)
            if not np.any(kept):
                break
            if not np.all(kept):
                y = xp.take(y, device.integers(np.flatnonzero(kept)), axis=1)
                alive, share, damping, places = alive[:, kept], share[:, kept], damping[:, kept], places[kept]
        total, _, parts, jacobians = equations.residual(xp, y, derivatives=True)
    end(alive)
    return [
        Fitted(one.equations, ends[place, :count, :size], residual[place, :count], int(steps[place]))
        for place, (one, (count, size)) in enumerate(zip(fits, sizes, strict=True))
    ]


@dataclass(frozen=True, eq=False)
class _Equations:
    """`Equations` of s chains side by side, filled up with zeros; where they differ in shape, with an axis for chains in front."""

    activations: tuple[Activation, ...]
    scales: list[Array]
    """(s, 1, 1), and so `unscaled`, their inverses."""
    unscaled: list[Array]
    offsets: list[Array]
    directions: list[Array]
    transposed: list[Array]
    """(s, d, m): the directions the other way round."""
    inverses: list[Array]
    turned: list[Array]
    """(s, m, d): the inverses the other way round."""
    weights: list[Array]
    passed: list[Array]
    """(s, m_{l-1}, m_l): the weights the other way round."""
    biases: list[Array]
    present: list[Array | None]
    """(s, 1, m) for each of a_1 … a_K: one for a unit that a chain has, zero for one that it has not; None if all have all."""

    @classmethod
    def of(cls, device: Device, several: Sequence[Equations]) -> _Equations:
        """Those of several chains."""

        def of_each(name: str) -> list[Array]:
            return [
                stacked(device, parts) for parts in zip(*(getattr(one, name) for one in several), strict=True)
            ]

        def other_way(arrays: list[Array]) -> list[Array]:
            turned = [device.xp.matrix_transpose(one) for one in arrays]
            # Stacks are multiplied on a card as they lie in memory, or copied each time.
            return turned if device.launch is None else [contiguous(device.xp, one) for one in turned]

        scales = np.asarray([one.scales for one in several])[:, :, None, None]
        present: list[Array | None] = []
        for parts in zip(*(one.offsets[1:] for one in several), strict=True):
            units = np.asarray([part.shape[1] for part in parts])
            there = np.arange(units.max()) < units[:, None, None]
            present.append(None if np.all(there) else device.float32(there))
        directions, inverses, weights = map(of_each, ("directions", "inverses", "weights"))
        return cls(
            several[0].activations,
            [device.float32(scales[:, layer, :, :]) for layer in range(scales.shape[1])],
            [device.float32(1 / scales[:, layer, :, :]) for layer in range(scales.shape[1])],
            of_each("offsets"),
            directions,
            other_way(directions),
            inverses,
            other_way(inverses),
            weights,
            other_way(weights),
            of_each("biases"),
            present,
        )

    def residual(
        self, xp: Namespace, y: Array, *, derivatives: bool
    ) -> tuple[Array, Array, list[Array], list[Array]]:
        """Of points `y` (s, k, d): squared residual (s, k), squared size (s, k), and for each layer residual (s, k, m) and, if asked for, Jacobian (s, k, m, d)."""
        z = (product(xp, y, self.transposed[0], None) + self.offsets[0]) * self.unscaled[0]
        by_y = (self.directions[0] * self.unscaled[0])[:, None, :, :]
        residuals, jacobians = [], []
        total = size = xp.zeros_like(z[:, :, 0])
        for number, (activation, scale) in enumerate(
            zip(self.activations, self.scales, strict=True), start=1
        ):
            a, slope = activation.value_and_slope(z)
            units = self.present[number - 1]
            rest = (scale * a if units is None else scale * a * units) - self.offsets[number]
            size = size + xp.sum(rest**2, axis=-1)
            inside = product(xp, rest, self.directions[number], None)
            rest = rest - product(xp, inside, self.inverses[number - 1], None)
            residuals.append(rest)
            total = total + xp.sum(rest**2, axis=-1)
            if derivatives:
                by_y = slope[:, :, :, None] * by_y
                scaled = scale[:, :, :, None] * by_y
                along = self.transposed[number][:, None, :, :] @ scaled
                jacobians.append(scaled - self.turned[number - 1][:, None, :, :] @ along)
            if number < len(self.activations):
                z = product(xp, a, self.passed[number - 1], None) + self.biases[number - 1]
                if derivatives:
                    by_y = self.weights[number - 1][:, None, :, :] @ by_y
        return total, size, residuals, jacobians
