"""Work on files from strangers in a process of its own, whose death is an error like any other."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from ..problems import FileError, Place
from .limits import NOTE_SIZE, Doing, Note, limit_this_process

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

ENDINGS: dict[signal.Signals, str] = {
    getattr(signal, name): meaning
    for name, meaning in (
        ("SIGKILL", "the system ended the process, as it does when memory runs out"),
        ("SIGSEGV", "a segmentation fault"),
        ("SIGABRT", "an abort, as when memory runs out or is damaged"),
        ("SIGBUS", "the file became shorter while it was read"),
        ("SIGXCPU", "it took too long"),
    )
    if hasattr(signal, name)  # Windows has two of them
}
"""What it means for a process that reads to be ended by a signal."""


class ChildError(RuntimeError):
    """A process ended for a reason that has nothing to do with what it read."""


def in_child(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Result:
    """Call a function that reads files from strangers in a process of its own, and return what it returns.

    HDF5 loops, crashes and allocates without end on some damaged files; here that becomes a `FileError`. While
    `function` reads through `spear_io`, the memory and the processor time of that process are limited in proportion to
    the files; what it computes is not. A process that was taken over by what it read is not held back by this.

    Parameters
    ----------
    function : callable
        Importable by its name, as its arguments and result must be picklable: the process starts afresh, so a script
        must call this under ``if __name__ == "__main__":``.
    *arguments, **options
        Handed to `function`.

    Returns
    -------
    object
        What `function` returned.

    Raises
    ------
    FileError
        If the process died while it read a file.
    ChildError
        If it died otherwise.
    Exception
        Whatever `function` raised.

    Examples
    --------
    ::

        def names(path):
            with spear_io.open_dump(path) as dump:
                return [record.name for record in dump.records]

        spear_io.in_child(names, "dump.h5")
    """
    context = multiprocessing.get_context("spawn")
    memory = context.RawArray("B", NOTE_SIZE)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, memory, function, arguments, options), daemon=True)
    process.start()
    theirs.close()
    try:
        returned, value = ours.recv()
    except EOFError:
        process.join()
        raise death(process.exitcode or 0, Note(memory)) from None
    finally:
        ours.close()
        process.kill()  # it has said all, or is no longer waited for
        process.join()
    if returned:
        result: Result = value
        return result
    raise value


def _serve(pipe: Connection, memory: Any, function: Callable[..., Any], arguments: Any, options: Any) -> None:
    limit_this_process(Note(memory))
    try:
        answer = True, function(*arguments, **options)
    except Exception as error:  # noqa: BLE001  (handed on)
        answer = False, error
    pipe.send(answer)


def death(exit_code: int, note: Note) -> FileError | ChildError:
    """Return the error that a process which ended by itself stands for.

    Parameters
    ----------
    exit_code : int
        Its exit status; minus the number of the signal that ended it.
    note : Note
        What it was at.
    """
    try:
        ended_by: signal.Signals | None = signal.Signals(-exit_code)
        what = f"signal {-exit_code}, {signal.strsignal(-exit_code)}"
    except ValueError:
        ended_by, what = None, f"exit status {exit_code}"
    if note.doing is Doing.WORK:
        msg = f"the process that computed was ended ({what})"
        return ChildError(msg)
    msg = f"reading it ended the process ({ENDINGS.get(ended_by, what) if ended_by else what})"
    return FileError(msg, Place(note.file), "the file is damaged or made up: copy or export it again")
