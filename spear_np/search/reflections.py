"""Starts of chains on their way: the steps of relaxed reflections, for several chains side by side.

What the two sets are and where starts come from is in `reflect`; what a step does entry by entry, in `kernels.reflect`. A chain
for itself is the case of one: the same steps in the same order, without padding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import contiguous, product, stacked
from ..backend.card import tensor_cores
from ..backend.devices import Device
from ..backend.host import to_host
from ..chain.sets import Open
from ..factors.activation import Activation
from ..kernels.reflect import Graph, Pieces, reflected, relaxed

RELAXATION = 0.7
"""β, the share of the way to the reflected point that a step goes.

Heuristic: from 0.5 to 1.2 the time for a batch differs by a third.
"""


def pieces_of(activation: Activation, scales: Sequence[float]) -> Pieces:
    """The pieces of a piecewise linear `activation`, in numbers that are multiplied by the scale of each of s chains."""
    ends = [-math.inf, *sorted(activation.kinks), math.inf]
    slopes, intercepts = [], []
    for low, high in itertools.pairwise(ends):
        inside = low + 1.0 if math.isfinite(low) else high - 1.0
        if math.isfinite(low) and math.isfinite(high):
            inside = (low + high) / 2
        width = max((np.size(value) for value in activation.parameters.values()), default=1)
        value, slope = (to_host(one) for one in activation.value_and_slope(np.full(width, inside)))
        intercepts.append(float((value - slope * inside)[0]))
        slopes.append(float(slope[0]) if width == 1 else slope)

    def scaled(number: float) -> float | HostArray:
        numbers = [number * scale for scale in scales]
        return numbers[0] if len(set(numbers)) == 1 else np.asarray(numbers)

    return Pieces(
        tuple(scaled(end) for end in ends[:-1]),
        tuple(scaled(end) for end in ends[1:]),
        tuple(scaled(intercept) for intercept in intercepts),
        tuple(slopes),
    )


@dataclass(frozen=True, eq=False)
class Ground:
    """What the starts of one chain are led by; float32, d free dimensions in each set.

    Parts of a point are z_0 … z_{K-1}, then a_1 … a_K; see `Open` for the sets that hold one or two of them.
    """

    activations: tuple[Activation, ...]
    """Of the layers 0 … K - 1."""
    scales: tuple[float, ...]
    """Of z_l and a_{l+1}."""
    offsets: tuple[Array, ...]
    """(1, m) for each part: of its set the point nearest to zero."""
    directions: tuple[Array, ...]
    """(m, d) for each part: with the other part in the set, orthonormal columns."""

    @classmethod
    def of(cls, left: Open) -> Ground:
        """That of what is left open."""
        sets = [one.single for one in left.sets]
        units = [0, *(int(layer.basis.shape[0]) for layer in left.chain.layers[1 : left.depth + 1])]
        z = [(sets[number], slice(units[number], None)) for number in range(left.depth)]
        a = [(sets[number], slice(0, units[number])) for number in range(1, left.depth + 1)]
        parts = [(offset[None, rows], directions[rows, :]) for (offset, directions), rows in (*z, *a)]
        offsets, directions = zip(*parts, strict=True)
        sigmas = tuple(layer.sigma for layer in left.chain.layers[: left.depth])
        return cls(sigmas, left.scales, offsets, directions)


@dataclass(frozen=True, eq=False)
class Fresh:
    """Starts that take the place of others."""

    rows: HostArray
    """(k,): which start goes on in each place, those of `points` being counted behind the k that are under way."""
    points: tuple[Array, ...]


@dataclass(frozen=True, eq=False)
class Walk:
    """k starts of one chain, and what they go by; each array on the host, or where the steps are taken."""

    ground: Ground
    points: tuple[Array, ...]
    """(k, m) float32 for each part."""
    steps: int
    settled: float
    """Share of its length that a start still moves by in the last step when it has settled."""
    shown: int
    """Starts that have settled and are looked at, at most."""
    fresh: Fresh | None = None
    """What takes places before the first step."""

    @property
    def kind(self) -> Hashable:
        """What walks must have in common to be taken together."""
        return self.ground.activations, self.steps

    def renewed(self, xp: Namespace) -> tuple[Array, ...]:
        """The points, with what is fresh in its places."""
        if self.fresh is None:
            return self.points
        both = zip(self.points, self.fresh.points, strict=True)
        return tuple(xp.take(xp.concat(pair, axis=0), self.fresh.rows, axis=0) for pair in both)


@dataclass(frozen=True, eq=False)
class Walked:
    """Where the starts of a walk are after its steps."""

    walk: Walk
    """To go on from; all of it where the steps were taken."""
    settled: HostArray
    """(r,): numbers of the starts that have settled, the most settled first; of many the first."""
    z: HostArray
    """(r, m_0): their pre-activations in the first layer."""


def walk_on(device: Device, walks: Sequence[Walk]) -> list[Walked]:
    """Take the steps of `walks` of one `kind`, whose arrays are on `device`.

    Starts, units and free dimensions may differ in number: those that a chain has not are zero.

    Notes
    -----
    Read back from the device are the share that each point moves by, and what has settled.
    """
    xp = device.xp
    before = [one.renewed(xp) for one in walks]
    points = [stacked(device, part) for part in zip(*before, strict=True)]
    if len(walks) == 1:  # a step may overwrite them
        points = [xp.asarray(part, copy=True) for part in points]
    points, gaps = _Path.of(device, [one.ground for one in walks]).taken(points, walks[0].steps)
    counts = [part[0].shape[0] for part in before]
    settled = [
        np.argsort(gap[:count])[: min(one.shown, np.count_nonzero(gap[:count] < one.settled))]
        for gap, count, one in zip(gaps, counts, walks, strict=True)
    ]
    # One copy for all of them: each waits for the card.
    rows = np.concatenate([place * gaps.shape[1] + numbers for place, numbers in enumerate(settled)])
    z = xp.reshape(points[0], (gaps.size, points[0].shape[2]))
    shown = np.split(
        to_host(xp.take(z, device.integers(rows), axis=0)), np.cumsum([len(one) for one in settled])[:-1]
    )
    found = []
    for place, (one, old) in enumerate(zip(walks, before, strict=True)):
        own = tuple(part[place, : o.shape[0], : o.shape[1]] for part, o in zip(points, old, strict=True))
        after = replace(one, points=own, fresh=None)
        found.append(Walked(after, settled[place], shown[place][:, : old[0].shape[1]]))
    return found


@dataclass(frozen=True, eq=False)
class _Path:
    """What the starts of s chains are led by, side by side."""

    device: Device
    graphs: list[Graph]
    """Of each activation."""
    sets: _Sets
    present: list[Array | None]
    """(s, 1, m) for each part: one for a unit that a chain has, zero for one that it has not; None if all have all."""

    @classmethod
    def of(cls, device: Device, grounds: Sequence[Ground]) -> _Path:
        """That of several chains."""
        graphs, present = [], []
        for number, activation in enumerate(grounds[0].activations):
            units = np.asarray([ground.offsets[number].shape[1] for ground in grounds])
            pieces = pieces_of(activation, [ground.scales[number] for ground in grounds])
            graphs.append(Graph.on(device, pieces, len(grounds), int(units.max())))
            there = np.arange(units.max()) < units[:, None, None]
            present.append(None if np.all(there) else device.float32(there))
        return cls(device, graphs, _Sets.of(device, grounds), [*present, *present])

    def taken(self, points: list[Array], steps: int) -> tuple[list[Array], HostArray]:
        """Points (s, k, m) after so many steps, and the share of its length that each moves by in the last of them (s, k).

        `points` are overwritten.
        """
        device, xp, depth = self.device, self.device.xp, len(self.graphs)
        moves = near = points
        with tensor_cores(device):  # ten bits of the mantissa do: benchmarks/tf32.py
            for _ in range(steps):
                parts = zip(self.graphs, points[:depth], points[depth:], strict=True)
                p, h, turned_z, turned_a = zip(*(reflected(device, *one) for one in parts), strict=True)
                near, turned = [*p, *h], [*turned_z, *turned_a]
                both = zip(points, self.sets.onto(xp, turned), self.sets.offsets, near, strict=True)
                moved = [relaxed(device, *one, RELAXATION) for one in both]
                points, moves = [point for point, _ in moved], [move for _, move in moved]
        # One copy: each waits for the card.
        far, size = to_host(xp.stack([self._squares(moves), self._squares(near)]))
        gaps = np.sqrt(far / np.maximum(size, np.finfo(np.float32).tiny))
        return points, np.nan_to_num(gaps, nan=np.inf)

    def _squares(self, parts: Sequence[Array]) -> Array:
        """(s, k): sum of squares over all units that are there."""
        squares = (part**2 for part in parts)
        there = (
            square if units is None else square * units
            for square, units in zip(squares, self.present, strict=True)
        )
        return reduce(add, (self.device.xp.sum(square, axis=-1) for square in there))


@dataclass(frozen=True, eq=False)
class _Sets:
    """The affine sets of s chains side by side, for each part of a point, filled up with zeros."""

    offsets: list[Array]
    """(s, 1, m)."""
    directions: list[Array]
    """(s, m, d)."""
    transposed: list[Array]
    """(s, d, m)."""
    made: dict[Hashable, Array] | None
    """Products of the step before: those of the next take their place on a card; None on the host, which has memory at once."""

    @classmethod
    def of(cls, device: Device, grounds: Sequence[Ground]) -> _Sets:
        """Those of several chains."""
        xp = device.xp
        offsets = [stacked(device, one) for one in zip(*(ground.offsets for ground in grounds), strict=True)]
        directions = [
            stacked(device, one) for one in zip(*(ground.directions for ground in grounds), strict=True)
        ]
        transposed = [xp.matrix_transpose(one) for one in directions]
        if device.launch is not None:  # kernels, and products of stacks, read what lies together in memory
            offsets, directions, transposed = (
                [contiguous(xp, one) for one in part] for part in (offsets, directions, transposed)
            )
        return cls(offsets, directions, transposed, None if device.launch is None else {})

    def onto(self, xp: Namespace, points: Sequence[Array]) -> list[Array]:
        """P_A: the nearest points of the sets, less their offsets."""
        depth = len(points) // 2
        onto = list(points)
        for number in range(depth + 1):
            parts = [depth + number - 1] * (number > 0) + [number] * (number < depth)
            y = reduce(add, (self._times(xp, part, points[part], self.directions[part]) for part in parts))
            for part in parts:
                onto[part] = self._times(xp, ("onto", part), y, self.transposed[part])
        return onto

    def _times(self, xp: Namespace, name: Hashable, left: Array, right: Array) -> Array:
        if self.made is None:
            return product(xp, left, right, None)
        self.made[name] = product(xp, left, right, self.made.get(name))
        return self.made[name]


def onto_sets(device: Device, ground: Ground, points: Sequence[Array]) -> tuple[Array, ...]:
    """The points of the sets of one chain nearest to `points`, (k, m) float32 for each part; all on `device`."""
    onto = _Sets.of(device, [ground]).onto(device.xp, [part[None, :, :] for part in points])
    return tuple(part[0, :, :] + offset for part, offset in zip(onto, ground.offsets, strict=True))
