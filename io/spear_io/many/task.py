"""One layer of one record, inverted where there is room for it: what every worker does.

It opens the dump itself and leaves the answer in the journal, so nothing large goes from process to process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import spear_np
from spear_np.backend.devices import device_for

from ..files.dump import Dump, Layer, Record, RecordInfo, named, open_dump
from ..files.inversion_writer import InversionWriter
from ..files.limits import working
from ..files.sight import Seen
from ..problems import FileError, Place, WriteError
from .selection import Task

ASKING = 0.2
"""Seconds between two looks whether the work shall stop: each asks a file system that may be far away."""

TELLING = 1.0
"""Seconds before the first word of how far a search is, and between two."""

STOP = "stop"
"""The file in the journal that tells all workers to stop."""


@dataclass(frozen=True)
class Search:
    """What is asked of the solver, for every layer alike: arguments of `spear_np.invert_layer`."""

    method: str = "auto"
    batch_size: int | None = None
    data_range: tuple[float, float] | None = None
    seed: int = 0
    device: str = "cpu"
    time_limit: float = 600.0
    """Seconds, for each layer."""


@dataclass(frozen=True)
class Done:
    """What became of a task; small."""

    number: int
    status: str = ""
    seconds: float = 0.0
    """Inside the solver."""
    finished: bool = True
    """Whether nothing cut it short but its own limits, so that doing it again would lead to the same."""
    error: Exception | None = None
    """Why there is no answer."""


Callback = Callable[[spear_np.Progress], None]


def entry_path(journal: Path, number: int, stage: str) -> Path:
    """A file of one task in the journal.

    Stages: "written" by the worker; "h5", safe on the disk and finished; "cut", safe, but cut short; "progress".
    """
    return journal / f"{number:08d}.{stage}"


def invert_task(
    task: Task,
    search: Search,
    journal: Path,
    callback: Callback | None = None,
    stop: Callable[[], bool] | None = None,
    opening: Callable[[Path], AbstractContextManager[Dump]] = open_dump,
) -> Done:
    """Invert one layer and write the answer, a whole inversion file, into the journal.

    Parameters
    ----------
    task, search : Task, Search
        What, and how.
    journal : Path
        The folder; absolute, and seen by whoever calls this.
    callback : callable, optional
        Is told of the progress; by default a file in the journal is.
    stop : callable, optional
        Whether to stop; the journal is asked besides.
    opening : callable
        Opens the dump.

    Returns
    -------
    Done
        Also if the record cannot be read, or the solver fails.

    Raises
    ------
    WriteError
        If the journal cannot be written.
    DeviceError
        If the device does not answer.
    """
    ends = Ends(journal, stop)
    telling = entry_path(journal, task.number, "progress")
    try:
        with opening(task.dump) as dump:
            record, layer = found(dump, task)
            layer.check_finite()
            if ends():
                result = not_begun(task.shape, search)
            else:
                with working():
                    result = _inverted(record, layer, search, callback or _Teller(telling), ends)
            return Origin.of(record, layer).answer(task, result, journal, ends)
    except (WriteError, spear_np.DeviceError):
        raise
    except Exception as error:  # noqa: BLE001  (whatever one record does, the others go on)
        return Done(task.number, error=error)
    finally:
        with suppress(OSError):
            telling.unlink(missing_ok=True)


def found(dump: Dump, task: Task) -> tuple[Record, Layer]:
    """The record and the layer of a task, which is what `gradients` validates, and affordable.

    Raises
    ------
    FileError
        If it is not, or is not there.
    """
    record = dump.record(task.record)
    layer = named(record.layers, task.layer, record.place, "layer")
    layer.check_affordable()
    return record, layer


def read_progress(journal: Path, number: int) -> spear_np.Progress | None:
    """How far a search in another process is; None if it has not said."""
    try:
        return spear_np.Progress(**json.loads(entry_path(journal, number, "progress").read_text()))
    except (OSError, ValueError, TypeError):  # not there, or half of it
        return None


@dataclass(frozen=True)
class Origin:
    """What a dump says of a layer beside its numbers: it goes with the answer."""

    layer: str
    info: RecordInfo
    seen: Seen
    said: tuple[str, ...]
    """Notes of the dump about the record."""

    @classmethod
    def of(cls, record: Record, layer: Layer) -> Origin:
        """That of a layer of a record."""
        sentence = layer.seen.sentence(layer.name)
        said = record.notes if sentence is None else (*record.notes, sentence)
        return cls(layer.name, record.info, layer.seen, tuple(said))

    def answer(self, task: Task, result: spear_np.Inversion, journal: Path, ends: Ends) -> Done:
        """Write a result into the journal.

        Raises
        ------
        WriteError
            If that cannot be done.
        """
        cut_short = result.status not in (spear_np.Status.EXACT, spear_np.Status.APPROXIMATE) and ends()
        with InversionWriter(
            entry_path(journal, task.number, "written"), source=task.dump, durable=False
        ) as out:
            notes = self._notes(result)
            out.add(task.name, self.layer, result, notes, display=self.info, seen=self.seen)
        return Done(task.number, str(result.status), result.seconds, finished=not cut_short)

    def _notes(self, result: spear_np.Inversion) -> tuple[str, ...]:
        """What the dump gives reason to say about a result."""
        stated = self.info.batch_size
        if stated is None or result.batch_size in (0, stated):
            return self.said
        note = (
            f"the dump states a batch of {stated}, the gradient shows {result.batch_size}: identical inputs, and inputs "
            "that turn on no unit of this layer, do not show"
        )
        return (*self.said, note)


class Ends:
    """Tells whether the work shall stop, without asking too often.

    Raises
    ------
    WriteError
        If the journal is not there.
    """

    def __init__(self, journal: Path, stop: Callable[[], bool] | None) -> None:
        if not journal.is_dir():
            msg = "is not seen from the process that works on a record"
            raise WriteError(msg, Place(journal), "write to a folder that all workers see")
        self._file = journal / STOP
        self._journal = journal
        self._stop = stop
        self._asked = -ASKING
        self._told = False

    def __call__(self) -> bool:
        """Whether it shall."""
        if self._told or (self._stop is not None and self._stop()):
            return True
        now = time.monotonic()
        if now - self._asked >= ASKING:
            self._asked = now
            # Without a journal nobody waits for the answer any more.
            self._told = self._file.exists() or not self._journal.is_dir()
        return self._told


class _Teller:
    """Leaves word of how far a search is where others can read it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = time.monotonic()

    def __call__(self, progress: spear_np.Progress) -> None:
        now = time.monotonic()
        if now - self._told >= TELLING:
            self._told = now
            with suppress(OSError):
                self._path.write_text(json.dumps(asdict(progress)))


