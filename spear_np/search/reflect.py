"""Relaxed reflections between what layers can hold and what activations allow, for activations of straight pieces.

A point holds z_l and a_{l+1} of every layer that takes part. One set is affine: z_l = M_l c_l and a_{l+1} = V_{l+1} c_{l+1}
with s · c = 1, orthogonal to the duals of all known inputs. The other asks each unit alone to lie on the graph of its
activation. A step is ``v += β (P_A(2 p - v) - p)`` with p = P_B(v): where it rests, p lies in both sets [1]_.

References
----------
.. [1] V. Elser, "Searching with iterated maps", PNAS 104 (2007) 418-423; "The complexity of bit retrieval", IEEE
   Transactions on Information Theory 64 (2018) 412-428 (relaxed reflect-reflect).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np

from ..arrays import Array, HostArray
from ..backend.devices import Device
from ..backend.host import to_host
from ..chain.layers import Chain
from ..chain.sets import RADII, Open
from ..factors.activation import Activation
from ..kernels.reflect import Pieces, reflected, relaxed
from ..kernels.width import starts_at_once
from . import Ends

RELAXATION = 0.7
"""β, the share of the way to the reflected point that a step goes.

Heuristic: from 0.5 to 1.2 the time for a batch differs by a third.
"""
ROUND_STEPS = 25
"""Steps between two looks at which starts have settled.

Heuristic: 10 to 50 take the same time.
"""
SETTLED = 0.03
"""Share of its length that a point still moves by when it is polished.

Heuristic: 0.01 to 0.06 take the same time.
"""
STARTS = 16
"""Starts at once on a CPU.

Heuristic: 8 to 32 take the same time.
"""
PATIENCE = 2000
"""Steps after which a start is replaced.

Heuristic: those that settle do so within some hundred.
"""
DRY = 400_000
"""Steps of all of `STARTS` starts without a new input after which another search has its turn.

Heuristic: a thousand times what an input costs where they come quickly, and enough for the first of a hundred at m = 200.
"""
SAME_PATTERN = 0.05
"""Share of the units in which the ends of two starts must differ to be polished both.

