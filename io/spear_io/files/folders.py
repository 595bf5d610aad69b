"""Folders that appear whole under their name, or not at all, with a list of what was written into them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..problems import FileError, Place, cause, printable

MANIFEST = "export.json"
"""What is in a folder of ours: such a folder is replaced, if nobody else put anything into it."""
LARGEST_MANIFEST = 64 * 2**20
"""Bytes of one that are read."""
PRIVATE = 0o700
"""Mode of a new folder: it holds private data."""


@dataclass
class NewFolder:
    """A folder being written."""

    _path: Path
    _place: Place
    _files: list[str] = field(default_factory=list)

    def write(self, name: str, data: bytes) -> None:
        """Write a file; `name` may lead into folders below.

        Raises
        ------
        FileError
            If it cannot be written; then nothing was.
        """
        path = self._path / name
        with _writing(self._place):
            path.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
            _create(path, data)
        self._files.append(str(PurePosixPath(name)))

    def close(self, about: dict[str, Any]) -> None:
        """Write the list of files, with what else is to be said `about` them."""
        said = {**about, "files": sorted([*self._files, MANIFEST])}
        self.write(MANIFEST, (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def new_folder(path: Path, *, kind: str) -> Iterator[NewFolder]:
    """Yield a new folder that takes the name `path` when the block ends well.

    A folder of that name may be empty, or hold what an earlier call of this `kind` wrote and nothing else: it is replaced
    then. Whatever is wrong with the name shows at once.

    Raises
    ------
    FileError
        If the folder cannot be written there, or holds anything of somebody else.
    """
    place = Place(path)
    with _writing(place):
        _check(path, place, kind)
    temporary = path.parent / f".spear-np-{secrets.token_hex(6)}.partial"
    with _writing(place):
        temporary.mkdir(mode=PRIVATE)
    try:
        yield NewFolder(temporary, place)
        with _writing(place):
            _check(path, place, kind)
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _create(path: Path, data: bytes) -> None:
    """Write a new file that nobody else can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as stream:  # noqa: PTH123  (a descriptor)
        stream.write(data)


def _check(path: Path, place: Place, kind: str) -> None:
    """Refuse a name that cannot or must not be written."""
    if not path.parent.is_dir():
        msg = f"the folder '{printable(str(path.parent), 300)}' does not exist"
        raise FileError(msg, place, "make it first, or choose another name")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        msg = "exists and is not a folder"
        raise FileError(msg, place, "choose another name to write to")
    if not path.exists():
        return
    there = {str(file.relative_to(path).as_posix()) for file in path.rglob("*") if not file.is_dir()}
    if there and not there <= _written(path / MANIFEST, kind):
        msg = "is a folder with files that spear-np did not write, so it is not replaced"
        raise FileError(msg, place, "choose another name to write to, or empty it first")


def _written(manifest: Path, kind: str) -> set[str]:
    """Names of the files that an earlier call wrote; none if it was of another kind."""
    if not manifest.is_file() or manifest.stat().st_size > LARGEST_MANIFEST:
        return set()
    try:
        said = json.loads(manifest.read_text())
        return set(said["files"]) if said["format"] == kind else set()
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()


@contextmanager
def _writing(place: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"cannot be written ({cause(error)})"
        raise FileError(
            msg, place, "nothing was written: choose a folder you may write to, or make room"
        ) from error
