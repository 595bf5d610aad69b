"""Which task comes first: what is cheap, so that a run which ends early has done most."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .selection import Task

SHARE_DOUBLES = 0.08
"""Share of inputs per output unit by which the search for them takes twice as long.

Heuristic: between m = 200, b = 20 and b = 65 it takes 80 times as long. It decides an order, and no answer.
"""

USUAL_SHARE = 0.1
"""Inputs for each output unit where the dump does not state a batch size.

Heuristic: as `SHARE_DOUBLES`.
"""


def cheap_first(tasks: Iterable[Task]) -> list[Task]:
    """Return the tasks in the order in which they are begun; of equal ones, that of the file."""
    return sorted(tasks, key=lambda task: (forecast(task.shape, task.batch_size), task.number))


def forecast(shape: tuple[int, int], batch_size: int | None) -> float:
    """Return about how much work a layer (m, n) is, in no unit: its decomposition, and the search."""
    m, n = shape
    b = max(1.0, USUAL_SHARE * m) if batch_size is None else float(batch_size)
    share = min(b / max(1, m), 1.0)  # a layer without units is refused later, by name
    return m * n * float(min(m, n)) + m * b * b * math.exp2(share / SHARE_DOUBLES)
