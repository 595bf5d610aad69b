"""How far a run is: bars on a terminal, a line a minute elsewhere, a line a layer for those who ask, and a log."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

import spear_np

from ..many.run import Audience
from ..many.selection import Task
from ..many.task import Done
from ..problems import FileError, Place, WriteError, cause, printable

MINUTE = 60.0
"""Seconds between two lines where nobody watches a bar."""

LONGEST_TITLE = 40
"""Characters of a title beside other figures."""

Callback = Callable[[spear_np.Progress], None]
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@contextmanager
def watching(*, quiet: bool = False, verbose: bool = False, log: Path | None = None) -> Iterator[Audience]:
    """Yield what shows on standard error how far a run is, until the block ends.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    verbose : bool
        Show a line for each layer that is done.
    log : Path, optional
        A file to which what happens is appended, with times.

    Raises
    ------
    WriteError
        If the log cannot be written.
    """
    with ExitStack() as stack:
        audience: list[Audience] = []
        if log is not None:
            audience.append(_Lines(stack.enter_context(_opened_log(log)), stamped=True))
        if not quiet and sys.stderr.isatty():
            audience.append(stack.enter_context(_bars(verbose=verbose)))
        elif not quiet:
            audience.append(_Lines(sys.stderr, prefix="spear-np: ") if verbose else _Minutes(sys.stderr))
        yield _All(audience)


@contextmanager
def _opened_log(path: Path) -> Iterator[TextIO]:
    try:
        stream = path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        msg = f"cannot be written ({cause(error)})"
        raise WriteError(msg, Place(path), "choose another name for the log") from error
    try:
        yield stream
    finally:
        with suppress(OSError):  # a full disk ends a log, and nothing else
            stream.close()


class _All:
    """Tells several."""

    def __init__(self, members: Sequence[Audience]) -> None:
        self._members = members

    def begin(self, total: int, finished: int) -> None:
        for member in self._members:
            member.begin(total, finished)

    def start(self, task: Task) -> None:
        for member in self._members:
            member.start(task)

    def move(self, task: Task, progress: spear_np.Progress) -> None:
        for member in self._members:
            member.move(task, progress)

    def end(self, task: Task, done: Done) -> None:
        for member in self._members:
            member.end(task, done)

    def tick(self) -> None:
        for member in self._members:
            member.tick()


class Tally:
    """What is counted of a run."""

    def __init__(self) -> None:
        self.total = self.earlier = self.done = 0
        self.statuses: Counter[str] = Counter()
        self.slowest: tuple[float, str] = (0.0, "")
        self._began = time.monotonic()

    def begin(self, total: int, finished: int) -> None:
        """As `Audience.begin`."""
        self.total, self.earlier = total, finished
        self._began = time.monotonic()

    def end(self, task: Task, done: Done) -> None:
        """As `Audience.end`."""
        self.done += 1
        self.statuses[done.status or "unread"] += 1
        self.slowest = max(self.slowest, (done.seconds, title_of(task)))

    def counts(self) -> str:
        """Return "12.3 a minute, about 0:41 left; 30 exact, 2 partial; slowest client-3, fc1: 0:12"."""
        seconds = time.monotonic() - self._began
        rate = self.done / seconds if seconds > 0 else 0.0
        left = self.total - self.earlier - self.done
        parts = [f"{count(60 * rate) if rate > 1 else f'{60 * rate:.2g}'} a minute"] if self.done else []
        if self.done and left:
            parts.append(f"about {duration(left / rate)} left")
        groups = [
            ", ".join(parts),
            ", ".join(f"{number} {status}" for status, number in self.statuses.items()),
        ]
        if self.slowest[0] >= 1:
            groups.append(f"slowest {self.slowest[1]}: {duration(self.slowest[0])}")
        return "; ".join(group for group in groups if group)

    @property
    def so_far(self) -> str:
        """Return "37 of 500 layers"."""
        return f"{self.earlier + self.done} of {self.total} layers"


def title_of(task: Task) -> str:
    """Record and layer of a task."""
    return f"{printable(task.name, LONGEST_TITLE)}, {printable(task.layer, LONGEST_TITLE)}"


class _Lines:
    """A line for each layer that is done."""

    def __init__(self, stream: TextIO, *, prefix: str = "", stamped: bool = False) -> None:
        self._stream, self._prefix, self._stamped = stream, prefix, stamped
        self._tally = Tally()

    def begin(self, total: int, finished: int) -> None:
        self._tally.begin(total, finished)
        earlier = f", {finished} of them finished by an earlier run" if finished else ""
        self._say(f"{total} layers{earlier}")

    def start(self, task: Task) -> None:
        if self._stamped:
            self._say(f"begun: {title_of(task)}")

    def move(self, task: Task, progress: spear_np.Progress) -> None:
        pass

    def end(self, task: Task, done: Done) -> None:
        self._tally.end(task, done)
        self._say(f"{self._tally.so_far}: {line_of(task, done)}")

    def tick(self) -> None:
        pass

    def _say(self, line: str) -> None:
        stamp = f"{datetime.now(UTC).isoformat(timespec='seconds')} " if self._stamped else ""
        _write(self._stream, f"{stamp}{self._prefix}{line}")


class _Minutes:
    """A line a minute."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._tally = Tally()
        self._said = time.monotonic()

    def begin(self, total: int, finished: int) -> None:
        self._tally.begin(total, finished)

    def start(self, task: Task) -> None:
        pass

    def move(self, task: Task, progress: spear_np.Progress) -> None:
        self._say(f"; {title_of(task)}: {progress.stage}, {figures(progress)}")

    def end(self, task: Task, done: Done) -> None:
        self._tally.end(task, done)
        self.tick()

    def tick(self) -> None:
        self._say("")

    def _say(self, more: str) -> None:
        now = time.monotonic()
        if now - self._said >= MINUTE:
            self._said = now
            counts = self._tally.counts()
            _write(self._stream, f"spear-np: {self._tally.so_far}{f', {counts}' if counts else ''}{more}")


