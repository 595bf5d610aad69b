"""A dump that stays open from one use to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from . import opening
from .dump import FORMAT, FORMAT_VERSION, Dump
from .limits import reading_file
from .shared import Shared


class LastDump:
    """Opens dumps, and leaves the file of the last one open for the next time, as long as it is the same file.

    What records share is read once, and what the last record says is known already. To open a file takes as long as to read a
    small layer. Each record is limited for itself. It is for one thread, and to be closed.
    """

    def __init__(self) -> None:
        self._file: h5py.File | None = None
        self._dump: Dump | None = None
        self._shared = Shared()
        self._identity: tuple[Path, int, int, int, int] | None = None

    @contextmanager
    def open(self, path: Path) -> Iterator[Dump]:
        """As `open_dump`."""
        try:
            status = path.stat()
        except OSError:  # which opening it will explain
            identity = None
        else:
            identity = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if identity is None or identity != self._identity:
            self.close()
        try:
            with reading_file(path):
                if self._dump is None:
                    self._file = opening.left_open(path, kind=FORMAT, version=FORMAT_VERSION)
                    self._dump = Dump(self._file, path, self._shared)
                    self._identity = identity
                yield self._dump
                self._dump.rest()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._dump is not None:
            self._dump.forget()
        if self._file is not None:
            self._file.close()
        self._file = self._dump = self._identity = None
        self._shared.clear()
