"""Files that appear whole under their name, or not at all."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import h5py

from ..problems import FileError, Place, WriteError, cause
from . import opening, stated
from .attributes import write_attributes

try:
    import fcntl
except ImportError:  # only POSIX has it
    fcntl = None  # type: ignore[assignment]

MARKED = 1024
"""Bytes at the beginning of a text file that tell who wrote it."""

PRIVATE = stat.S_IRUSR | stat.S_IWUSR
"""Mode of a new file: it holds private data."""

TEMPORARY = ".spear-np-{}.partial"
"""What a file is called before it has its name."""


class _Spool(io.RawIOBase):
    """A file whose writes never fail, for HDF5, which may crash the process after one that does.

    The first failure is kept in `failure` and everything after it is dropped, so HDF5 can close what it has
    open in peace. Whoever uses the file asks `failure` after every step.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self.failure: BaseException | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any, /) -> int | None:
        return self._raw.readinto(buffer)

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        rest = view
        try:
            while rest and self.failure is None:
                rest = rest[self._raw.write(rest) :]
        except BaseException as error:  # noqa: BLE001  (a Ctrl-C must not reach HDF5 either)
            self.failure = error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            if self.failure is None:
                return self._raw.truncate(size)
        except BaseException as error:  # noqa: BLE001
            self.failure = error
        return size or 0


@dataclass(frozen=True)
class NewFile:
    """An HDF5 file being written."""

    root: h5py.File
    _spool: _Spool

    @contextmanager
    def writing(self, place: Place) -> Iterator[None]:
        """Turn a failure to write into a `FileError`; around writes only, never around a solver."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:  # a text that HDF5 cannot hold is a ValueError
            raise _not_written(self._spool.failure or error, place) from error
        if self._spool.failure is not None:
            raise _not_written(self._spool.failure, place) from self._spool.failure


@contextmanager
def new_hdf5(
    path: Path,
    *,
    kind: str,
    version: int,
    sources: Iterable[Path] = (),
    replace: bool = True,
    durable: bool = True,
) -> Iterator[NewFile]:
    """Yield a new HDF5 file that replaces `path` when the block ends well.

    It is written without a name, or under a temporary one where the system has no such files, in the same folder. So
    everything that keeps `path` from being written shows at once, an old file under that name stays as it is until the
    new one is complete, and nothing is left behind otherwise. It keeps the mode of the file that it replaces; a new one
    can be read by nobody else.

    Parameters
    ----------
    path : Path
        Final name.
    kind, version : str, int
        Become the attributes `format` and `format_version`.
    sources : iterable of Path
        Files that are being read and must not be replaced.
    replace : bool
        Whether a file of another `kind` may be replaced.
    durable : bool
        Whether to wait until the disk has the file, so that it outlives a power cut.

    Raises
    ------
    WriteError
        If the file cannot be written there.
    """
    place = Place(path)
    check_target(path, kind=kind, sources=sources, replace=replace)
    with _replacing(path, place, durable=durable) as raw:
        spool = _Spool(raw)
        new = NewFile(h5py.File(spool, "w"), spool)
        with new.root:
            with new.writing(place):
                created = datetime.now(UTC).isoformat(timespec="seconds")
                write_attributes(new.root, {"format": kind, "format_version": version, "created": created})
            yield new
        with new.writing(place):
            pass  # what closing the file wrote


@contextmanager
def new_file(
    path: Path, *, what: str, mark: bytes, sources: Iterable[Path] = (), replace: bool = True
) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes to a new file, which replaces `path` when the block ends well, as `new_hdf5` does.

    Parameters
    ----------
    path : Path
        Final name.
    what : str
        What such a file is called: "a report".
    mark : bytes
        What one of them has among its first `MARKED` bytes.
    sources : iterable of Path
        Files that are being read and must not be replaced.
    replace : bool
        Whether a file that does not have the mark may be replaced.

    Raises
    ------
    FileError
        If the file cannot be written there.
    """
    place = Place(path)
    _check_name(path, place, sources)
    if not replace and path.exists():
        try:
            with path.open("rb") as stream:
                own = mark in stream.read(MARKED)
        except OSError:
            own = False
        if not own:
            raise _of_another_kind(place, what)
    with _replacing(path, place, durable=True) as raw:

        def write(data: bytes) -> None:
            view = memoryview(data)
            try:
                while view:
                    view = view[raw.write(view) :]
            except OSError as error:
                raise _not_written(error, place) from error

        yield write


