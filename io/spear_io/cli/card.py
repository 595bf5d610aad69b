"""The first run on a card: few kernels to compile, and a word to whoever waits for them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .streams import tell

LOOK_EVERY = 0.2
"""Seconds between two looks at what has been compiled.

Heuristic: soon enough for somebody who waits.
"""


@contextmanager
def card_ready(name: str) -> Iterator[None]:
    """Have the device called `name` ready, and say so on a terminal when its kernels are being compiled.

    Raises
    ------
    DeviceError, InputError
        If there is no such device.
    """
    from spear_np.backend.card import kernel_cache, with_few_kernels
    from spear_np.backend.devices import device_for

    if name == "cpu":
        yield
        return
    with_few_kernels()
    cache = kernel_cache()
    before = _entries(cache)
    device_for(name)
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_EVERY):
            if _entries(cache) - before:
                tell(
                    "spear-np: kernels for this card are being compiled, once; later runs start at once",
                    surely=False,
                )
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()


def _entries(folder: Path) -> frozenset[str]:
    """Names in a folder, which need not exist."""
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except OSError:
        return frozenset()
