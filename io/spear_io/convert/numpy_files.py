"""NumPy's own files: `.npz`, `.npy`, and folders of `.npy`; nothing in them is ever unpickled."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

import numpy as np
from numpy.lib import format as npy

from ..problems import FileError, Place, printable
from .archives import open_archive, read_member
from .foreign import foreign_member, unread
from .source import NamedArray, Source, precision_of, reading, unsuitable

SUFFIX = ".npy"
MAGIC = b"\x93NUMPY"

FOLDER = "give a file, a folder of one .npy an array or of .safetensors, or an Orbax checkpoint"

LARGEST_FOLDER, DEEPEST = 20_000, 16
"""Entries below a folder, and folders in each other: more is no folder of one model."""


@contextmanager
def open_npz(path: Path) -> Iterator[Source]:
    """Open an archive of `.npy` members, as `numpy.savez` writes it."""
    place = Place(path)
    arrays, skipped = [], {}
    with open_archive(path) as archive:
        load = lru_cache(maxsize=1)(partial(_load_member, archive, place))
        for member in archive.infolist():
            name = member.filename.removesuffix(SUFFIX)
            if member.filename.endswith("/"):  # a folder; `is_dir` fails for a member without a name
                continue
            if foreign := foreign_member(member.filename):
                skipped[member.filename] = foreign
                continue
            if name == member.filename:
                skipped[name] = "is no .npy member"
                continue
            at = place.at(dataset=name)
            with reading(at), archive.open(member) as stream:
                head = _read_header(stream, at)
            if isinstance(head, str):
                skipped[name] = head
                continue
            shape, dtype, size = head
            _check_size(shape, dtype, member.file_size - size, at)
            if reason := unsuitable(precision_of(dtype)):
                skipped[name] = reason
            else:
                numbers = partial(load, member.filename)
                arrays.append(NamedArray(name, shape, precision_of(dtype), at, numbers))
        yield Source("NumPy .npz", path, tuple(arrays), skipped, in_forward_order=True, producer="numpy")


@contextmanager
def open_npy(path: Path) -> Iterator[Source]:
    """Open a single array; its name is that of the file."""
    arrays, skipped = _files({path.stem: path})
    yield Source("NumPy .npy", path, tuple(arrays), skipped, producer="numpy")


@contextmanager
def open_npy_folder(path: Path) -> Iterator[Source]:
    """Open a folder of `.npy` files; their names are those of the files below it."""
    files: dict[str, Path] = {}
    foreign: dict[str, str] = {}
    with reading(Place(path)):
        entries = 0
        for folder, folders, names in os.walk(path):  # which follows no link to a folder
            entries += len(folders) + len(names)
            if entries > LARGEST_FOLDER or len(Path(folder).parts) - len(path.parts) > DEEPEST:
                msg = f"a folder of more than {LARGEST_FOLDER} entries, or more than {DEEPEST} folders deep"
                raise FileError(msg, Place(path), "give a folder of one .npy an array, and nothing else")
            for name in names:
                below = Path(folder, name).relative_to(path).as_posix()
                if name.endswith(SUFFIX) and (reason := foreign_member(below)):
                    foreign[below] = reason
                elif name.endswith(SUFFIX):
                    files[below.removesuffix(SUFFIX)] = Path(folder, name)
    arrays, skipped = _files(files)
    skipped |= foreign
    if not files and not foreign:
        msg = "a folder without arrays"
        raise FileError(msg, Place(path), FOLDER)
    yield Source("folder of NumPy .npy", path, tuple(arrays), skipped, producer="numpy")


def _files(files: dict[str, Path]) -> tuple[list[NamedArray], dict[str, str]]:
    """Return the arrays in `.npy` files by name, and why others cannot be taken."""
    arrays, skipped = [], {}
    for name, file in files.items():
        place = Place(file)
        if not file.is_file() or file.is_symlink():
            skipped[name] = "is not a regular file"
            continue
        with reading(place), file.open("rb") as stream:
            head = _read_header(stream, place)
        if isinstance(head, str):
            skipped[name] = head
            continue
        shape, dtype, size = head
        _check_size(shape, dtype, file.stat().st_size - size, place)
        if reason := unsuitable(precision_of(dtype)):
            skipped[name] = reason
        else:
            load = partial(np.load, file, mmap_mode="r", allow_pickle=False)
            arrays.append(NamedArray(name, shape, precision_of(dtype), place, load))
    return arrays, skipped


def _read_header(stream: Any, place: Place) -> tuple[tuple[int, ...], np.dtype[Any], int] | str:
    """Return shape, dtype and the size of the header of an array, without a byte of its numbers; or why it is none."""
    magic = stream.read(npy.MAGIC_LEN)
    if not magic.startswith(MAGIC):
        what = unread(magic + stream.read(256))
        return f"is {what.name}: {what.advice}" if what else "is no NumPy array, whatever its name says"
    version = tuple(magic[len(MAGIC) :])
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        return f"is in format version {version[0]}.{version[1]} of .npy, which only structured values need"
    try:
        shape, _, dtype = readers[version](stream)
    except ValueError as error:
        found = re.search(r"not a valid dtype descriptor: (.+)", str(error))
        if found is None:
            raise
        return f"holds {printable(found[1], 40)}, a type that NumPy has not, such as float8"
    return shape, dtype, stream.tell()


def _check_size(shape: tuple[int, ...], dtype: np.dtype[Any], there: int, place: Place) -> None:
    """Refuse a header that claims other numbers than there are; pickled objects have no size to claim."""
    if dtype.hasobject:
        return
    claimed = math.prod(shape) * dtype.itemsize
    if any(size < 0 for size in shape) or claimed != there:
        msg = f"claims shape {shape} of {dtype.name}, {claimed} bytes, but {there} are there"
        raise FileError(msg, place, "the file is damaged or made up: export it again")


def _load_member(archive: ZipFile, place: Place, name: str) -> Any:
    """Return one array of an archive, whole; only the one read last is kept."""
    stream: BinaryIO = read_member(archive, name, place)
    return npy.read_array(stream, allow_pickle=False)


def plain_npy(path: Path) -> Any:
    """Return the array of a `.npy` file, of whatever numbers.

    Raises
    ------
    FileError
        If it is damaged, or holds Python objects.
    """
    place = Place(path)
    with reading(place), path.open("rb") as stream:
        head = _read_header(stream, place)
        if isinstance(head, str):
            raise FileError(head, place, "store an array of numbers")
        shape, dtype, size = head
        _check_size(shape, dtype, path.stat().st_size - size, place)
        return np.load(path, allow_pickle=False)


def plain_npz(path: Path) -> dict[str, Any]:
    """Return the arrays of a `.npz` file, of whatever numbers, by name.

    Raises
    ------
    FileError
        As `plain_npy`, and for an archive that would unpack to far more than its size.
    """
    place = Place(path)
    arrays = {}
    with open_archive(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(SUFFIX):
                continue
            name = member.filename.removesuffix(SUFFIX)
            with reading(place.at(dataset=name)):
                arrays[name] = _load_member(archive, place, member.filename)
    return arrays
