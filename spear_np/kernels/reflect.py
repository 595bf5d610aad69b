"""What a step of relaxed reflections does entry by entry: onto the graph of an activation, through it, and the relaxed move.

Shapes: s chains, k points, m units; all arrays float32 and C-contiguous. Points of several chains are (s, k, m), those of one
may be (k, m).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, HostArray, Namespace
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


@dataclass(frozen=True, eq=False)
class Pieces:
    """The graph of an activation as straight pieces, each a = intercept + slope · z between two ends.

    Ends and intercepts are numbers, or (s,) where chains measure by different scales; slopes are numbers, or (m,).
    """

    low: tuple[float | HostArray, ...]
    high: tuple[float | HostArray, ...]
    intercept: tuple[float | HostArray, ...]
    slope: tuple[float | HostArray, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """Where points are reflected: `Pieces` on a device."""

    low: tuple[Any, ...]
    """What is not a number is (s, 1, 1) here and in the next two; the arrays of all four are there without kernels only."""
    high: tuple[Any, ...]
    intercept: tuple[Any, ...]
    slope: tuple[Any, ...]
    """Numbers or (m,)."""
    ends: Array | None = None
    """(3, pieces, s): low, high and intercept, for kernels."""
    slopes: Array | None = None
    """(pieces, m), for kernels."""

    @classmethod
    def on(cls, device: Device, pieces: Pieces, chains: int, units: int) -> Graph:
        """That of so many `chains` of so many `units`."""
        rows = pieces.low, pieces.high, pieces.intercept
        if device.launch is None:
            low, high, intercept = (
                tuple(end if isinstance(end, float) else device.float32(end)[:, None, None] for end in row)
                for row in rows
            )
            slopes = (one if isinstance(one, float) else device.float32(one) for one in pieces.slope)
            return cls(low, high, intercept, tuple(slopes))
        table = [[np.broadcast_to(end, chains) for end in row] for row in rows]
        tilts = [np.broadcast_to(slope, units) for slope in pieces.slope]
        return cls(*rows, pieces.slope, device.float32(np.asarray(table)), device.float32(np.asarray(tilts)))


def nearest_on_graph(xp: Namespace, graph: Graph, z: Array, a: Array) -> tuple[Array, Array]:
    """The points of the graph nearest to (`z`, `a`), entry by entry."""
    best: tuple[Array, Array, Array] | None = None
    for low, high, intercept, slope in zip(graph.low, graph.high, graph.intercept, graph.slope, strict=True):
        shifted = a if _is(intercept, 0.0) else a - intercept
        flat = _is(slope, 0.0)
        along = z if flat else (z + slope * shifted) * (1 / (1 + slope**2))
        if not _is(low, -math.inf):
            along = xp.maximum(along, _like(xp, along, low))
        if not _is(high, math.inf):
            along = xp.minimum(along, _like(xp, along, high))
        across = _like(xp, a, intercept) if flat else intercept + slope * along
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


def _is(value: Any, number: float) -> bool:
    """Whether `value` is that `number`, for all chains and units."""
    return isinstance(value, float) and value == number


def _like(xp: Namespace, array: Array, value: Any) -> Array:
    """`value` in the shape of `array`."""
    return xp.full_like(array, value) if isinstance(value, float) else xp.broadcast_to(value, array.shape)


def reflected(device: Device, graph: Graph, z: Array, a: Array) -> tuple[Array, Array, Array, Array]:
    """Four arrays in the shape of `z` and `a`: the points of the graph nearest to (`z`, `a`), and the reflections of these in them."""
    xp = device.xp
    if not runs_kernels(device, z):
        near_z, near_a = nearest_on_graph(xp, graph, z, a)
        return near_z, near_a, 2 * near_z - z, 2 * near_a - a
    assert graph.ends is not None  # see `Graph.on`
    found = xp.empty_like(z), xp.empty_like(z), xp.empty_like(z), xp.empty_like(z)
    arguments = (
        z,
        a,
        np.uint64(z.size),
        np.int32(_chains(z)),
        np.int32(z.shape[-1]),
        *(graph.ends[row, :, :] for row in range(3)),
        graph.slopes,
        np.int32(len(graph.slope)),
        *found,
    )
    launch(device, "reflect_graph", blocks_for(z), BLOCK, arguments)
    return found


def relaxed(
    device: Device, v: Array, onto: Array, offset: Array | None, near: Array, share: float
) -> tuple[Array, Array]:
    """Points `v` after a `share` of the move ``onto + offset - near``, and that move; `v` and `onto` are overwritten.

    `offset`, (m,) for points (k, m) and (s, 1, m) for points (s, k, m), completes an affine projection of which `onto`, in the
    shape of `v`, is the linear part.
    """
    if runs_kernels(device, v):
        arguments = (
            v,
            onto,
            onto if offset is None else offset,
            near,
            np.uint64(v.size),
            np.int32(_chains(v)),
            np.int32(v.shape[-1]),
            np.int32(offset is not None),
            np.float32(share),
        )
        launch(device, "reflect_move", blocks_for(v), BLOCK, arguments)
        return v, onto
    move = onto - near if offset is None else onto + offset - near
    return v + share * move, move


def _chains(points: Array) -> int:
    """s."""
    return int(points.shape[0]) if points.ndim == 3 else 1


def blocks_for(array: Array) -> int:
    """How many blocks take care of all entries."""
    return min(MOST_BLOCKS, -(-int(array.size) // BLOCK))
