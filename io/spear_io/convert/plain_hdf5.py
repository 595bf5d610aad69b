"""HDF5 of any layout: every dataset by its path, found without following a link that leads elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py

from ..files import opening, safety
from ..files.storage import StoredArray
from ..problems import FileError, Place
from .source import NamedArray, Source, check_count, reading

ADVICE = "give one of the files that 'spear-np convert --help' lists"
DEEPEST = 64


@contextmanager
def open_plain_hdf5(path: Path) -> Iterator[Source]:
    """Open an HDF5 file of which nothing is known but the names in it."""
    with open_root(path) as file:
        arrays, skipped = datasets(file, Place(path))
        yield Source("HDF5", path, tuple(arrays), skipped, producer="HDF5")


@contextmanager
def open_root(path: Path, *, image: BinaryIO | None = None) -> Iterator[h5py.File]:
    """Open an HDF5 file, or the one that lies as `image` inside the archive `path`."""
    with opening.open_hdf5(path, advice=ADVICE, image=image) as file:
        yield file


def datasets(
    root: h5py.Group, place: Place, *, opaque_bfloat16: bool = False
) -> tuple[list[NamedArray], dict[str, str]]:
    """Return the datasets below a group by path, and why others cannot be taken.

    Parameters
    ----------
    root : h5py.Group
        Where to begin.
    place : Place
        The file.
    opaque_bfloat16 : bool
        As for `spear_io.files.safety.numbers`.
    """
    arrays: list[NamedArray] = []
    skipped: dict[str, str] = {}
    seen = set()
    visits = safety.Visits(place)

    def visit(group: h5py.Group, path: tuple[str, ...]) -> None:
        with reading(place):
            info = h5py.h5o.get_info(group.id)
        if info.addr in seen or len(path) > DEEPEST:
            return  # hard links may go in circles
        seen.add(info.addr)
        for name in safety.member_names(group, place):
            below = (*path, name)
            full = "/".join(below)
            check_count(len(arrays) + len(skipped), place)
            try:
                found = safety.member(group, name, place)
                if isinstance(found, h5py.Group):
                    visit(found, below)
                elif isinstance(found, h5py.Dataset):
                    stored = safety.numbers(group, name, place, ndim=None, opaque_bfloat16=opaque_bfloat16)
                    assert stored is not None
                    visits.count(stored.dataset)
                    arrays.append(_named(full, stored, place))
            except safety.TooManyError:
                raise
            except FileError as error:  # integers, strings, links: other things than the model's numbers
                skipped[full] = error.problem

    visit(root, ())
    return arrays, skipped


def _named(name: str, stored: StoredArray, place: Place) -> NamedArray:
    return NamedArray(name, stored.shape, stored.precision, place.at(dataset=name), lambda: stored)
