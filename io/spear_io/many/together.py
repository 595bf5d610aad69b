"""Layers of several records, and chains of them, that go to a card together, as `spear_np.invert_many` has them; the rest one by one.

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
"""Layers, or chains, that are read before any of them is inverted, at most.

Heuristic: few wait for the last of them, and those are a fraction of the time.
"""
READ_BYTES = 2**30
"""Bytes that their numbers may take as float64, at most.

Heuristic: little on a machine with a card.
"""


@dataclass(frozen=True)
class _Read:
    """A layer, or a chain, whose file is closed."""

    task: Task
    place: Place
    origin: Origin
    given: spear_np.LayerGradients | spear_np.LayerChain

    @property
    def bytes(self) -> int:
        """What its numbers take as float64, gradient and weights."""
        layers = self.given.layers if isinstance(self.given, spear_np.LayerChain) else (self.given,)
        return sum(2 * 8 * math.prod(layer.shape) for layer in layers)


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
    waiting = deque(tasks)
    while waiting:
        read: list[_Read] = []
        others: list[Task] = []
        # What follows a layer is not known before its file is open.
        while waiting and sum(one.bytes for one in read) < READ_BYTES:
            task = waiting.popleft()
            try:
                held = None if ends() else _read(task, search)
            except Exception as error:  # noqa: BLE001  (whatever one record does, the others go on)
                yield Done(task.number, error=error)
                continue
            if held is None:
                others.append(task)
            else:
                read.append(held)
        yield from _inverted(read, search, journal, callback, ends)
        for task in others:
            yield invert_task(task, search, journal, callback=partial(callback, task), stop=stop)


def _inverted(
    read: Sequence[_Read],
    search: Search,
    journal: Path,
    callback: Callable[[Task, spear_np.Progress], None],
    ends: Ends,
) -> Generator[Done]:
    """Invert what was read, all at once."""
    options = spear_np.Options(
        search.batch_size, search.data_range, search.method, search.seed, search.time_limit
    )
    inverting = outcomes(
        [one.given for one in read],
        options,
        device=search.device,
        callback=lambda number, progress: callback(read[number].task, progress),
        stop=ends,
    )
    with closing(inverting) as ended:
        for number, outcome in ended:
            yield _done(read[number], outcome, journal, ends)


def _read(task: Task, search: Search) -> _Read | None:
    """Read a layer that can go with others, with those that follow it where they are used; None if one of them is large."""
    with open_dump(task.dump) as dump:
        record, layer = found(dump, task)
        chain = record.chain_from(layer) if search.method in ("auto", "chain") else (layer,)
        if len(chain) == 1 and search.method == "chain":
            return None
        if any(member.shape is None or member.shape[0] > HOST_UNITS for member in chain):
            return None
        layer.check_finite()
        for member in chain[1:]:
            member.load()
        loaded = [one for one in (member.loaded for member in chain) if one is not None]
        if len(loaded) < len(chain):
            return None
        given: spear_np.LayerGradients | spear_np.LayerChain
        if len(chain) == 1:
            given = loaded[0]
            given.require_zeros()
        else:
            given = spear_np.LayerChain(loaded, [member.name for member in chain], record.info.loss)
        return _Read(task, layer.place, Origin.of(record, layer), given)


def _done(read: _Read, outcome: spear_np.Inversion | Exception, journal: Path, ends: Ends) -> Done:
    """Write the answer of one of them."""
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
