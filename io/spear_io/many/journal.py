"""What is kept of a run while it goes on: a folder beside the output, with a whole inversion file for each finished task.

A task is written whole under the name of another stage, waited for until the disk has it, and only then called finished.
So whatever ends the run, each record is there whole or absent, and a later run goes on from what is there. A lock in the
folder, which the system takes away with the process that holds it, keeps a second run from the same output.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from ..files.atomic import remove_stale, sync_folder
from ..files.attributes import stored_name
from ..problems import Place, WriteError, cause
from .task import STOP, Done, entry_path

SUFFIX = ".journal"
RUN = "run.json"
LOCK = "lock"

PATIENCE = 2.0
"""Seconds to wait for the lock: a run that was killed a moment ago gives it back in a moment."""


class Journal:
    """The folder of one run, from `with` on locked.

    Parameters
    ----------
    output : Path
        What the run writes; the journal is the folder ``OUTPUT.journal`` beside it.
    run : mapping
        What decides the answers: plain data, under names that people know. A journal of another run is refused.
    resume : bool
        Whether to go on from what an earlier run left.
    discard : bool
        Whether to throw that away.

    Raises
    ------
    WriteError
        If another run has the output, or finished tasks of an earlier one would be lost; if the earlier run was another
        one; or if the folder cannot be written.
    """

    def __init__(
        self, output: Path, run: Mapping[str, Any], *, resume: bool = False, discard: bool = False
    ) -> None:
        self.output = output
        self.folder = output.absolute().with_name(output.name + SUFFIX)
        self.place = Place(output.with_name(output.name + SUFFIX))
        self.run = run
        self.begun = 0
        """Tasks that were finished before."""
        self._resume, self._discard = resume, discard
        self._keep_folder = False
        self._lock = FileLock(self.folder / LOCK, timeout=PATIENCE)

    def __enter__(self) -> Self:
        """Take the lock, and hold what is there against this run."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            msg = "another run is writing this output"
            raise WriteError(
                msg, Place(self.output), "wait until it is done, or choose another name"
            ) from None
        except (OSError, NotImplementedError) as error:
            with suppress(OSError):
                self.folder.rmdir()
            msg = f"cannot be written ({cause(error)})"
            raise WriteError(msg, Place(self.output), "choose a folder you may write to") from error
        try:
            self._hold_against_earlier()
            self._tidy()
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back; a journal without a finished task, or of a run that is complete, is removed."""
        if self._keep_folder or (kind is not None and self.finished()):
            with suppress(OSError):
                self._tidy(all_cut=False)
        else:
            self.remove()
        self._lock.release()

    def finished(self) -> list[int]:
        """Numbers of the tasks that are finished, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.h5"))

    def entry(self, number: int) -> Path | None:
        """The inversion file of a task that is finished or was cut short; None if there is neither."""
        paths = (entry_path(self.folder, number, stage) for stage in ("h5", "cut"))
        return next((path for path in paths if path.exists()), None)

    def keep(self, done: Done) -> None:
        """Make the answer to a task safe.

        Raises
        ------
        WriteError
            If the disk does not take it.
        """
        written = entry_path(self.folder, done.number, "written")
        try:
            descriptor = os.open(written, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            written.replace(entry_path(self.folder, done.number, "h5" if done.finished else "cut"))
            sync_folder(self.folder)
        except OSError as error:
            raise self._failed(error) from error

    def stop(self) -> None:
        """Tell all workers to stop."""
        with suppress(OSError):
            (self.folder / STOP).touch()

    def keep_for_later(self) -> None:
        """Leave the finished tasks where a later run finds them."""
        self._keep_folder = bool(self.finished())

    @property
    def kept(self) -> bool:
        """Whether the folder stays."""
        return self._keep_folder

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        for path in sorted(self.folder.glob("*"), key=lambda path: path.name == LOCK):
            with suppress(OSError):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def _hold_against_earlier(self) -> None:
        said = self.folder / RUN
        finished = self.finished()
        if finished and not (self._resume or self._discard):
            msg = f"an earlier run was interrupted and left {len(finished)} finished layer(s)"
            raise WriteError(msg, self.place, "say --resume to go on, or --force to begin again")
        if finished and self._resume:
            try:
                earlier = json.loads(said.read_text())
            except (OSError, ValueError) as error:
                msg = f"does not say which run it belongs to ({cause(error)})"
                raise WriteError(msg, self.place, "remove it, or say --force to begin again") from error
            different = _different(earlier, dict(self.run))
            if different:
                msg = f"belongs to another run: {different}"
                raise WriteError(msg, self.place, "repeat that one, or say --force to begin again")
            self.begun = len(finished)
            return
        for path in self.folder.glob("*.h5"):
            path.unlink()
        temporary = self.folder / f"{RUN}.written"
        temporary.write_text(json.dumps(self.run, indent=1))
        temporary.replace(said)

    def _tidy(self, *, all_cut: bool = True) -> None:
        """Remove what a run that died has left unfinished."""
        for path in self.folder.iterdir():
            unfinished = path.suffix in (".written", ".progress", *([".cut"] if all_cut else []))
            if unfinished or path.name == STOP:
                path.unlink(missing_ok=True)
        remove_stale(self.folder)
        remove_stale(self.output.absolute().parent)

    def _failed(self, error: OSError) -> WriteError:
        msg = f"cannot be written ({cause(error)})"
        return WriteError(msg, self.place)


def digest(run: Mapping[str, Any]) -> str:
    """A text that only runs of the same sources and options share."""
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def identity(paths: Iterable[Path]) -> list[list[Any]]:
    """What files are told by without reading them: name, size, and when they were changed; of one that is gone, its name."""
    known = []
    for path in paths:
        size = changed = None
        with suppress(OSError):
            status = path.stat()
            size, changed = status.st_size, status.st_mtime_ns
        known.append([stored_name(path), size, changed])
    return known


def _different(earlier: Any, run: dict[str, Any]) -> str:
    """What is not as it was, in a few words; nothing if all is."""
    run = json.loads(json.dumps(run))
    if not isinstance(earlier, dict):
        return "it cannot be understood"
    names = [name for name in {**earlier, **run} if earlier.get(name) != run.get(name)]
    words = []
    for name in names:
        before, now = earlier.get(name), run.get(name)
        short = all(len(str(value)) <= 40 for value in (before, now))
        words.append(f"{name} was {before}, and is {now}" if short else f"{name} differ(s)")
    return "; ".join(words)
