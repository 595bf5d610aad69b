"""What a step of the reflections for columns does entry by entry: each unit is off, or on and passes back what it is given.

Shapes: k points, ℓ units; all arrays float32 and C-contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import Array, Namespace
from ..backend.devices import Device
from .reflect import BLOCK, blocks_for
from .source import launch, runs_kernels


@dataclass(frozen=True, eq=False)
class Sides:
    """Where points are nearest to "off" or "on", and their reflections there; all (k, ℓ)."""

    near: tuple[Array, Array, Array]
    """z, d and e."""
    turned: tuple[Array, Array, Array]


def nearer_on(xp: Namespace, z: Array, d: Array, e: Array, weight: float) -> Array:
    """(k, ℓ) bool: units nearer to "on", z ≥ 0 and d = e, than to "off", z ≤ 0 and d = 0.

    `weight` is the share of d in the mean of d and e that counts as theirs.
    """
    # Squared distances to "on" and to "off" differ by z|z| and what d and e differ by.
    return z * xp.abs(z) + d**2 >= weight * (d - e) ** 2


def nearest_side(device: Device, z: Array, d: Array, e: Array, weight: float) -> Sides:
    """Each unit of each point on the side it is nearer to; `weight` as in `nearer_on`."""
    xp = device.xp
    if runs_kernels(device, z):
        near, turned = ((xp.empty_like(z), xp.empty_like(z), xp.empty_like(z)) for _ in range(2))
        arguments = (z, d, e, np.uint64(z.size), np.float32(weight), *near, *turned)
        launch(device, "reflect_sides", blocks_for(z), BLOCK, arguments)
        return Sides(near, turned)
    zero = xp.zeros_like(z)
    on = nearer_on(xp, z, d, e, weight)
    both = d + weight * (e - d)
    near_z = xp.where(on, xp.maximum(z, zero), xp.minimum(z, zero))
    near_d, near_e = xp.where(on, both, zero), xp.where(on, both, e)
    return Sides((near_z, near_d, near_e), (2 * near_z - z, 2 * near_d - d, 2 * near_e - e))
