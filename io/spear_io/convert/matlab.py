"""MATLAB: v7.3 files, which are HDF5 with every dimension reversed, and older ones through SciPy."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..problems import FileError, Place, listing
from ..safety import SMALL, size_text
from .archives import EXPANSION
from .plain_hdf5 import datasets, open_root
from .source import NamedArray, Source, check_count, reading, unsuitable

TAKEN = ("double", "single", "struct")
"""MATLAB's classes that may hold what is wanted."""

PRECISION = {"double": "float64", "single": "float32"}

HEADER = 128
"""Bytes before the first element of a version 5 file; the last two tell the byte order."""

COMPRESSED = 15
"""Type of an element that is packed with zlib."""


@contextmanager
def open_matlab_v73(path: Path) -> Iterator[Source]:
    """Open a `.mat` file of version 7.3: its matrices (r, c) lie in HDF5 as (c, r)."""
    with open_root(path) as file:
        found, skipped = datasets(file, Place(path))
        arrays = [array.T for array in found if not array.name.startswith("#")]  # "#refs#": cells, objects
        yield Source("MATLAB v7.3 .mat", path, tuple(arrays), skipped, producer="MATLAB")


@contextmanager
def open_matlab(path: Path) -> Iterator[Source]:
    """Open a `.mat` file older than version 7.3; its variables are in memory until it is closed."""
    from scipy.io import loadmat, whosmat

    place = Place(path)
    arrays: list[NamedArray] = []
    skipped: dict[str, str] = {}
    with reading(place):
        _check_packing(path)
        variables = whosmat(path)
        _check_variables(variables, path)
        names = [name for name, _, kind in variables if kind in TAKEN]
        values = loadmat(path, variable_names=names) if names else {}
        for name, _, kind in variables:
            if kind in TAKEN:
                _take(name, values[name], place, arrays, skipped, PRECISION.get(kind, "float64"))
            else:
                skipped[name] = f"holds MATLAB's class {kind}, not floating-point numbers"
    yield Source("MATLAB .mat", path, tuple(arrays), skipped, producer="MATLAB")


def is_version_4(path: Path) -> bool:
    """Whether SciPy finds variables in what may be a version 4 file, which begins without a mark."""
    from scipy.io import whosmat
    from scipy.io.matlab import matfile_version

    try:
        return matfile_version(path)[0] == 0 and bool(whosmat(path))
    except Exception:  # noqa: BLE001  (anything at all comes of guessing)
        return False


def _take(
    name: str, value: Any, place: Place, arrays: list[NamedArray], skipped: dict[str, str], precision: str
) -> None:
    """Sort a variable in: a matrix of numbers, a structure of them, or something else."""
    if not isinstance(value, np.ndarray):
        skipped[name] = f"holds a {type(value).__name__}, not a full matrix of numbers"
    elif value.dtype.names and value.size == 1:
        for part in value.dtype.names:
            _take(f"{name}.{part}", value.flat[0][part], place, arrays, skipped, precision)
    elif value.dtype.hasobject:
        skipped[name] = "holds cells or an array of structures, not a matrix of numbers"
    else:
        if value.dtype.kind in "iu":  # MATLAB packs numbers without a fraction, whatever their class
            value = value.astype(precision)
        if reason := unsuitable(value.dtype.name):
            skipped[name] = reason
        else:
            at = place.at(dataset=name)
            arrays.append(NamedArray(name, value.shape, value.dtype.name, at, partial(_same, value)))


def _same(value: Any) -> Any:
    return value


def _check_variables(variables: list[tuple[str, tuple[int, ...], str]], path: Path) -> None:
    """Refuse names that are there twice and shapes that the file cannot hold."""
    place = Place(path)
    check_count(len(variables), place)
    twice = [name for name, count in Counter(name for name, _, _ in variables).items() if count > 1]
    if twice:
        msg = f"holds {listing(twice)} more than once"
        raise FileError(msg, place, "save the file again")
    for name, shape, kind in variables:
        claimed = math.prod(shape) * 8
        if min(shape, default=0) < 0 or (kind in TAKEN and claimed > _limit(path)):
            msg = f"claims shape {shape}, {size_text(max(claimed, 0))}, in a file of {size_text(path.stat().st_size)}"
            raise FileError(msg, place.at(dataset=name), "the file is damaged or made up: save it again")


def _check_packing(path: Path) -> None:
    """Unpack the elements of a version 5 file once, keeping nothing, and refuse those that never end."""
    limit = _limit(path)
    unpacked = 0
    with path.open("rb") as stream:
        order = {b"IM": "little", b"MI": "big"}.get(stream.read(HEADER)[-2:])
        while order and len(tag := stream.read(8)) == 8:
            kind, size = (int.from_bytes(part, order) for part in (tag[:4], tag[4:]))  # type: ignore[arg-type]
            if kind != COMPRESSED:
                stream.seek(size, 1)
                continue
            for block in _unpack(stream, size):
                unpacked += block
                if unpacked > limit:
                    msg = f"a file of {size_text(path.stat().st_size)} that would unpack to more than {size_text(limit)}"
                    raise FileError(
                        msg, Place(path), "if it is yours and means it, save it with -v6 (no packing)"
                    )


def _unpack(stream: BinaryIO, size: int) -> Iterator[int]:
    """Yield how many bytes come out of the next `size` packed bytes, a little at a time."""
    unpacker = zlib.decompressobj()
    while size > 0 and (packed := stream.read(min(size, 2**16))):
        size -= len(packed)
        while packed:
            yield len(unpacker.decompress(packed, 2**20))
            packed = unpacker.unconsumed_tail


def _limit(path: Path) -> int:
    """Return how many bytes the file may take in memory."""
    return max(SMALL, EXPANSION * path.stat().st_size)
