"""Many records inverted: handed out, kept as they are done, put together in the end."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import spear_np

from ..files.child import ChildError
from ..files.inversion import open_inversion
from ..files.last_dump import LastDump
from ..problems import FileError, WriteError, cause
from .assemble import Output, assemble
from .executors import Crew, ExecutorError, crew_of
from .journal import Journal, digest, identity
from .order import cheap_first
from .selection import Selection, Task, Unread, Wanted, select
from .sources import Sources, find_dumps
from .task import Done, Search, invert_task, read_progress
from .together import invert_together, next_together

TICK = 0.5
"""Seconds between two looks at work that goes on elsewhere."""

ATTEMPTS = 2
"""How often a layer is tried whose process was ended from outside, as it is when memory runs out."""


class Audience(Protocol):
    """Whoever wants to know how far it is."""

    def begin(self, total: int, finished: int) -> None:
        """So many layers are chosen, and so many were finished by an earlier run."""

    def start(self, task: Task) -> None:
        """A layer was handed out."""

    def move(self, task: Task, progress: spear_np.Progress) -> None:
        """Its search goes on."""

    def end(self, task: Task, done: Done) -> None:
        """It is done with."""

    def tick(self) -> None:
        """Time went by."""


class Nobody:
    """Does not want to know."""

    def begin(self, total: int, finished: int) -> None:
        """Nothing."""

    def start(self, task: Task) -> None:
        """Nothing."""

    def move(self, task: Task, progress: spear_np.Progress) -> None:
        """Nothing."""

    def end(self, task: Task, done: Done) -> None:
        """Nothing."""

    def tick(self) -> None:
        """Nothing."""


class Aborted(KeyboardInterrupt):
    """Somebody aborted; the message says what is kept."""


@dataclass(frozen=True)
class Request:
    """What is to be inverted, how, and where the answers go."""

    sources: Sequence[str | Path]
    output: Path
    search: Search = field(default_factory=Search)
    wanted: Wanted = field(default_factory=Wanted)
    total_time: float = float("inf")
    """Seconds for all of it."""
    split: bool = False
    resume: bool = False
    replace: bool = False
    """Whether files that are no inversions may be replaced, and finished layers of an earlier run thrown away."""


@dataclass(frozen=True)
class Inverted:
    """What became of a request."""

    files: tuple[Path, ...]
    """Complete and valid inversions; `spear_io.open_inversion` opens them."""
    sources: tuple[Path, ...]
    statuses: Mapping[str, int]
    """How many layers have which status."""
    unread: tuple[Unread, ...] = ()
    """Dumps and records that could not be used, or failed for other reasons than their gradients."""
    unfinished: int = 0
    """Layers that were not begun, or cut short by the end of the run."""
    journal: Path | None = None
    """Where the finished ones are kept for a later run; None if none needs it."""
    repeated: int = 0
    """Inputs that are in several records."""
    notes: tuple[str, ...] = ()


def invert_dumps(
    sources: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    executor: Executor | None = None,
    records: Sequence[str] = (),
    layers: Sequence[str] = (),
    clients: Sequence[str] = (),
    rounds: Sequence[str] = (),
    method: str = "auto",
    batch_size: int | None = None,
    data_range: tuple[float, float] | None = None,
    seed: int = 0,
    device: str = "cpu",
    time_limit: float = 600.0,
    total_time: float = float("inf"),
    split: bool = False,
    resume: bool = False,
    replace: bool = False,
    audience: Audience | None = None,
    stop: Callable[[], bool] | None = None,
) -> Inverted:
    """Invert the records of gradient dumps into one file, or one each; what is finished survives whatever happens.

    Parameters
    ----------
    sources : path or sequence of paths
        Dumps, folders of dumps, and patterns (``*``, ``**``).
    out : path
        The inversion to write; with `split` a folder of one for each record.
    executor : concurrent.futures.Executor, optional
        Who works, each task by itself: `spear_io.Workers`, an executor of the standard library, that of a Dask client.
        They must see the same files. By default this process: one layer after the other, on a card together.
    records, layers, clients, rounds : sequence of str
        Names and patterns. Without `layers`, the first layer of each record that can be inverted.
    method, batch_size, data_range, seed, device, time_limit
        As in `spear_np.invert`, for every layer alike. An answer depends on its own layer and these, and not on the order.
    total_time : float
        Seconds for all of it: what is expected to be cheap comes first, and what is left is written as not begun.
    split : bool
        Whether every record has a file of its own.
    resume : bool
        Whether to go on where an earlier call with the same sources and options was ended.
    replace : bool
        Whether `out` may replace a file that is no inversion, and finished layers of an earlier run be thrown away.
    audience : Audience, optional
        Is told how far it is.
    stop : callable, optional
        Asked now and then; True ends all searches with what they have.

    Returns
    -------
    Inverted
        What was written, and what could not be read.

    Raises
    ------
    FileError
        If nothing can be inverted, the output cannot be written, or another run has it.
    ExecutorError
        If the executor no longer works.

    Examples
    --------
    ::

        with spear_io.Workers(8) as workers:
            done = spear_io.invert_dumps("updates", "inverted.h5", executor=workers, resume=True)
        print(done.statuses)
    """
    request = Request(
        sources=[sources] if isinstance(sources, str | Path) else list(sources),
        output=Path(out),
        search=Search(method, batch_size, data_range, seed, device, time_limit),
        wanted=Wanted(records, layers, clients, rounds),
        total_time=total_time,
        split=split,
        resume=resume,
        replace=replace,
    )
    return invert_request(
        request, crew_of(executor), audience or Nobody(), nullcontext(stop or (lambda: False))
    )


def invert_request(
    request: Request,
    crew: Crew,
    audience: Audience,
    stopping: AbstractContextManager[Callable[[], bool]],
) -> Inverted:
    """Do what `invert_dumps` does, with those who work already at hand.

    `stopping` is entered when there is something that can be stopped.
    """
    deadline = time.monotonic() + request.total_time
    sources = find_dumps(request.sources)
    selection = select(sources, request.wanted)
    names = dict.fromkeys([*(task.name for task in selection.tasks), *(one.name for one in selection.unread)])
    output = Output(request.output, request.split, sources.dumps, tuple(names), request.replace)
    run = _run(request, sources, selection)
    output.prepare()
    notes = (*sources.notes, *selection.notes)
    with (
        Journal(request.output, run, resume=request.resume, discard=request.replace) as journal,
        stopping as stop,
    ):
        if request.resume and not journal.begun and (statuses := _complete(output, digest(run))) is not None:
            note = "the output is complete already, with these sources and options: nothing is left to do"
            return Inverted(tuple(output.files), sources.dumps, statuses, notes=(*notes, note))
        work = _Work(selection.tasks, request.search, journal, crew, audience)
        try:
            failed = work.done_before(lambda: stop() or time.monotonic() > deadline)
            if failed and len(failed) == len(selection.tasks):
                raise failed[0].error
            if stop() and not work.anything:
                raise KeyboardInterrupt
            unread = (*selection.unread, *failed)
            complete = not work.unfinished and not any(_worth_another_try(one.error) for one in failed)
            assembled = assemble(
                output,
                journal,
                [task for task in selection.tasks if task.number not in work.failed],
                unread,
                request.search,
                digest(run) if complete else None,
            )
        except (WriteError, ExecutorError) as error:
            raise _with_what_is_kept(error, journal, len(selection.tasks)) from error
        except KeyboardInterrupt:
            raise Aborted(_aborted(journal, len(selection.tasks))) from None
        if not complete:
            journal.keep_for_later()
    return Inverted(
        tuple(output.files),
        sources.dumps,
        assembled.statuses,
        unread,
        unfinished=work.unfinished,
        journal=journal.place.file if journal.kept else None,
        repeated=assembled.repeated,
        notes=notes,
    )


class _Work:
    """The layers of a selection, on their way."""

    def __init__(
        self, tasks: Sequence[Task], search: Search, journal: Journal, crew: Crew, audience: Audience
    ) -> None:
        self._search, self._journal, self._crew, self._audience = search, journal, crew, audience
        self._tasks = tasks
        finished = set(journal.finished())
        self._waiting = deque(cheap_first(task for task in tasks if task.number not in finished))
        self._running: dict[Future[Done], Task] = {}
        self._attempts: Counter[int] = Counter()
        self.failed: dict[int, Unread] = {}
        """By the numbers of their tasks."""
        self._cut = 0
        self._dumps = LastDump()
        self._keeper = ThreadPoolExecutor(
            1, "spear-keeper"
        )  # the disk takes its time, and nobody waits for it
        self._kept: deque[tuple[Future[None], Task, Done]] = deque()

    @property
    def unfinished(self) -> int:
        """Layers that were not begun, or cut short."""
        return self._cut + len(self._waiting)

    @property
    def anything(self) -> bool:
        """Whether any layer was begun, by this run or an earlier one."""
        return self._cut > 0 or bool(self._journal.finished())

    def done_before(self, ends: Callable[[], bool]) -> list[Unread]:
        """Do everything, as long as nothing `ends` it; return what failed, in the order of the file."""
        self._audience.begin(len(self._tasks), self._journal.begun)
        ending = False
        try:
            while self._running or (self._waiting and not ending):
                if not ending and ends():
                    ending = True
                    self._journal.stop()
                if self._crew.here and self._search.device != "cpu":
                    if not ending:
                        self._do_together(next_together(self._waiting), ends)
                    continue
                while self._waiting and not ending and len(self._running) < self._crew.room:
                    self._hand_out(self._waiting.popleft(), ends)
                self._collect()
            self._settle(everything=True)
        finally:
            if self._running:
                self._journal.stop()
                for future in self._running:
                    future.cancel()
            self._keeper.shutdown()
            self._dumps.close()
        return [self.failed[number] for number in sorted(self.failed)]

    def _do_together(self, tasks: Sequence[Task], ends: Callable[[], bool]) -> None:
        """Have layers inverted by one card, here."""
        numbered = {task.number: task for task in tasks}
        for task in tasks:
            self._audience.start(task)
        inverting = invert_together(tasks, self._search, self._journal.folder, self._audience.move, ends)
        with closing(inverting) as ended:
            for done in ended:
                self._note(numbered[done.number], done)
                self._settle()
                self._audience.tick()

    def _hand_out(self, task: Task, ends: Callable[[], bool]) -> None:
        self._audience.start(task)
        arguments = (task, self._search, self._journal.folder)
        try:
            if self._crew.here:  # which may be told of everything at once

                def callback(progress: spear_np.Progress) -> None:
                    self._audience.move(task, progress)

                future = self._crew.executor.submit(
                    invert_task, *arguments, callback=callback, stop=ends, opening=self._dumps.open
                )
            else:
                future = self._crew.executor.submit(invert_task, *arguments)
        except RuntimeError as error:  # it was shut down, or broke
            raise _broken(error) from error
        self._running[future] = task

    def _collect(self) -> None:
        """Wait a moment, and take what is done."""
        done, _ = wait(self._running, timeout=TICK, return_when=FIRST_COMPLETED)
        for future in done:
            task = self._running.pop(future)
            self._take(task, future)
        self._settle()
        if not self._crew.here:
            for task in self._running.values():
                progress = read_progress(self._journal.folder, task.number)
                if progress is not None:
                    self._audience.move(task, progress)
        self._audience.tick()

    def _take(self, task: Task, future: Future[Done]) -> None:
        try:
            done = future.result()
        except (WriteError, spear_np.DeviceError):
            raise
        except (FileError, ChildError) as error:
            done = Done(task.number, error=error)
            self._attempts[task.number] += 1
            if _worth_another_try(error) and self._attempts[task.number] < ATTEMPTS:
                self._waiting.appendleft(task)
                return
        except Exception as error:
            if type(error).__name__ != "KilledWorker":  # Dask gave it several workers, and it killed them all
                raise _broken(error) from error
            done = Done(task.number, error=ChildError(cause(error)))
        except BaseException as error:  # of futures that were cancelled
            if isinstance(error, KeyboardInterrupt):
                raise
            raise _broken(error) from error
        self._note(task, done)

    def _note(self, task: Task, done: Done) -> None:
        """Keep an answer, or remember why there is none."""
        if done.error is None:
            self._kept.append((self._keeper.submit(self._journal.keep, done), task, done))
        else:
            self.failed[task.number] = Unread(task.name, task.dump, task.record, done.error)
            self._audience.end(task, done)

    def _settle(self, *, everything: bool = False) -> None:
        """Take note of what is safe by now, or wait for everything to be."""
        while self._kept and (everything or self._kept[0][0].done()):
            future, task, done = self._kept.popleft()
            future.result()
            self._cut += not done.finished
            self._audience.end(task, done)


def _worth_another_try(error: Exception) -> bool:
    """Whether an error has nothing to do with what was read."""
    return isinstance(error, ChildError | MemoryError)


def _broken(error: BaseException) -> ExecutorError:
    what = cause(error)
    name = type(error).__name__
    return ExecutorError(
        f"those who work do not answer any more ({name if name in what else f'{name}: {what}'})"
    )


def _with_what_is_kept(error: WriteError | ExecutorError, journal: Journal, total: int) -> Exception:
    kept = len(journal.finished())
    said = f"{kept} of {total} layers are finished and kept: go on with --resume" if kept else None
    if isinstance(error, WriteError):
        place = error.place if error.place.file != journal.folder else journal.place
        return WriteError(error.problem, place, said or error.advice)
    return ExecutorError("; ".join([str(error), *([said] if said else [])]))


def _aborted(journal: Journal, total: int) -> str:
    kept = len(journal.finished())
    if not kept:
        return "interrupted; nothing was written"
    return f"interrupted; {kept} of {total} layers are finished and kept: go on with --resume"


def _run(request: Request, sources: Sources, selection: Selection) -> dict[str, Any]:
    """What decides the answers, under names for people."""
    tasks = [[task.dump.name, task.record, task.layer] for task in selection.tasks]
    return {
        "version of spear-np": spear_np.__version__,
        "the dumps": identity(sources.dumps),
        **{f"--{name.replace('_', '-')}": value for name, value in asdict(request.search).items()},
        "--split": request.split,
        "the chosen layers": digest({"tasks": tasks}),
    }


def _complete(output: Output, run: str) -> dict[str, int] | None:
    """How many layers have which status, if all files are there, from a complete run like this one; else None."""
    statuses: Counter[str] = Counter()
    for path in output.files:
        try:
            with open_inversion(path) as inversion:
                if inversion.run != run:
                    return None
                statuses.update(str(layer.status) for layer in inversion.layers)
        except FileError:
            return None
    return dict(statuses)