def _inverted(
    record: Record, layer: Layer, search: Search, callback: Callback, stop: Callable[[], bool]
) -> spear_np.Inversion:
    """Invert one layer, with the layers that follow it where the dump says which these are and the method uses them."""
    options = {**vars(search), "callback": callback, "stop": stop}
    chain = record.chain_from(layer)
    if len(chain) == 1 and search.method == "chain":
        msg = "no layer follows it, as far as the dump says"
        raise FileError(msg, layer.place, "leave --method out, or convert with --follows if one does")
    try:
        if len(chain) == 1 or search.method not in ("auto", "chain"):
            return spear_np.invert_layer(layer.gradients, **options)
        return spear_np.invert_chain(
            [member.gradients for member in chain],
            names=[member.name for member in chain],
            loss=record.info.loss,
            **options,
        )
    except spear_np.InputError as error:
        raise FileError(str(error), layer.place) from error


def not_begun(shape: tuple[int, int], search: Search) -> spear_np.Inversion:
    """Return the result of a layer of some shape that the end of the run came before."""
    m, n = shape
    where = device_for(search.device)
    return spear_np.Inversion(
        status=spear_np.Status.FAILED,
        reason="stopped before it began",
        batch_size=0,
        found=0,
        output_grad=np.zeros((m, 0)),
        certificate=spear_np.Certificate(),
        method=search.method,
        seed=search.seed,
        seconds=0.0,
        device=where.name,
        proposals=0,
        history=(),
        gradients=spear_np.LayerGradients(np.broadcast_to(np.float64(0), (m, n))),
        recovery=np.zeros((0, m)),
        scale_known=True,
        where=where,
        data_range=search.data_range,
    )
