"""Ctrl-C that ends a search cleanly: the first one asks, the second one aborts."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; for the solver's `stop`.

    A second Ctrl-C raises `KeyboardInterrupt` wherever the program is. The previous handler returns afterwards.
    Outside the main thread, where Python takes no signals, nothing is changed.
    """
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        # Not print(): a signal may arrive in the middle of another write to the same buffer.
        with suppress(OSError, ValueError):  # standard error may be closed, or no file
            os.write(
                sys.stderr.fileno(),
                b"\nspear-np: stopping; what was found so far is written (Ctrl-C again aborts)\n",
            )

    if threading.current_thread() is not threading.main_thread():
        yield lambda: pressed
        return
    with suppress(OSError):
        sys.stderr.flush()
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)
