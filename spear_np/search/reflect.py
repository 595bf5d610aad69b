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

from dataclasses import dataclass, replace

import numpy as np

from ..arrays import Array, HostArray
from ..backend.devices import Device
from ..chain.layers import Chain
from ..chain.sets import RADII, Open
from ..kernels.width import starts_at_once
from . import Ends
from .elsewhere import elsewhere
from .reflections import Fresh, Ground, Walk, Walked, onto_sets, walk_on
from .together import Seat

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
COMPARED = 8 * STARTS
"""Settled starts that are compared with each other after a round, at most: only a card follows more.

Heuristic: several for each that is handed out, and as many as are compared in no time.
"""
SAME_PATTERN = 0.05
"""Share of the units in which the ends of two starts must differ to be polished both.

Heuristic: inputs that are nearer to each other are found when the other one is known.
"""


@dataclass(frozen=True, eq=False)
class Points:
    """Starts under way."""

    left: Open
    """What they were led by."""
    walk: Walk
    age: HostArray
    """(k,) steps taken."""


class Reflect:
    """A stream of starts: those that settle leave, the others go on in whatever is left to be found.

    Parameters
    ----------
    count : int
        Starts at once.
    device : Device, optional
        Where their steps are taken, if not where the chain is; the starts stay there.
    seat : Seat, optional
        Takes them together with those of other chains.
    """

    name = "reflect"

    def __init__(self, count: int = STARTS, device: Device | None = None, seat: Seat | None = None) -> None:
        self.count = count
        self.device = device
        self.seat = seat

    @classmethod
    def suited(cls, chain: Chain, device: Device | None = None, seat: Seat | None = None) -> Reflect:
        """As many starts as `device`, by default that of `chain`, follows in the time of few; with a `seat` few."""
        if seat is not None:
            return cls(seat=seat)
        entries = sum(layer.units * chain.batch_size for layer in chain.layers)
        return cls(starts_at_once(device or chain.device, 4.0 * entries, STARTS), device)

    @property
    def patience(self) -> int:
        """As many steps of each start, however many there are at once."""
        return DRY * max(1, self.count // STARTS)

    def start(self, left: Open, rng: np.random.Generator) -> Points:
        """Return fresh starts."""
        walk = Walk(Ground.of(left), _drawn(left, self.count, rng), ROUND_STEPS, SETTLED, COMPARED)
        return Points(left, walk, np.zeros(self.count, dtype=np.int64))

    def propose(self, left: Open, memory: Points, rng: np.random.Generator) -> Ends:
        """Go on for some steps and hand out what has settled, most settled first; no more at once than a CPU follows starts."""
        ground = memory.walk.ground if memory.left is left else Ground.of(left)
        walked = self._taken(left, replace(memory.walk, ground=ground))
        age = memory.age + ROUND_STEPS
        kept = _distinct(walked.z)[:STARTS]
        coordinates = _coordinates(left, walked.z[kept])
        old = np.flatnonzero(age >= PATIENCE)
        which = np.union1d(walked.settled[kept], old).astype(np.int64)
        points = _renewed(Points(left, walked.walk, age), which, rng)
        return Ends(coordinates, points, ROUND_STEPS * len(age))

    def _taken(self, left: Open, walk: Walk) -> Walked:
        """Where the starts of a walk are after its steps."""
        if self.seat is not None:
            return self.seat.walk(walk)
        return elsewhere(self.device or left.chain.device, walk_on, walk)


def _distinct(z: HostArray) -> HostArray:
    """Those rows of the ends `z` (r, m) whose patterns differ; the rest go on and settle in what is then left."""
    signs = np.where(z > 0, np.float32(1), np.float32(-1))
    units = signs.shape[1]
    apart = (units - signs @ signs.T) / 2 >= SAME_PATTERN * units
    kept: list[int] = []
    for row in range(len(z)):
        if np.all(apart[row, kept]):
            kept.append(row)
    return np.asarray(kept, dtype=np.int64)


def _coordinates(left: Open, z: HostArray) -> Array:
    """(r, b): where the points with `z` (r, m) in the first layer meet the first affine set."""
    one, points = left.sets[0], left.chain.device.float64(z)
    nearest = one.offset + (points @ one.directions) @ one.directions.T
    return nearest @ one.to_coordinates.T


def _drawn(left: Open, count: int, rng: np.random.Generator) -> tuple[Array, ...]:
    """Draw the points of `count` starts, as in `Walk`, from the second moments of the inputs of each layer."""
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
    return onto_sets(device, Ground.of(left), [*z, *a])


def _renewed(points: Points, which: HostArray, rng: np.random.Generator) -> Points:
    """The points, with new starts in the places `which`."""
    if not len(which):
        return points
    rows = np.arange(len(points.age))
    rows[which] = len(points.age) + np.arange(len(which))
    age = points.age.copy()
    age[which] = 0
    fresh = Fresh(rows, _drawn(points.left, len(which), rng))
    return replace(points, walk=replace(points.walk, fresh=fresh), age=age)