@contextmanager
def _replacing(path: Path, place: Place, *, durable: bool) -> Iterator[io.FileIO]:
    """Yield a new, empty file that takes the name `path` when the block ends well."""
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    temporary = target.with_name(TEMPORARY.format(secrets.token_hex(6)))
    raw = _nameless(target.parent)
    named = raw is None
    try:
        raw = raw or io.FileIO(temporary, "x+", opener=lambda name, flags: os.open(name, flags, PRIVATE))
    except OSError as error:
        msg = f"cannot be written ({cause(error)})"
        raise WriteError(msg, place, "choose a folder you may write to") from error
    try:
        with raw:
            _claim(raw.fileno())
            yield raw
            try:
                if target.exists() and hasattr(os, "fchmod"):
                    os.fchmod(raw.fileno(), stat.S_IMODE(target.stat().st_mode))
                if durable:
                    os.fsync(raw.fileno())
                if not named:
                    named = True
                    _name(raw, temporary)
                if os.name == "posix":
                    temporary.replace(target)  # while it is claimed: it is no stale file
                    named = False
            except OSError as error:
                raise _not_written(error, place) from error
        try:
            if os.name != "posix":  # where open files keep their names
                temporary.replace(target)
                named = False
            if durable:
                sync_folder(target.parent)
        except OSError as error:
            raise _not_written(error, place) from error
    finally:
        if named:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@cache
def _can_be_nameless() -> bool:
    """Whether this system has files without a name, and gives them one."""
    return hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir()


def _nameless(folder: Path) -> io.FileIO | None:
    """Return a new file that is gone with its process as long as it has no name; None where there are none."""
    if not _can_be_nameless():
        return None
    try:
        return io.FileIO(os.open(folder, os.O_TMPFILE | os.O_RDWR, PRIVATE), "r+")
    except OSError:  # not on every file system
        return None


def _name(raw: io.FileIO, path: Path) -> None:
    """Give a nameless file its first name, or its content to a file of that name where the system refuses that."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:  # a folder is given, because only then the link to the file is followed
        os.link(f"/proc/self/fd/{raw.fileno()}", path.name, dst_dir_fd=folder, follow_symlinks=True)
    except OSError:
        raw.seek(0)
        mode = stat.S_IMODE(os.fstat(raw.fileno()).st_mode)
        with io.FileIO(path, "x", opener=lambda name, flags: os.open(name, flags, PRIVATE)) as copy:
            shutil.copyfileobj(raw, copy)
            os.fchmod(copy.fileno(), mode)
            os.fsync(copy.fileno())
    finally:
        os.close(folder)


def _claim(descriptor: int) -> bool:
    """Mark an open file as in use, until its process closes it or dies; return whether nobody else had."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody else has, or this file system knows no such marks
        return False
    return True


def remove_stale(folder: Path) -> None:
    """Remove files that a process began to write in `folder` and, since it died, will not end."""
    for path in folder.glob(TEMPORARY.format("*")):
        with suppress(OSError), path.open("rb") as stream:
            if _claim(stream.fileno()):
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Wait until new names are on the disk."""
    if os.name != "posix":  # only POSIX opens folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(error: BaseException, place: Place) -> BaseException:
    """Return the error to raise for a failed write; what is no failure of the disk goes on as it is."""
    if not isinstance(error, OSError | RuntimeError | ValueError):
        return error
    msg = f"cannot be written ({cause(error)})"
    return WriteError(msg, place, "nothing was written")


def check_target(path: Path, *, kind: str, sources: Iterable[Path] = (), replace: bool = True) -> None:
    """Refuse a name that cannot or must not be written; parameters and errors are those of `new_hdf5`."""
    place = Place(path)
    _check_name(path, place, sources)
    if not replace:
        _check_kind(path, kind, place)


def _check_name(path: Path, place: Place, sources: Iterable[Path]) -> None:
    try:
        if path.is_dir():
            msg = "is a directory"
            raise WriteError(msg, place, "give the name of a file to write")
        if not path.parent.is_dir():
            msg = f"the folder '{path.parent}' does not exist"
            raise WriteError(msg, place, "make it first, or choose another name")
        if path.exists():
            if not path.is_file():
                msg = "is not a regular file"
                raise WriteError(msg, place, "choose another name to write to")
            if any(source.exists() and path.samefile(source) for source in sources):
                msg = "is the file that is being read"
                raise WriteError(msg, place, "choose another name to write to")
    except OSError as error:
        msg = f"cannot be written ({cause(error)})"
        raise WriteError(msg, place, "choose another name to write to") from error


def _check_kind(path: Path, kind: str, place: Place) -> None:
    """Refuse to replace a file of another kind."""
    if not path.exists():
        return
    found = None
    with suppress(FileError), opening.open_hdf5(path, advice="") as file:
        found = stated.text(file, "format", place)
    if found != kind:
        raise _of_another_kind(place, "an inversion" if kind == "spear-inversion" else "a gradient dump")


def _of_another_kind(place: Place, what: str) -> WriteError:
    msg = f"exists and is not {what}, so it is not replaced"
    return WriteError(msg, place, "choose another name to write to, or say --force")
