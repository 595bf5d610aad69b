"""From the journal to what was asked for: one inversion file, or one for each record."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..files.atomic import check_target
from ..files.attributes import stored_name
from ..files.inversion import FORMAT
from ..files.inversion_writer import InversionWriter
from ..files.storage import column_blocks
from ..problems import FileError, Place, WriteError, cause
from .journal import Journal
from .repeats import Floats, Repeats
from .selection import Task, Unread
from .task import Search, not_begun

LONGEST_FILE = 150
"""Characters of a file name made of the name of a record."""


@dataclass(frozen=True)
class Output:
    """Where the results go.

    Parameters
    ----------
    path : Path
        The file, or the folder of a file for each record.
    split : bool
        Which of both.
    sources : tuple of Path
        What is read; never replaced.
    names : tuple of str
        Of the records.
    replace : bool
        Whether files that are no inversions may be replaced.
    """

    path: Path
    split: bool
    sources: tuple[Path, ...]
    names: tuple[str, ...]
    replace: bool

    @property
    def files(self) -> dict[Path, tuple[str, ...]]:
        """Each file with the records that it holds."""
        if not self.split:
            return {self.path: self.names}
        used: set[str] = set()
        files: dict[Path, tuple[str, ...]] = {}
        for name in self.names:
            stem = _file_stem(name)
            number, candidate = 1, stem
            while candidate.casefold() in used:  # as on systems where A and a are one
                number += 1
                candidate = f"{stem} ({number})"
            used.add(candidate.casefold())
            files[self.path / f"{candidate}.h5"] = (name,)
        return files

    def prepare(self) -> None:
        """Make the folder if there must be one, and refuse whatever cannot be written.

        Raises
        ------
        WriteError
            For the first such file.
        """
        if self.split:
            try:
                self.path.mkdir(exist_ok=True, mode=0o700)
            except FileExistsError as error:
                msg = "is a file, but --split writes a folder"
                raise WriteError(msg, Place(self.path), "give the name of a folder") from error
            except OSError as error:
                msg = f"cannot be made ({cause(error)})"
                raise WriteError(msg, Place(self.path), "choose another name to write to") from error
        for path in self.files:
            check_target(path, kind=FORMAT, sources=self.sources, replace=self.replace)


@dataclass(frozen=True)
class Assembled:
    """What was put together."""

    statuses: Mapping[str, int]
    """How many layers have which status."""
    repeated: int
    """Inputs that are in several records."""


def assemble(
    output: Output,
    journal: Journal,
    tasks: Sequence[Task],
    unread: Sequence[Unread],
    search: Search,
    run: str | None,
) -> Assembled:
    """Write what was asked for.

    Parameters
    ----------
    output : Output
        Where.
    journal : Journal
        Has an entry for every task that was begun.
    tasks, unread : sequences of Task, Unread
        All there are; the latter are named with what is wrong.
    search : Search
        What was asked for; stands beside tasks that were not begun.
    run : str, optional
        Marks the files as complete.

    Raises
    ------
    FileError
        If something cannot be written, or an entry of the journal cannot be read.
    """
    several = len(output.sources) > 1
    of_record: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        of_record[task.name].append(task)
    problems: dict[str, list[Unread]] = defaultdict(list)
    for one in unread:
        problems[one.name].append(one)
    seen = _Seen(journal, tasks)
    statuses: Counter[str] = Counter()
    if output.split:  # what is elsewhere too must be known before the first file is written
        for task in tasks:
            with _kept_layer(journal, task) as layer:
                seen.add(task, layer)
    for path, names in output.files.items():
        source = None if several else output.sources[0]
        with InversionWriter(path, source=source, replace=output.replace, run=run) as out:
            for name in names:
                for task in of_record[name]:
                    with _kept_layer(journal, task) as layer:
                        if layer is None:
                            result = not_begun(task.shape, search)
                            out.add(task.name, task.layer, result, display=task.display)
                            statuses[result.status] += 1
                            continue
                        out.take(layer, task.name, task.layer)
                        statuses[str(layer.attrs["status"])] += 1
                        if not output.split:
                            seen.add(task, layer)
                if name in problems:
                    out.describe(name, problem="; ".join(str(one.error) for one in problems[name]))
                if several:
                    origin = (of_record[name] or problems[name])[0]
                    said = {} if origin.record is None else {"source_record": origin.record}
                    out.describe(name, source=stored_name(origin.dump), **said)
            for task in (task for name in names for task in of_record[name]):
                if (numbers := seen.marks.get(task.number)) is not None:
                    out.mark(task.name, task.layer, numbers)
    return Assembled(dict(statuses), seen.repeated)


class _Seen:
    """The inputs of all tasks, and which are in several records."""

    def __init__(self, journal: Journal, tasks: Sequence[Task]) -> None:
        self._journal = journal
        self._tasks = {task.number: task for task in tasks}
        self._repeats = Repeats(self._row)
        self._sizes: dict[int, int] = {}

    def add(self, task: Task, layer: h5py.Group | None) -> None:
        """Add the inputs of one layer, if they have a scale and bounds."""
        if layer is None or "error_bound" not in layer or not layer.attrs["scale_known"]:
            return
        inputs = layer["inputs"]
        self._sizes[task.number], width = inputs.shape
        blocks = ((columns, inputs[:, columns]) for columns in column_blocks(inputs.shape))
        self._repeats.add(task.number, layer["error_bound"][...], blocks, width)

    @cached_property
    def marks(self) -> dict[int, Any]:
        """For each task with such inputs the numbers (k,) of the groups that its inputs are in, -1 for none."""
        marks: dict[int, Any] = {}
        number = 0
        for group in self._repeats.groups():
            if len({self._tasks[batch].name for batch, _ in group}) < 2:
                continue  # two layers of one record
            for batch, row in group:
                found = marks.setdefault(batch, np.full(self._sizes[batch], -1, dtype=np.int64))
                found[row] = number
            number += 1
        return marks

    @property
    def repeated(self) -> int:
        """How many inputs are in several records."""
        return 1 + max((int(numbers.max()) for numbers in self.marks.values()), default=-1)

    def _row(self, number: int, row: int) -> Floats:
        task = self._tasks[number]
        with _kept_layer(self._journal, task) as layer:
            assert layer is not None
            found: Floats = layer["inputs"][row]
            return found


@contextmanager
def _kept_layer(journal: Journal, task: Task) -> Iterator[h5py.Group | None]:
    """Yield what the open entry of a task holds of its layer; None if it was not begun."""
    path = journal.entry(task.number)
    if path is None:
        yield None
        return
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        msg = f"cannot be read ({cause(error)})"
        raise FileError(msg, Place(path), "remove it: it will be made again") from error
    with file:
        yield file[f"records/{task.name}/layers/{task.layer}"]  # no name holds a slash


def _file_stem(name: str) -> str:
    """A file name that any system takes, made of the name of a record."""
    kept = "".join(
        sign if sign.isalnum() or sign in " -_.()+,=@" else "_" for sign in unicodedata.normalize("NFC", name)
    )
    kept = kept.strip(" .")[:LONGEST_FILE] or "record"
    return f"_{kept}" if name.startswith(".") else kept