Heuristic: inputs that are nearer to each other are found when the other one is known.
"""


def pieces_of(activation: Activation, scale: float, device: Device) -> Pieces:
    """The pieces of a piecewise linear `activation`, in numbers that are multiplied by `scale`."""
    ends = [-math.inf, *sorted(activation.kinks), math.inf]
    slopes, intercepts = [], []
    for low, high in itertools.pairwise(ends):
        inside = low + 1.0 if math.isfinite(low) else high - 1.0
        if math.isfinite(low) and math.isfinite(high):
            inside = (low + high) / 2
        width = max((np.size(value) for value in activation.parameters.values()), default=1)
        value, slope = activation.value_and_slope(np.full(width, inside))
        intercepts.append(float((value - slope * inside)[0]))
        slopes.append(float(slope[0]) if width == 1 else device.float32(slope))
    return Pieces(
        tuple(end * scale for end in ends[:-1]),
        tuple(end * scale for end in ends[1:]),
        tuple(intercept * scale for intercept in intercepts),
        tuple(slopes),
    )


@dataclass(frozen=True)
class Points:
    """k points under way; float32."""

    z: tuple[Array, ...]
    """(k, m_l) for l = 0 … K - 1."""
    a: tuple[Array, ...]
    """(k, m_l) for l = 1 … K."""
    age: HostArray
    """(k,) steps taken."""


class Reflect:
    """A stream of starts: those that settle leave, the others go on in whatever is left to be found."""

    name = "reflect"

    def __init__(self, count: int = STARTS) -> None:
        self.count = count

    @classmethod
    def suited(cls, chain: Chain) -> Reflect:
        """As many starts as the device of `chain` follows in the time of few."""
        entries = sum(layer.units * chain.batch_size for layer in chain.layers)
        return cls(starts_at_once(chain.device, 4.0 * entries, STARTS))

    @property
    def patience(self) -> int:
        """As many steps of each start, however many there are at once."""
        return DRY * max(1, self.count // STARTS)

    def start(self, left: Open, rng: np.random.Generator) -> Points:
        """Return fresh starts."""
        return _drawn(left, self.count, rng)

    def propose(self, left: Open, memory: Points, rng: np.random.Generator) -> Ends:
        """Go on for some steps and hand out what has settled, most settled first."""
        points, gap = _steps(left, memory, ROUND_STEPS)
        settled = np.argsort(gap)[: np.count_nonzero(gap < SETTLED)]
        ends = _distinct(points, settled)
        coordinates = _coordinates(left, points, ends)
        old = np.flatnonzero(points.age >= PATIENCE)
        renewed = _renewed(left, points, np.union1d(ends, old).astype(np.int64), rng)
        return Ends(coordinates, renewed, ROUND_STEPS * len(points.age))


def _distinct(points: Points, settled: HostArray) -> HostArray:
    """Those of the places `settled` whose patterns differ; the rest go on and settle in what is then left."""
    if not len(settled):
        return settled
    signs = np.where(to_host(points.z[0])[settled] > 0, np.float32(1), np.float32(-1))
    units = signs.shape[1]
    apart = (units - signs @ signs.T) / 2 >= SAME_PATTERN * units
    kept: list[int] = []
    for row in range(len(settled)):
        if np.all(apart[row, kept]):
            kept.append(row)
    return np.asarray(settled[kept])


def _coordinates(left: Open, points: Points, which: HostArray) -> Array:
    """(k, b): where the points `which` meet the first affine set."""
    xp, one = left.chain.xp, left.sets[0]
    z = xp.astype(xp.take(points.z[0], left.chain.device.integers(which), axis=0), xp.float64)
    z = one.offset + (z @ one.directions) @ one.directions.T
    return z @ one.to_coordinates.T


def _drawn(left: Open, count: int, rng: np.random.Generator) -> Points:
    """Draw `count` starts from the second moments of the inputs of each layer."""
    chain = left.chain
    xp, device = chain.xp, chain.device
    z, a = [], []
    for number in range(left.depth + 1):
        root = left.roots[number]
        radius = np.exp(rng.uniform(*RADII, (count, 1)))
        c = device.float64(rng.standard_normal((count, root.shape[1])) * radius) @ root.T
        layer = chain.layers[number]
        if number:
            a.append(xp.astype(left.scales[number - 1] * (c @ layer.basis.T), xp.float32))
        if number < left.depth:
            z.append(xp.astype(left.scales[number] * (c @ layer.to_units.T), xp.float32))
    z, a = _onto_sets(left, z, a)
    offset_z, offset_a = _offsets(left)
    z = [v + offset for v, offset in zip(z, offset_z, strict=True)]
    a = [v + offset for v, offset in zip(a, offset_a, strict=True)]
    return Points(tuple(z), tuple(a), np.zeros(count, dtype=np.int64))


def _onto_sets(left: Open, z: list[Array], a: list[Array]) -> tuple[list[Array], list[Array]]:
    """P_A: the nearest points of the affine sets, less their `_offsets`."""
    onto_z, onto_a = [], []
    for number, one in enumerate(left.sets):
        directions = one.single[1]
        if number == 0:
            onto_z.append((z[0] @ directions) @ directions.T)
        elif number == left.depth:
            onto_a.append((a[-1] @ directions) @ directions.T)
        else:
            split = a[number - 1].shape[1]
            upper, lower = directions[:split, :], directions[split:, :]
            y = a[number - 1] @ upper + z[number] @ lower
            onto_a.append(y @ upper.T)
            onto_z.append(y @ lower.T)
    return onto_z, onto_a


def _offsets(left: Open) -> tuple[list[Array], list[Array]]:
    """The points of the affine sets nearest to zero, one (m_l,) for each of z and a."""
    offset_z, offset_a = [], []
    for number, one in enumerate(left.sets):
        offset = one.single[0]
        units = left.chain.layers[number].basis.shape[0] if number else 0
        if number:
            offset_a.append(offset[:units])
        if number < left.depth:
            offset_z.append(offset[units:])
    return offset_z, offset_a


def _steps(left: Open, points: Points, count: int) -> tuple[Points, HostArray]:
    """`count` steps; also how far each point moves in the last of them, as a share of its length (k,)."""
    device, xp = left.chain.device, left.chain.xp
    pieces = [
        pieces_of(layer.sigma, scale, device)
        for layer, scale in zip(left.chain.layers, left.scales, strict=False)
    ]
    offset_z, offset_a = _offsets(left)
    # Copies: a step may overwrite them.
    z, a = ([xp.asarray(v, copy=True) for v in part] for part in (points.z, points.a))
    far = size = xp.zeros_like(z[0][:, 0])
    for step in range(count):
        found = [reflected(device, piece, *pair) for piece, *pair in zip(pieces, z, a, strict=True)]
        p, h, turned_z, turned_a = (list(part) for part in zip(*found, strict=True))
        onto_z, onto_a = _onto_sets(left, turned_z, turned_a)
        z, moves_z = _moved(device, z, onto_z, offset_z, p)
        a, moves_a = _moved(device, a, onto_a, offset_a, h)
        if step == count - 1:
            far = reduce(add, (xp.sum(move**2, axis=1) for move in (*moves_z, *moves_a)))
            size = reduce(add, (xp.sum(part**2, axis=1) for part in (*p, *h)))
    gap = np.sqrt(to_host(far) / np.maximum(to_host(size), np.finfo(np.float32).tiny))
    return Points(tuple(z), tuple(a), points.age + count), np.nan_to_num(gap, nan=np.inf)


def _moved(
    device: Device, v: list[Array], onto: list[Array], offsets: list[Array], near: list[Array]
) -> tuple[list[Array], list[Array]]:
    """The relaxed step of each part of the points, and its whole move."""
    moved = [relaxed(device, *one, RELAXATION) for one in zip(v, onto, offsets, near, strict=True)]
    return [point for point, _ in moved], [move for _, move in moved]


def _renewed(left: Open, points: Points, which: HostArray, rng: np.random.Generator) -> Points:
    """The points, with new starts in the places `which`."""
    if not len(which):
        return points
    xp, device = left.chain.xp, left.chain.device
    fresh = _drawn(left, len(which), rng)
    source = np.arange(len(points.age))
    source[which] = len(points.age) + np.arange(len(which))
    rows = device.integers(source)
    age = points.age.copy()
    age[which] = 0
    return replace(
        points,
        z=tuple(
            xp.take(xp.concat([v, n], axis=0), rows, axis=0) for v, n in zip(points.z, fresh.z, strict=True)
        ),
        a=tuple(
            xp.take(xp.concat([v, n], axis=0), rows, axis=0) for v, n in zip(points.a, fresh.a, strict=True)
        ),
        age=age,
    )
