"""What the layer behind passes back: with few units it ties the gradients of all units of an input to each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..arrays import Array
from ..backend.algebra import inverse_or_pseudoinverse
from .activation import NO_ACTIVATION
from .gradients import LayerGradients
from .row_space import RowSpace
from .zero import ZERO_SIGMAS

FREE_SHARE = 0.25
"""Units of the last layer that is used, as a share of the equations that a column of ∂L/∂Z meets, up to which all are unknowns.

Derived: three quarters of the equations then remain to contradict a wrong column.
"""


@dataclass(frozen=True, eq=False)
class Behind:
    """The layer that follows, and what is known of what follows it."""

    gradients: LayerGradients
    last: bool
    """Whether nothing follows it."""
    loss: str | None = None
    """The name of the loss, if it is known."""

    @property
    def output(self) -> bool:
        """Whether it is the output layer of the network."""
        return self.last and self.gradients.sigma.name == NO_ACTIVATION[0]


def with_layer_behind(space: RowSpace, behind: Behind | None) -> RowSpace:
    """Return the `space` of a ReLU layer with what its columns of ∂L/∂Z can be, by the weights of the layer `behind`.

    A column is ``[z > 0] ∘ W_2ᵀ δ`` with δ in as many unknowns as that layer has units, whatever the loss is and whatever
    follows. Nothing is added where W_2 is missing, is not finite, does not fit, or has too many rows.
    """
    if behind is None or behind.gradients.weight is None:
        return space
    t, m = behind.gradients.shape
    if m != space.shape[0] or t > FREE_SHARE * (space.live.shape[0] - space.batch_size):
        return space
    weight = [part for _, (part,) in behind.gradients.blocks("weight", device=space.device)]
    passed = space.live_of(space.xp.concat(weight, axis=1).T) / space.live_of(space.noise)[:, None]
    return replace(space, passed=passed) if bool(space.xp.all(space.xp.isfinite(passed))) else space


def passed_by(space: RowSpace, q: Array) -> Array | None:
    """(k, t): the gradients δ of the layer behind for the columns of the directions `q` (k, b), NaN where none fits.

    None where nothing is known of that layer.
    """
    if space.passed is None:
        return None
    xp = space.xp
    columns = q @ space.U.T
    on = xp.astype(~space.zeros(q), xp.float64)
    rows = on[:, :, None] * space.passed[None, :, :]
    Q, R = xp.linalg.qr(rows)
    along = (columns[:, None, :] @ Q)[:, 0, :]
    left = on * (columns - (Q @ along[:, :, None])[:, :, 0])
    fits = xp.all(xp.abs(left) < ZERO_SIGMAS * space.noise_norm(q)[:, None], axis=1)
    delta = (inverse_or_pseudoinverse(xp, R) @ along[:, :, None])[:, :, 0]
    return xp.where(fits[:, None], delta, xp.full_like(delta, math.nan))