@contextmanager
def progress_bar() -> Iterator[Callable[[str], Callback | None]]:
    """Yield a function that starts a single bar anew under a title and returns the callback that moves it.

    Without a terminal the callback is None and nothing is ever written.
    """
    if not sys.stderr.isatty():
        yield lambda title: None
        return
    with _empty_bar() as bar:
        task = bar.add_task("", stage="", figures="")

        def start(title: str) -> Callback:
            bar.reset(task, description=title, total=None, stage="", figures="")
            return lambda progress: _move(bar, task, progress)

        yield start


def _empty_bar() -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[stage]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _move(bar: Progress, task: TaskID, progress: spear_np.Progress) -> None:
    bar.update(
        task,
        stage=progress.stage,
        figures=figures(progress),
        completed=progress.found,
        total=progress.batch_size or None,
    )


@contextmanager
def _bars(*, verbose: bool) -> Iterator[Audience]:
    with _empty_bar() as bar:
        yield _Bars(bar, verbose=verbose)


class _Bars:
    """A bar for all layers, if there are several, and one for each that is worked on."""

    def __init__(self, bar: Progress, *, verbose: bool) -> None:
        self._bar, self._verbose = bar, verbose
        self._tally = Tally()
        self._all: TaskID | None = None
        self._running: dict[int, TaskID] = {}

    def begin(self, total: int, finished: int) -> None:
        self._tally.begin(total, finished)
        if total > 1:
            self._all = self._bar.add_task(
                "all layers", total=total, completed=finished, stage="", figures=""
            )
            self._show_all()

    def start(self, task: Task) -> None:
        title = title_of(task)
        if self._tally.total > 1:
            title += f" ({task.number + 1} of {self._tally.total})"
        self._running[task.number] = self._bar.add_task(title, total=None, stage="", figures="")

    def move(self, task: Task, progress: spear_np.Progress) -> None:
        _move(self._bar, self._running[task.number], progress)

    def end(self, task: Task, done: Done) -> None:
        self._tally.end(task, done)
        self._bar.remove_task(self._running.pop(task.number))
        if self._verbose:
            self._bar.console.print(
                f"{self._tally.so_far}: {line_of(task, done)}", markup=False, highlight=False
            )
        self._show_all()

    def tick(self) -> None:
        self._show_all()

    def _show_all(self) -> None:
        if self._all is not None:
            done = self._tally.earlier + self._tally.done
            self._bar.update(
                self._all, completed=done, stage=f"{done}/{self._tally.total}", figures=self._tally.counts()
            )


def line_of(task: Task, done: Done) -> str:
    """What became of a task."""
    if done.error is not None:
        what = str(done.error) if isinstance(done.error, FileError) else cause(done.error)
        return f"{title_of(task)}: {what}"
    cut = "" if done.finished else ", cut short"
    return f"{title_of(task)}: {done.status}{cut}, {done.seconds:.2g} s"


def _write(stream: TextIO, line: str) -> None:
    with suppress(OSError, ValueError):  # a stream that takes nothing is no reason to stop
        print(line, file=stream, flush=True)


def figures(progress: spear_np.Progress) -> str:
    """Return "3 candidates for 16 inputs, 1.2 M proposals, 310 k/s, about 0:08 left".

    Candidates fit the gradient so far. Only the certificate, at the end, says which of them are inputs, and how many inputs show is
    another number where the search has gone over to another reading of the singular values.
    """
    if not progress.batch_size:
        return duration(progress.seconds)
    parts = [
        f"{progress.found} {'candidate' if progress.found == 1 else 'candidates'} for {progress.batch_size} inputs"
    ]
    if progress.proposals:
        parts.append(f"{count(progress.proposals)} proposals")
        if progress.seconds > 0:
            parts.append(f"{count(progress.proposals / progress.seconds)}/s")
    left = progress.time_limit - progress.seconds
    if progress.expected is not None and progress.proposals:
        expected = progress.expected * progress.seconds / progress.proposals
        if expected < left:
            return ", ".join([*parts, f"about {duration(expected)} left"])
    return ", ".join([*parts, f"at most {duration(left)} left"])


def count(number: float) -> str:
    """Return a large number as people read it: "412", "1.2 M"."""
    for size, unit in ((1e15, ""), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if number >= size:
            return f"{number:.1e}" if not unit else f"{number / (size if size != 1e4 else 1e3):.3g}{unit}"
    return f"{number:.0f}"


def power_of_ten(text: str) -> str:
    """Return a number in the notation of programs, "2.8e-06", as people write it: "2.8·10⁻⁶"."""
    digits, e, exponent = text.partition("e")
    if not e:
        return text
    power = f"10{str(int(exponent)).translate(SUPERSCRIPT)}"
    return power if digits == "1" else f"{digits}·{power}"


def duration(seconds: float) -> str:
    """Return "0:08", "12:30", "3:05:00" or days; "unlimited" for infinity."""
    if seconds == float("inf"):
        return "unlimited"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{count(hours / 24)} days"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
