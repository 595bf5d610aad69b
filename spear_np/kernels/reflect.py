"""What a step of relaxed reflections does entry by entry: onto the graph of an activation, through it, and the relaxed move.

Shapes: k points, m units; all arrays float32 and C-contiguous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Namespace
from ..backend.devices import Device
from .source import launch, runs_kernels

BLOCK = 256
"""Threads of a block.

Heuristic: any whole number of warps does where every thread works alone.
"""
MOST_BLOCKS = 8192
"""Blocks of a launch, each thread of which goes on to further entries.

Heuristic: more than any card runs at once.
"""


@dataclass(frozen=True)
class Pieces:
    """The graph of an activation as straight pieces, each a = intercept + slope · z between two ends."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    intercept: tuple[float, ...]
    slope: tuple[Any, ...]
    """A number, or one for each unit (m,)."""


def nearest_on_graph(xp: Namespace, pieces: Pieces, z: Array, a: Array) -> tuple[Array, Array]:
    """The points of the graph nearest to (`z`, `a`), entry by entry."""
    best: tuple[Array, Array, Array] | None = None
    for low, high, intercept, slope in zip(
        pieces.low, pieces.high, pieces.intercept, pieces.slope, strict=True
    ):
        shifted = a - intercept if intercept else a
        flat = isinstance(slope, float) and slope == 0.0
        along = z if flat else (z + slope * shifted) * (1 / (1 + slope**2))
        if math.isfinite(low):
            along = xp.maximum(along, xp.full_like(along, low))
        if math.isfinite(high):
            along = xp.minimum(along, xp.full_like(along, high))
        across = xp.full_like(a, intercept) if flat else intercept + slope * along
        distance = (along - z) ** 2 + (across - a) ** 2
        if best is None:
            best = along, across, distance
        else:
            nearer = distance < best[2]
            best = (
                xp.where(nearer, along, best[0]),
                xp.where(nearer, across, best[1]),
                xp.minimum(distance, best[2]),
            )
    assert best is not None
    return best[0], best[1]


def reflected(device: Device, pieces: Pieces, z: Array, a: Array) -> tuple[Array, Array, Array, Array]:
    """Four times (k, m): the points of the graph nearest to (`z`, `a`), and the reflections of these in them."""
    xp = device.xp
    if not runs_kernels(device, z):
        near_z, near_a = nearest_on_graph(xp, pieces, z, a)
        return near_z, near_a, 2 * near_z - z, 2 * near_a - a
    units = int(z.shape[1])
    numbers = device.float32([pieces.low, pieces.high, pieces.intercept])
    slopes = [
        device.float32(np.full(units, slope)) if isinstance(slope, float) else slope for slope in pieces.slope
    ]
    found = xp.empty_like(z), xp.empty_like(z), xp.empty_like(z), xp.empty_like(z)
    arguments = (
        z,
        a,
        np.uint64(z.size),
        np.int32(units),
        *(numbers[row, :] for row in range(3)),
        xp.stack(slopes),
        np.int32(len(slopes)),
        *found,
    )
    launch(device, "reflect_graph", blocks_for(z), BLOCK, arguments)
    return found


def relaxed(
    device: Device, v: Array, onto: Array, offset: Array | None, near: Array, share: float
) -> tuple[Array, Array]:
    """Points `v` (k, m) after a `share` of the move ``onto + offset - near``, and that move; `v` and `onto` are overwritten.

    `offset` (m,) completes an affine projection of which `onto` (k, m) is the linear part.
    """
    if runs_kernels(device, v):
        arguments = (
            v,
            onto,
            onto if offset is None else offset,
            near,
            np.uint64(v.size),
            np.int32(v.shape[1]),
            np.int32(offset is not None),
            np.float32(share),
        )
        launch(device, "reflect_move", blocks_for(v), BLOCK, arguments)
        return v, onto
    move = onto - near if offset is None else onto + offset - near
    return v + share * move, move


def blocks_for(array: Array) -> int:
    """How many blocks take care of all entries."""
    return min(MOST_BLOCKS, -(-int(array.size) // BLOCK))
