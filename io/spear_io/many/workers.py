"""Processes that work on one task after another, each on its share of the processors; the death of one is an error.

Files from strangers are read in them, under `spear_io.files.limits`. They are started afresh rather than forked, import
nothing of the program that starts them, and end with it.
"""

from __future__ import annotations

import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

from ..files.child import ChildError, death
from ..files.limits import NOTE_SIZE, Note, limit_this_process

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Environment variables by which linear algebra learns how many threads it may start."""

ENDING = 5.0
"""Seconds in which an idle process must end."""

PROGRAM = "import sys; sys.path[:] = {path!r}; from spear_io.many.workers import serve; serve({note!r})"


class Workers(Executor):
    """Processes that take calls as an executor of `concurrent.futures` does.

    Unlike those of the standard library they outlive each other: if one is killed, for want of memory or by what it
    read, its call fails with `FileError` or `ChildError`, and another takes its place.

    Parameters
    ----------
    count : int
        How many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._share = max(1, processors() // count)
        self._callers = ThreadPoolExecutor(count, "spear-worker")
        self._idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(None)  # started when there is something to do
        self._busy: set[Worker] = set()
        self._closed = threading.Event()

    def submit(
        self, fn: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Call `fn`, importable by its name, in one of the processes."""
        return self._callers.submit(self._call, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes; without `wait` also those that are at work."""
        if not wait:
            self._closed.set()
            for worker in list(self._busy):
                worker.kill()
        self._callers.shutdown(wait=wait, cancel_futures=cancel_futures)
        with suppress(queue.Empty):
            while True:
                idle = self._idle.get_nowait()
                if idle is not None:
                    idle.close()

    def _call(self, function: Callable[..., Any], arguments: Any, options: Any) -> Any:
        worker = self._idle.get()
        if worker is None:
            worker = Worker(self._share)
        self._busy.add(worker)
        try:
            if self._closed.is_set():
                worker.kill()
            return worker.call(function, *arguments, **options)
        finally:
            self._busy.discard(worker)
            self._idle.put(worker if worker.alive else None)


class Worker:
    """One process that takes calls.

    Parameters
    ----------
    threads : int, optional
        Most threads of its linear algebra; by default as its environment says.
    """

    def __init__(self, threads: int | None = None) -> None:
        posix = os.name == "posix"
        with tempfile.TemporaryFile() as memory:
            memory.truncate(NOTE_SIZE)
            note = memory.fileno() if posix else None
            self._note = Note(mmap.mmap(memory.fileno(), NOTE_SIZE))
            program = PROGRAM.format(path=[path or str(Path.cwd()) for path in sys.path], note=note)
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=_environment(threads),
                pass_fds=() if note is None else (note,),
                # A Ctrl-C in the terminal is for the one that started it.
                process_group=0 if posix else None,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    @property
    def alive(self) -> bool:
        """Whether it can take another call."""
        return self._process.poll() is None

    def call(
        self, function: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Result:
        """Call a function there and return what it returns.

        Raises
        ------
        FileError
            If the process died while it read a file.
        ChildError
            If it died otherwise.
        Exception
            Whatever the function raised.
        """
        try:
            pickle.dump((function, arguments, options), self._requests)
            self._requests.flush()
            returned, value, warned = pickle.load(self._answers)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            self._process.kill()
            self.close()
            raise death(self._process.returncode, self._note) from None
        for message in warned:
            warnings.warn(message, stacklevel=2)
        if not returned:
            raise value
        answer: Result = value
        return answer

    def kill(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()

    def close(self) -> None:
        """Let the process end, which waits for a call."""
        for stream in (self._requests, self._answers):
            with suppress(OSError):
                stream.close()
        try:
            self._process.wait(timeout=ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(note: int | None) -> None:
    """Take calls from standard input until it ends, and give answers on standard output; for `Worker` alone.

    Parameters
    ----------
    note : int, optional
        Descriptor of memory in which to say what is being read.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # those who started it stop it, in order
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, _private_output()
    limit_this_process(Note() if note is None else Note(mmap.mmap(note, NOTE_SIZE)))
    with suppress(EOFError, BrokenPipeError):
        while True:
            function, arguments, options = pickle.load(requests)
            with warnings.catch_warnings(record=True) as warned:
                try:
                    answer = True, function(*arguments, **options)
                except Exception as error:  # noqa: BLE001  (handed on)
                    answer = False, _portable(error)
            pickle.dump((*answer, [str(one.message) for one in warned]), answers)
            answers.flush()


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _private_output() -> BinaryIO:
    """Standard output for answers alone: what anybody prints goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return answers


def _portable(error: Exception) -> Exception:
    """The error, or what it says if it cannot go to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (a constructor may raise anything)
        return ChildError(f"{type(error).__name__}: {error}")
    return error


def _environment(threads: int | None) -> dict[str, str]:
    """The environment of a process that may start as many threads, or fewer where it says so already."""
    environment = dict(os.environ)
    for name in THREADS if threads is not None else ():
        said = environment.get(name, "")
        if not (said.isdecimal() and 0 < int(said) <= (threads or 1)):
            environment[name] = str(threads)
    return environment
