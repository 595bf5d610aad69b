"""Standard streams that are closed, full or cannot write every character: what is said gets through or is answered."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ..problems import cause, printable


class OutputError(Exception):
    """Standard output took no more.

    Parameters
    ----------
    error : OSError
        What the system said.
    kept : Path, optional
        The file that is complete all the same.
    """

    def __init__(self, error: OSError, kept: Path | None = None) -> None:
        super().__init__(error, kept)
        self.error = error
        self.kept = kept

    def __str__(self) -> str:
        """One clause."""
        closed = self.error.errno == errno.EBADF
        why = "it is closed" if closed else cause(self.error)
        rest = f"; {printable(str(self.kept), 1000)} is complete" if self.kept else ""
        return f"the results cannot be written to standard output ({why}){rest}"


class _Output:
    """Standard output whose failures are told from those of files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.kept: Path | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error, self.kept) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error, self.kept) from error


def complete_already(path: Path) -> None:
    """Say, should nothing more reach standard output, that `path` is complete."""
    if isinstance(sys.stdout, _Output):
        sys.stdout.kept = path


def stand_in_for_closed() -> None:
    """Put something in the place of standard streams that are closed, so that no file takes their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free; it cannot be written to
    # None is what Python makes of a closed stream.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    _escape_characters()


def keep_for_messages() -> None:
    """Let Python alone write to standard error: what C libraries print as they crash is not for people."""
    sys.stderr.flush()
    kept = os.dup(sys.stderr.fileno())
    sys.stderr = open(kept, "w", buffering=1, encoding=sys.stderr.encoding)  # noqa: PTH123, SIM115
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


@contextmanager
def told_apart() -> Iterator[None]:
    """Within the block standard output raises `OutputError`, and no stream fails for want of a character."""
    _escape_characters()
    before = sys.stdout
    output: Any = _Output(before)
    sys.stdout = output
    try:
        yield
        output.flush()
    finally:
        sys.stdout = before


def _escape_characters() -> None:
    """Let a stream that takes no λ print an escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def tell(line: str, *, surely: bool = True) -> None:
    """Print a line to standard error or, if that takes nothing and it must be said `surely`, to standard output."""
    for stream in (sys.stderr, sys.stdout) if surely else (sys.stderr,):
        try:
            print(line, file=stream, flush=True)
        except OSError:
            drop(stream)
        else:
            return


def drop(stream: TextIO) -> None:
    """Forget what a stream holds and could not write: Python would try, and complain, when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
