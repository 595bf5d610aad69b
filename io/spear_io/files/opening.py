"""HDF5 files opened for reading, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py

from ..problems import FileError, Place, cause, printable
from .limits import reading_file
from .stated import integer, text


@contextmanager
def open_untrusted(path: Path, *, kind: str, version: int) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading and hold its `format` and `format_version` against what is wanted.

    Parameters
    ----------
    path : Path
        The file.
    kind : str
        Wanted `format`, e.g. "spear-gradients".
    version : int
        Newest `format_version` this program knows.
    """
    with open_hdf5(path, advice=_advice(kind)) as file:
        _check_format(file, kind, version, Place(path))
        yield file


def left_open(path: Path, *, kind: str, version: int) -> h5py.File:
    """As `open_untrusted`, but open until it is closed; for use amid `reading_file` alone."""
    place = Place(path)
    check_readable(path, advice=_advice(kind))
    file = _hdf5(path, place, _advice(kind), None)
    try:
        _check_format(file, kind, version, place)
    except BaseException:
        file.close()
        raise
    return file


def _check_format(file: h5py.File, kind: str, version: int, place: Place) -> None:
    found = text(file, "format", place)
    if found is None:
        msg = f"an HDF5 file, but not a {kind} file: it has no attribute 'format'"
        raise FileError(msg, place, _advice(kind))
    if found != kind:
        msg = f"holds format '{printable(found)}', but '{kind}' is wanted"
        raise FileError(msg, place, _advice(kind))
    found_version = integer(file, "format_version", place)
    if found_version is None or found_version < 1:
        msg = "the attribute 'format_version' is missing or not a version number"
        raise FileError(msg, place, f"this spear-np writes {version}")
    if found_version > version:
        msg = f"written in version {found_version} of {kind}, but this spear-np reads up to {version}"
        raise FileError(msg, place, "update spear-np: pip install --upgrade spear-np")


def format_of(path: Path) -> str | None:
    """Return what a file says it is; None if it cannot be opened, or says nothing."""
    try:
        with open_hdf5(path, advice="") as file:
            return text(file, "format", Place(path))
    except FileError:
        return None


@contextmanager
def open_hdf5(path: Path, *, advice: str, image: BinaryIO | None = None) -> Iterator[h5py.File]:
    """Open any HDF5 file for reading.

    Parameters
    ----------
    path : Path
        The file.
    advice : str
        What to do if it is none.
    image : binary file, optional
        The HDF5 file itself if it lies inside `path`, e.g. in an archive.
    """
    place = Place(path)
    check_readable(path, advice=advice)
    with reading_file(path), _hdf5(path, place, advice, image) as file:
        yield file


def _hdf5(path: Path, place: Place, advice: str, image: BinaryIO | None) -> h5py.File:
    try:
        return h5py.File(path if image is None else image, "r", locking="best-effort")
    except BlockingIOError as error:
        msg = "another program is writing this file"
        raise FileError(msg, place, "wait until it is done") from error
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if image is None and not is_hdf5(path):
            msg = "not an HDF5 file"
            raise FileError(msg, place, advice) from error
        if "already open for" in str(error):  # a mark in the file that its writer takes away when it is done
            msg = "another program is writing this file (SWMR), or was stopped while it did"
            advice = "wait until it is done; if none is left, take its mark away with h5clear -s, or copy the file anew"
            raise FileError(msg, place, advice) from error
        cut = "truncated" in str(error)
        msg = "the file is cut off: its end is missing" if cut else f"a damaged HDF5 file ({cause(error)})"
        raise FileError(msg, place, "copy or export it again") from error


def is_hdf5(path: Path) -> bool:
    """Whether the file begins as HDF5 does, perhaps behind a block of another program."""
    return bool(h5py.is_hdf5(path))


def check_readable(path: Path, *, advice: str) -> None:
    """Refuse what is not there, no regular file, or closed to this user; `advice` says what to give instead."""
    place = Place(path)
    try:
        if not path.exists():
            msg = "there is no such file"
            raise FileError(msg, place, "check the name")
        if not path.is_file():
            msg = "is a directory" if path.is_dir() else "is not a regular file"
            raise FileError(msg, place, advice)
        with path.open("rb"):
            pass
    except OSError as error:
        msg = f"cannot be read ({cause(error)})"
        raise FileError(msg, place) from error


def _advice(kind: str) -> str:
    if kind == "spear-gradients":
        return "give a gradient dump, as the exporters of spear-np write it"
    return "give a file written by 'spear-np invert'"
