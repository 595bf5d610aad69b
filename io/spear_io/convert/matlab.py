"""MATLAB: v7.3 files, which are HDF5 with every dimension reversed, and older ones."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..files.safety import SMALL
from ..problems import FileError, Place, listing, printable
from . import matlab5
from .plain_hdf5 import datasets, open_root
from .source import EXPANSION, NamedArray, Source, check_count, reading, unsuitable


@contextmanager
def open_matlab_v73(path: Path) -> Iterator[Source]:
    """Open a `.mat` file of version 7.3: its matrices (r, c) lie in HDF5 as (c, r)."""
    with open_root(path) as file:
        found, skipped = datasets(file, Place(path))
        arrays = [array.T for array in found if not array.name.startswith("#")]  # "#refs#": cells, objects
        yield Source("MATLAB v7.3 .mat", path, tuple(arrays), skipped, producer="MATLAB")


@contextmanager
def open_matlab_v5(path: Path) -> Iterator[Source]:
    """Open a `.mat` file of versions 5 to 7; its matrices are in memory until it is closed."""
    place = Place(path)
    with reading(place):
        limit = max(SMALL, EXPANSION * path.stat().st_size)
        found = list(matlab5.variables(path, limit=limit))
    values = [(v.name, v.numbers) for v in found if v.numbers is not None]
    skipped = {
        v.name: f"is of MATLAB's class {printable(v.kind)}, not a matrix of floating-point numbers"
        for v in found
        if v.numbers is None
    }
    yield _source(path, values, skipped)


@contextmanager
def open_matlab_v4(path: Path) -> Iterator[Source]:
    """Open a `.mat` file of version 4 through SciPy; its matrices are in memory until it is closed."""
    from scipy.io import loadmat, whosmat

    with reading(Place(path)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of number formats that the file may have
        names = [name for name, _, kind in whosmat(path) if kind == "double"]
        values = [
            (name, value) for name, value in loadmat(path, variable_names=names).items() if name in names
        ]
    yield _source(path, values, {})


def is_version_4(path: Path) -> bool:
    """Whether SciPy finds variables in what may be a version 4 file, which begins without a mark."""
    from scipy.io import whosmat
    from scipy.io.matlab import matfile_version

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return matfile_version(path)[0] == 0 and bool(whosmat(path))
    except Exception:  # noqa: BLE001  (anything at all comes of guessing)
        return False


def _source(path: Path, values: list[tuple[str, Any]], skipped: dict[str, str]) -> Source:
    """Return the matrices of floating-point numbers among the variables of a file."""
    place = Place(path)
    check_count(len(values) + len(skipped), place)
    twice = [name for name, count in Counter([*skipped, *(name for name, _ in values)]).items() if count > 1]
    if twice:
        msg = f"holds {listing(twice)} more than once"
        raise FileError(msg, place, "save the file again")
    arrays = []
    for name, value in values:
        if reason := unsuitable(value.dtype.name):
            skipped[name] = reason
        else:
            at = place.at(dataset=name)
            arrays.append(NamedArray(name, value.shape, value.dtype.name, at, partial(_same, value)))
    return Source("MATLAB .mat", path, tuple(arrays), skipped, producer="MATLAB")


def _same(value: Any) -> Any:
    return value
