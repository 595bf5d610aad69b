"""Signals that end a search cleanly: Ctrl-C, of which a second one aborts, and what schedulers and terminals send."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ENDS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that ask for an end."""


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed, or another signal asked for an end; for the solver's `stop`.

    A second Ctrl-C raises `KeyboardInterrupt` wherever the program is; schedulers may say it as often as they like. What
    was ignored, as by `nohup`, stays so. The previous handlers return afterwards. Outside the main thread, where Python
    takes no signals, nothing is changed.
    """
    asked = False
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked, pressed
        if number == signal.SIGINT:
            if pressed:
                raise KeyboardInterrupt
            pressed = True
        if asked:
            return
        asked = True
        # Not print(): a signal may arrive in the middle of another write to the same buffer.
        with suppress(OSError, ValueError):  # standard error may be closed, or no file
            os.write(
                sys.stderr.fileno(),
                b"\nspear-np: stopping; what was found so far is written (Ctrl-C again aborts)\n",
            )

    if threading.current_thread() is not threading.main_thread():
        yield lambda: asked
        return
    with suppress(OSError):
        sys.stderr.flush()
    previous = {}
    try:
        for name in ENDS:
            number = getattr(signal, name, None)
            # A search hears Ctrl-C also where it was ignored, as in the background of a script.
            if number is not None and (name == "SIGINT" or signal.getsignal(number) is not signal.SIG_IGN):
                previous[number] = signal.signal(number, handle)
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
