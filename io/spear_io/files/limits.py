"""Limits on what reading a file from a stranger may cost this process: memory, processor time, and what is said of it.

The libraries that read files loop, crash and allocate without end on some that differ from a good one in a single byte.
So the command reads them in a process of its own (`spear_io.cli.supervise`; `spear_io.in_child` does it for anybody),
and that process limits itself wherever it reads. It lifts the limits while it computes: a search may take its hour and
its gigabytes. Whoever waits for the process learns from the `Note` what was being read when it died.

Limits belong to a process, so this module keeps those of this one. Elsewhere nothing is limited and nothing changes.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from ..problems import FileError, Place

MEMORY = 512 * 2**20
"""Bytes that reading may take, whatever the size of the file …"""

MEMORY_FACTOR = 4
"""… and bytes for each of the file, or of a block of numbers: a block is unpacked, turned and copied."""

SECONDS = 4.0
"""Of processor time that reading may take, whatever the size of the file …"""

BYTES_PER_SECOND = 4 * 2**20
"""… and how slowly a large file may be read: far slower than any machine unpacks."""

SPINNING = 0.25
"""Seconds for which the threads of a library may go on taking processor time after they computed.

They wait for the next product in a loop, by default for up to 0.2 seconds, and the time of a process is that of all its
threads.
"""

NOTE_SIZE = 4096
DEATH_SIGNAL = 1
"""What Linux calls PR_SET_PDEATHSIG."""
TICKS = ~0 << 3
"""What Linux calls CPUCLOCK_PROF of the process that asks."""


class Doing(IntEnum):
    """What a process is at."""

    WORK = 0
    READ = 1
    """It reads, and nothing is lost if it ends."""
    READ_BLOCK = 2
    """It reads a block of numbers amid its work."""


class Note:
    """What a process is at, in memory that another one sees.

    Parameters
    ----------
    memory : buffer, optional
        `NOTE_SIZE` bytes that both see; by default new memory, which forked processes share.
    """

    def __init__(self, memory: Any = None) -> None:
        self._memory = mmap.mmap(-1, NOTE_SIZE) if memory is None else memoryview(memory).cast("B")

    def write(self, doing: Doing, file: Path | None) -> None:
        """Say what is being read."""
        name = os.fsencode(file or "")[: NOTE_SIZE - 4]
        self._memory[1:3] = len(name).to_bytes(2, "little")
        self._memory[3 : 3 + len(name)] = name
        self._memory[0:1] = bytes([doing])

    @property
    def doing(self) -> Doing:
        """What the process is at, or was when it ended."""
        return Doing(self._memory[0])

    @property
    def file(self) -> Path:
        """What it reads."""
        size = int.from_bytes(self._memory[1:3], "little")
        return Path(os.fsdecode(bytes(self._memory[3 : 3 + size])))


class WorkMemoryError(MemoryError):
    """Memory ran out while nothing was limited."""


@dataclass
class _Limits:
    """Those of this process: what is in force, and why."""

    note: Note
    given: Mapping[int, tuple[int, int]]
    """Soft and hard limits that the process began with, by their numbers."""
    files: tuple[Path, ...] = ()
    """Open ones, the last of them last."""
    working: bool = False
    """Whether nothing is limited although a file is open."""
    memory: float | None = None
    """Address space, in bytes, that the process may have; None where nothing is limited."""
    seconds: float | None = None
    """Processor time, likewise."""

    def allow(self, memory: float | None, seconds: float | None) -> None:
        """Let the process have that much in all."""
        self.memory, self.seconds = memory, seconds
        if os.name != "posix":
            return
        import resource

        if sys.platform == "linux":  # elsewhere nothing tells what the process has
            _limit(resource.RLIMIT_AS, memory, self.given[resource.RLIMIT_AS])
        _limit(resource.RLIMIT_CPU, seconds, self.given[resource.RLIMIT_CPU])

    def allow_more(self, size: int) -> None:
        """Let the process have what reading `size` bytes may take, on top of what it has.

        Amid work the threads of the solver may keep every core busy meanwhile.
        """
        threads = _cores() if self.working else 1
        self.allow(
            _address_space() + MEMORY + MEMORY_FACTOR * size,
            processor_time() + threads * (SECONDS + size / BYTES_PER_SECOND),
        )

    def say(self) -> None:
        if self.files and not self.working:
            self.note.write(Doing.READ, self.files[-1])
        else:
            self.note.write(Doing.WORK, None)


_limits: _Limits | None = None


def limit_this_process(note: Note) -> None:
    """From now on, limit what reading files costs in this process; for one that exists to be limited.

    It also dies with the one that started it, and leaves no image of its memory on the disk when it crashes: that
    holds private data.
    """
    global _limits
    if os.name != "posix":
        _limits = _Limits(note, {})
        return
    import resource

    _limits = _Limits(
        note, {number: resource.getrlimit(number) for number in (resource.RLIMIT_AS, resource.RLIMIT_CPU)}
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


@contextmanager
def reading_file(path: Path, size: int | None = None) -> Iterator[None]:
    """Limit what is done until the block ends; `size` bytes are expected to be read, by default those of the file."""
    limits = _limits
    if limits is None:
        yield
        return
    if size is None:
        size = path.stat().st_size if path.is_file() else 0
    outermost = not limits.files
    limits.files = (*limits.files, path)
    if limits.memory is not None and limits.seconds is not None:
        limits.allow(
            limits.memory + MEMORY_FACTOR * size, limits.seconds + size / BYTES_PER_SECOND
        )  # of both files together
    elif not limits.working:
        limits.allow_more(size)
    limits.say()
    try:
        yield
    except WorkMemoryError:
        raise
    except MemoryError as error:
        limits.allow(None, None)  # also to say it
        raise too_much_memory(path) from error
    finally:
        limits.files = limits.files[:-1]
        if outermost:
            limits.allow(None, None)
        limits.say()


@contextmanager
def working() -> Iterator[None]:
    """Limit nothing until the block ends: it computes on what was read, and may take what it takes."""
    limits = _limits
    if limits is None or limits.memory is None or limits.seconds is None:
        yield
        return
    left = limits.memory - _address_space(), limits.seconds - processor_time()
    limits.working = True
    limits.allow(None, None)
    limits.say()
    try:
        yield
    except MemoryError as error:
        raise WorkMemoryError(str(error)) from error
    finally:
        limits.working = False
        limits.allow(_address_space() + left[0], processor_time() + left[1] + _cores() * SPINNING)
        limits.say()


@contextmanager
def reading_block(path: Path, size: int) -> Iterator[None]:
    """Limit the reading of `size` bytes of numbers, also amid work; what they take is on no other account."""
    limits = _limits
    if limits is None:
        yield
        return
    memory, seconds = limits.memory, limits.seconds
    space, clock = _address_space(), processor_time()
    limits.allow_more(size)
    limits.note.write(Doing.READ_BLOCK if limits.working else Doing.READ, path)
    try:
        yield
    finally:
        limits.allow(
            None if memory is None else memory + max(0, _address_space() - space),
            None if seconds is None else seconds + processor_time() - clock,
        )
        limits.say()


def too_much_memory(path: Path) -> FileError:
    """Return the error to raise when memory ran out while a file was read."""
    msg = "reading it takes more memory than there is, or than a file of its size should need"
    return FileError(msg, Place(path), "the file is damaged or made up: export it again")


def processor_time() -> float:
    """Seconds of processor time of this process, by the clock that its limit is held against.

    Linux counts that one in ticks of its timer, which on a busy machine drifts from what `time.process_time` tells, by
    tens of seconds in a process that works for minutes.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            return time.clock_gettime(TICKS)
    return time.process_time()


def _cores() -> int:
    return os.cpu_count() or 1


def _address_space() -> int:
    """Return how many bytes this process has; 0 where that is not told, and where no limit holds anyway."""
    try:
        with open("/proc/self/statm", "rb") as stream:  # noqa: PTH123  (asked often)
            return int(stream.read().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 0


def _limit(number: int, wanted: float | None, given: tuple[int, int]) -> None:
    """Lower a soft limit to what is wanted, never above what was given; None puts back what was given."""
    import resource

    soft, hard = given
    if wanted is not None:
        soft = math.ceil(wanted) if soft == resource.RLIM_INFINITY else min(soft, math.ceil(wanted))
    resource.setrlimit(number, (soft, hard))
