"""Layers of several records that go to a card together, as `spear_np.invert_many` has them; the rest one after the other.

They are read first, each under the limits for strangers' files, and their files closed; then all are inverted at once, and
each answer is in the journal as soon as it is there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import spear_np
from spear_np.many import MOST_TOGETHER, outcomes
from spear_np.placement import HOST_UNITS

from ..files.dump import open_dump
from ..problems import FileError, Place, WriteError
from .selection import Task
from .task import Done, Ends, Origin, Search, found, invert_task

READ_AHEAD = 4 * MOST_TOGETHER
"""Layers that are read before any of them is inverted, at most.

Heuristic: few wait for the last of them, and those are a fraction of the time.
"""
READ_BYTES = 2**30
"""Bytes that their numbers may take as float64, at most.

Heuristic: little on a machine with a card.
"""


@dataclass(frozen=True)
class _Read:
    """A layer whose file is closed."""

    task: Task
    place: Place
    origin: Origin
    gradients: spear_np.LayerGradients


def next_together(waiting: deque[Task]) -> list[Task]:
    """Take from the `waiting` tasks those that `invert_together` does at a time: at least one."""
    taken: list[Task] = []
    left = float(READ_BYTES)
    while waiting and len(taken) < READ_AHEAD:
        left -= 2 * 8 * math.prod(waiting[0].shape)  # gradient and weights
        if taken and left < 0:
            break
        taken.append(waiting.popleft())
    return taken


def invert_together(
    tasks: Sequence[Task],
    search: Search,
    journal: Path,
    callback: Callable[[Task, spear_np.Progress], None],
    stop: Callable[[], bool],
) -> Generator[Done]:
    """Invert layers and write each answer into the journal, as `invert_task` does; yields what became of each, as it ends.

    Closing the generator ends all.

    Raises
    ------
    WriteError
        If the journal cannot be written.
    DeviceError
        If the device does not answer.
    """
    ends = Ends(journal, stop)
    read: list[_Read] = []
    others: list[Task] = []
    for task in tasks:
        try:
            held = None if ends() else _read(task, search)
        except Exception as error:  # noqa: BLE001  (whatever one record does, the others go on)
            yield Done(task.number, error=error)
            continue
        if held is None:
            others.append(task)
        else:
            read.append(held)
    options = spear_np.Options(
        search.batch_size, search.data_range, search.method, search.seed, search.time_limit
    )
    inverting = outcomes(
        [one.gradients for one in read],
        options,
        device=search.device,
        callback=lambda number, progress: callback(read[number].task, progress),
        stop=ends,
    )
    with closing(inverting) as ended:
        for number, outcome in ended:
            yield _done(read[number], outcome, journal, ends)
    for task in others:
        yield invert_task(task, search, journal, callback=partial(callback, task), stop=stop)


def _read(task: Task, search: Search) -> _Read | None:
    """Read a layer that can go with others; None if it is large, or goes with those that follow it."""
    if task.shape[0] > HOST_UNITS or search.method == "chain":
        return None
    with open_dump(task.dump) as dump:
        record, layer = found(dump, task)
        if search.method == "auto" and len(record.chain_from(layer)) > 1:
            return None
        layer.check_finite()
        gradients = layer.loaded
        if gradients is None:
            return None
        gradients.require_zeros()
        return _Read(task, layer.place, Origin.of(record, layer), gradients)


def _done(read: _Read, outcome: spear_np.Inversion | Exception, journal: Path, ends: Ends) -> Done:
    """Write the answer of one layer."""
    task = read.task
    if isinstance(outcome, spear_np.InputError):
        return Done(task.number, error=FileError(str(outcome), read.place))
    if isinstance(outcome, Exception):
        return Done(task.number, error=outcome)
    try:
        return read.origin.answer(task, outcome, journal, ends)
    except (WriteError, spear_np.DeviceError):
        raise
    except Exception as error:  # noqa: BLE001  (as for the solver)
        return Done(task.number, error=error)
