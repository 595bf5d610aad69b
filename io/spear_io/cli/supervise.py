"""The command in a process of its own: this one only watches it, and says how it ended.

Files from strangers are read in the other process, under `spear_io.files.limits`. It is forked before anything but the
command line is loaded, so it costs nothing, and no thread or device is lost in it. It is a process group of its own:
whatever the terminal or anybody else tells this process is handed on, once.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..files.limits import Doing, Note, limit_this_process

HANDED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGCONT")
"""Signals that are for the work."""

FATAL = ("SIGTERM", "SIGHUP", "SIGQUIT")
"""Those of them that end both processes, if the work does not take them for a Ctrl-C."""

PATIENCE = 3.0
"""Seconds that reading, or work that was told twice, has to end after a Ctrl-C."""

LOST = 1 << 8
"""What `os.waitpid` would tell of a process that ended with exit status 1."""


def can_supervise() -> bool:
    """Whether this system can fork."""
    return os.name == "posix"


def supervise(
    work: Callable[[], int], report: Callable[[int, Note], int], interrupted: Callable[[], int]
) -> int:
    """Do `work` in another process and return its exit status; in that process, return as well.

    Parameters
    ----------
    work : callable
        Returns the exit status.
    report : callable
        Says that a signal ended the process; takes minus the number of the signal, and what it was at; returns the
        exit status.
    interrupted : callable
        Says that Ctrl-C ended it; returns the exit status.
    """
    note = Note()
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as in the background of a script
    # A Ctrl-C waits until somebody is there to answer it: in the other process, the `try` below.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with _heard() as bell:
        child = os.fork()
        if child:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask - {signal.SIGCHLD})
            status, interruptions = _watch(child, bell, note, deaf=deaf)
    if not child:
        try:
            os.setpgid(0, 0)
            limit_this_process(note)
            signal.signal(
                signal.SIGTTOU, signal.SIG_IGN
            )  # it may write to the terminal, though in the background
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return work()
        except KeyboardInterrupt:
            return interrupted()
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if interruptions and -code in (signal.SIGINT, signal.SIGKILL):
        return interrupted()
    if -code in (getattr(signal, name) for name in FATAL):
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return report(code, note)


@contextmanager
def _heard() -> Iterator[int]:
    """Turn signals into bytes that can be read from the yielded descriptor; put the handlers back afterwards."""
    bell, rope = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(rope, False)
    before = {}
    wakeup = signal.set_wakeup_fd(rope, warn_on_full_buffer=False)
    try:
        for name in (*HANDED_ON, "SIGCHLD"):
            number = getattr(signal, name)
            # What `nohup` ignores stays ignored. A search hears Ctrl-C also where it was, and a process whose SIGCHLD
            # is ignored is told nothing of the end of another.
            if name in ("SIGINT", "SIGCHLD") or signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, lambda number, frame: None)
        yield bell
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(bell)
        os.close(rope)


def _watch(child: int, bell: int, note: Note, *, deaf: bool) -> tuple[int, int]:
    """Hand signals on until the other process has ended; return its status, and how often it was interrupted.

    If that is `deaf` to Ctrl-C unless it searches, it is not killed for it. Should somebody else have taken its status,
    it counts as one of 1: that it went well is not known.
    """
    interruptions = 0
    deadline: float | None = None
    with suppress(OSError):  # it has done so itself, or has ended
        os.setpgid(child, child)
    while True:
        try:
            ended, status = os.waitpid(child, os.WNOHANG)
        except ChildProcessError:
            return LOST, interruptions
        if ended:
            return status, interruptions
        if deadline is not None and time.monotonic() >= deadline:
            # What only came by a file is on its way to an end.
            if interruptions > 1 or note.doing is Doing.READ:
                _send(child, signal.SIGKILL)
            deadline = None
        select.select([bell], [], [], None if deadline is None else max(0.0, deadline - time.monotonic()))
        for number in _rung(bell):
            if number == signal.SIGCHLD:
                continue
            if number == signal.SIGTSTP:
                _send(child, signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGSTOP)  # until somebody continues both
                _send(child, signal.SIGCONT)
                continue
            _send(child, number)
            if number == signal.SIGINT:
                interruptions += 1
                # A search that was told once ends as it should, and writes what it found.
                if not deaf and (interruptions > 1 or note.doing is Doing.READ):
                    deadline = time.monotonic() + PATIENCE


def _send(child: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended, which the next look tells
        os.kill(child, number)


def _rung(bell: int) -> bytes:
    with suppress(BlockingIOError):
        return os.read(bell, 256)
    return b""
