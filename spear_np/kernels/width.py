"""How many starts a search follows at once: on a card as many as cost no more time than few."""

from __future__ import annotations

from ..backend.card import multiprocessors
from ..backend.devices import Device

LAUNCH_SECONDS = 60e-6
"""Time of one step of a search on a card, however little it computes.

Measured: with research kernels on an H100, two products and two to four small kernels a step, from m = 200, b = 20 to m = 1000, b = 120.
"""
MULTIPROCESSOR_RATE = 1e11
"""Floating-point operations a second of float32 products of a search, of each multiprocessor.

Measured: 25 to 33 TFLOP/s on the 132 multiprocessors of an H100 with wide blocks, half of it with those that just fill the card.
"""
WARP_OF_STARTS = 32
"""Starts are as many as a multiple of this.

Heuristic: matrix products tile their rows.
"""
MOST_STARTS = 8192
"""Starts at once, at most.

Heuristic: what comes behind them takes its time for each.
"""


def starts_at_once(device: Device, operations: float, fewest: int, *, most: int = MOST_STARTS) -> int:
    """Return how many starts a block has, each of which takes `operations` floating-point operations a step.

    On a card as many as its multiprocessors compute in the time that launching a step takes; `fewest` elsewhere, and at
    least.
    """
    processors = multiprocessors(device)
    if processors is None:
        return fewest
    free = LAUNCH_SECONDS * processors * MULTIPROCESSOR_RATE / max(operations, 1.0)
    return max(fewest, min(most, WARP_OF_STARTS * int(free / WARP_OF_STARTS)))
