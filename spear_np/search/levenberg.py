"""Levenberg-Marquardt on the membership in the next layers, inside what is left to be found; for any activation.

From nearly every start it ends on an input where the activation is smooth: there are no other zeros to be caught in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import Array
from ..backend.devices import Device
from ..backend.work import block_length
from ..chain.layers import Chain
from ..chain.sets import RADII, Open
from ..kernels.width import MOST_STARTS, starts_at_once
from . import Ends
from .elsewhere import elsewhere
from .fits import Equations, Fit, Fitted, fit_on
from .together import Seat

DRY_STEPS = 8_000
"""Steps without a new input after which another search, or the same with more layers, has its turn.

Heuristic: some six hundred starts, where nearly every one ends on an input or none does.
"""
CANDIDATE = 1e-2
"""Residual, as a share of what activations differ by from input to input, up to which an end is handed to the polish.

Heuristic: other ends lie above it, and the polish refuses what is none.
"""


@dataclass(frozen=True, eq=False)
class Memory:
    """What starts were led by."""

    left: Open
    equations: Equations


class Levenberg:
    """One start after the other, or a block of them at once, each in what the last left open.

    Parameters
    ----------
    count : int
        Starts at once.
    device : Device, optional
        Where their steps are taken, if not where the chain is; the equations stay there.
    seat : Seat, optional
        Takes them together with those of other chains.
    """

    name = "levenberg"
    patience = DRY_STEPS

    def __init__(self, count: int = 1, device: Device | None = None, seat: Seat | None = None) -> None:
        self.count = count
        self.device = device
        self.seat = seat

    @classmethod
    def suited(cls, chain: Chain, device: Device | None = None, seat: Seat | None = None) -> Levenberg:
        """As many starts as `device`, by default that of `chain`, follows in the time of one; with a `seat` one."""
        if seat is not None:
            return cls(seat=seat)
        units, b = chain.layers[0].units, chain.batch_size
        # Nearly every start ends on an input: more than there are inputs find the same again.
        most = min(b, MOST_STARTS, block_length(units * b))
        return cls(starts_at_once(device or chain.device, 2.0 * units * b**2, 1, most=most), device)

    def start(self, left: Open, rng: np.random.Generator) -> Memory:
        """No start is carried from one block to the next, but what all are led by."""
        return Memory(left, Equations.of(left))

    def propose(self, left: Open, memory: Memory, rng: np.random.Generator) -> Ends:
        """Follow a block of starts to their ends and hand out those close to an input, the closest first."""
        chain, one = left.chain, left.sets[0]
        equations = memory.equations if memory.left is left else Equations.of(left)
        fitted = self._fitted(left, Fit(equations, _starts(left, self.count, rng)))
        good = np.argsort(fitted.residual)[: np.count_nonzero(fitted.residual <= CANDIDATE)]
        z = one.offset + chain.device.float64(fitted.ends[good]) @ one.directions.T
        return Ends(z @ one.to_coordinates.T, Memory(left, fitted.equations), fitted.steps)

    def _fitted(self, left: Open, fit: Fit) -> Fitted:
        """Where the starts of a fit end."""
        if self.seat is not None:
            return self.seat.fit(fit)
        return elsewhere(self.device or left.chain.device, fit_on, fit)


def _starts(left: Open, count: int, rng: np.random.Generator) -> Array:
    """(count, d) float32 points of the first set, drawn from the second moment of the inputs."""
    xp, device = left.chain.xp, left.chain.device
    root, one = left.roots[0], left.sets[0]
    radius = np.exp(rng.uniform(*RADII, (count, 1)))
    c = device.float64(rng.standard_normal((count, root.shape[1])) * radius) @ root.T
    z = left.scales[0] * (c @ left.chain.layers[0].to_units.T)
    return xp.astype((z - one.offset) @ one.directions, xp.float32)
