"""HDF5 files from strangers: the only module that follows a link or trusts a size.

A dump may come from anybody. HDF5 files can point at other files in three ways (links, virtual datasets, raw
storage outside the file), and a few hundred bytes can claim terabytes. Everything here looks before it touches:
only hard links are followed, layouts are asked before shapes, and sizes are held against the bytes that are there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import h5py

from ..problems import FileError, Place, listing, printable, size_text
from .stated import damage, text
from .storage import BLOCK_BYTES, StoredArray

SMALL = 64 * 2**20
"""Bytes that may be claimed without being there: an unwritten or very well packed dataset."""

EXPANSION = 1100
"""Most that a byte may be unpacked into: deflate makes 1032 of it, scale-offset any number, if all are equal."""

LARGEST_CHUNK = 2**30
"""Bytes of one chunk: HDF5 unpacks a whole chunk to read one number of it."""

FILTERS = {
    h5py.h5z.FILTER_DEFLATE: "gzip",
    h5py.h5z.FILTER_SHUFFLE: "shuffle",
    h5py.h5z.FILTER_FLETCHER32: "fletcher32",
    h5py.h5z.FILTER_LZF: "lzf",
    h5py.h5z.FILTER_NBIT: "nbit",
    h5py.h5z.FILTER_SCALEOFFSET: "scale-offset",
}
"""Filters that may unpack numbers, each once. Not every HDF5 has szip, and what a plugin does is not known."""

LARGEST_CACHE = 256 * 2**20
"""Bytes of unpacked chunks that are kept of one dataset, or twice what is stored of it, if that is more."""

LARGEST_REPETITION = 4 * 2**30
"""Bytes that one pass over a dataset may unpack again because they were not kept."""

LINKS_PER_OBJECT = 16
"""Names that one object of a file has, on average, and how often its numbers are read: models that are shared have two."""

FREE_LINKS = 1000
"""Names that any file may hold."""

Kind = Literal["float", "integer", "any"]
"""Which numbers a dataset may hold."""

# How HDF5 describes the four number formats: bytes; sign, exponent, its bits, mantissa, its bits; exponent bias.
_FLOATS = {
    (2, (15, 10, 5, 0, 10), 15): "float16",
    (2, (15, 7, 8, 0, 7), 127): "bfloat16",
    (4, (31, 23, 8, 0, 23), 127): "float32",
    (8, (63, 52, 11, 0, 52), 1023): "float64",
}

_TYPE_NAMES = {
    h5py.h5t.INTEGER: "integers",
    h5py.h5t.STRING: "strings",
    h5py.h5t.BITFIELD: "bit fields",
    h5py.h5t.OPAQUE: "opaque bytes",
    h5py.h5t.COMPOUND: "compound values",
    h5py.h5t.REFERENCE: "references",
    h5py.h5t.ENUM: "enumerations",
    h5py.h5t.VLEN: "objects of varying length",
    h5py.h5t.ARRAY: "nested arrays",
    getattr(h5py.h5t, "COMPLEX", -1): "complex numbers",  # HDF5 2.0
}

_WANTED = "store float16, float32 or float64 (bfloat16 as uint16 with the attribute dtype = 'bfloat16')"


class TooManyError(FileError):
    """A file that multiplies what it holds."""


class Visits:
    """What was found in one file, counted as often as it was reached: hard links may multiply a little without end.

    Parameters
    ----------
    place : Place
        The file.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._size = place.file.stat().st_size
        self._seen: set[int] = set()
        self._count = self._bytes = self._different_bytes = 0

    def count(self, found: h5py.Group | h5py.Dataset) -> None:
        """Count a group or dataset.

        Raises
        ------
        TooManyError
            If the names, or the numbers below them, are far more than the objects that they lead to, or the numbers far
            more than the file holds.
        """
        with damage(self._place):
            address = h5py.h5o.get_info(found.id).addr
            size = 0
            if isinstance(found, h5py.Dataset):
                size = math.prod(found.shape or ()) * found.id.get_type().get_size()
        self._count += 1
        self._bytes += size
        if address not in self._seen:
            self._seen.add(address)
            self._different_bytes += size
        if self._count > FREE_LINKS + LINKS_PER_OBJECT * len(self._seen):
            msg = f"holds {self._count} names or more for {len(self._seen)} groups and datasets"
        elif self._bytes > SMALL + LINKS_PER_OBJECT * self._different_bytes:
            msg = f"repeats {size_text(self._different_bytes)} under many names, {size_text(self._bytes)} in all"
        elif self._different_bytes > max(4 * SMALL, EXPANSION * self._size):
            msg = f"claims {size_text(self._different_bytes)} in all, but is {size_text(self._size)} long"
        else:
            return
        raise TooManyError(msg, self._place, "the file is damaged or made up: export it again")


def member_names(group: h5py.Group, place: Place) -> list[str]:
    """Names in `group`, in the order of the file; nothing is opened.

    Raises
    ------
    FileError
        If two members have the same name.
    """
    with damage(place):
        # h5py hands out bytes for what is not UTF-8.
        names = [name if isinstance(name, str) else name.decode("utf-8", "surrogateescape") for name in group]
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        msg = f"there are several members of one name: {listing(twice)}"
        raise FileError(msg, place, "the file is damaged or made up: export it again")
    return names


def subgroup(group: h5py.Group, name: str, place: Place) -> h5py.Group | None:
    """Return the group `name` inside `group`, or None if there is none."""
    found = member(group, name, place)
    if found is None or isinstance(found, h5py.Group):
        return found
    msg = f"'{printable(name)}' should be a group, but is a {type(found).__name__.lower()}"
    raise FileError(msg, place, "export the file again")


def required_subgroup(group: h5py.Group, name: str, place: Place) -> h5py.Group:
    """Return the group `name` inside `group`.

    Raises
    ------
    FileError
        If there is none; the message lists what is there.
    """
    found = subgroup(group, name, place)
    if found is None:
        msg = f"the group '{printable(name)}' is missing"
        raise FileError(msg, place, f"there is: {listing(member_names(group, place), 'nothing')}")
    return found


def numbers(
    group: h5py.Group,
    name: str,
    place: Place,
    *,
    ndim: int | None,
    kind: Kind = "float",
    opaque_bfloat16: bool = False,
) -> StoredArray | None:
    """Return the dataset `name` of `group`, found harmless, or None if there is none.

    Parameters
    ----------
    group : h5py.Group
        A layer or the like.
    name : str
        Name of the dataset.
    place : Place
        Where `group` is.
    ndim : int, optional
        Number of dimensions it must have; any if None.
    kind : {"float", "integer", "any"}
        What is accepted: real numbers, whole ones (labels, counts), or both.
    opaque_bfloat16 : bool
        Whether opaque values of two bytes are bfloat16: what h5py makes of the extension type for NumPy.
    """
    place = place.at(dataset=name)
    dataset = member(group, name, place)
    if dataset is None:
        return None
    if not isinstance(dataset, h5py.Dataset):
        msg = "should be a dataset, but is a group"
        raise FileError(msg, place, "export the file again")
    with damage(place):
        _check_storage(dataset, place)
        datatype = dataset.id.get_type()
        if opaque_bfloat16 and datatype.get_class() == h5py.h5t.OPAQUE and datatype.get_size() == 2:
            precision, encoded = "bfloat16", True
        else:
            precision, encoded = _number_format(dataset, datatype, place, kind)
        _check_size(dataset, datatype.get_size(), place, ndim)
        dataset, kept = _with_cache(dataset, group, name, place)
    return StoredArray(dataset, place, precision=precision, encoded=encoded, kept=kept)


def member(group: h5py.Group, name: str, place: Place) -> h5py.Group | h5py.Dataset | h5py.Datatype | None:
    """Follow a hard link; refuse every other kind before it is followed."""
    if address(group, name, place) is None:
        return None
    with damage(place):
        return _opened(h5py.h5o.open(group.id, name.encode("utf-8", "surrogateescape")))


def address(group: h5py.Group, name: str, place: Place) -> int | None:
    """Where in the file what a hard link leads to is; None without one; refuses every other kind."""
    links, raw_name = group.id.links, name.encode("utf-8", "surrogateescape")
    with damage(place):
        # Asked of the link itself: `name in group` would follow it, `group[name]` would walk a path ("." is one).
        if b"/" in raw_name or raw_name == b"." or not links.exists(raw_name):
            return None
        link = links.get_info(raw_name)
        if link.type == h5py.h5l.TYPE_HARD:
            return int(link.u)
        what = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}.get(
            link.type, "a user-defined link"
        )
        msg = f"'{printable(name)}' is {what}, and a file from elsewhere must not lead anywhere else"
        raise FileError(msg, place, "store the data itself; hard links are fine")


def _opened(
    found: h5py.h5g.GroupID | h5py.h5d.DatasetID | h5py.h5t.TypeID,
) -> h5py.Group | h5py.Dataset | h5py.Datatype:
    """What `group[name]` would give, which asks for the mode of the file each time: nobody writes here."""
    if isinstance(found, h5py.h5g.GroupID):
        return h5py.Group(found)
    if isinstance(found, h5py.h5d.DatasetID):
        return h5py.Dataset(found, readonly=True)
    return h5py.Datatype(found)


def _check_storage(dataset: h5py.Dataset, place: Place) -> None:
    """Refuse data that lies elsewhere or cannot be unpacked; never asks for the shape (see below)."""
    layout = dataset.id.get_create_plist()
    # The shape of a virtual dataset is found by opening its source files: layout first.
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        msg = "a virtual dataset: its numbers lie in other files"
        raise FileError(msg, place, "store the data itself, e.g. with h5repack")
    if layout.get_external_count() > 0:
        msg = "its numbers lie in another file (external storage)"
        raise FileError(msg, place, "store the data itself, e.g. with h5repack")
    codes: list[int] = []
    for position in range(layout.get_nfilters()):
        code, _, parameters, name = layout.get_filter(position)
        shown = printable(name.decode(errors="replace")) or "unnamed"
        if code not in FILTERS:
            msg = f"packed with filter {code} ({shown}), which is not one of {', '.join(FILTERS.values())}"
            raise FileError(msg, place, "pack it with gzip or lzf, or not at all, e.g. with h5repack")
        if code in codes:
            msg = f"packed more than once with {FILTERS[code]}"
            raise FileError(msg, place, "pack it once, e.g. with h5repack")
        if not _fits(code, parameters, math.prod(layout.get_chunk()), dataset.id.get_type().get_size()):
            msg = f"packed with {FILTERS[code]} for a chunk of another size or type"
            raise FileError(msg, place, "the file is damaged or made up: export it again")
        codes.append(code)


def _fits(code: int, parameters: Sequence[int], entries: int, itemsize: int) -> bool:
    """Whether a filter that was told what it unpacks will make a chunk of it: HDF5 takes its word.

    The parameters are those of H5Znbit.c and H5Zscaleoffset.c.
    """
    if (
        code == h5py.h5z.FILTER_NBIT
    ):  # how many these are, unpacked, entries, atomic, bytes, order, bits, offset
        if len(parameters) != 8:
            return False
        count, _, told, kind, size, order, bits, offset = parameters
        right = (count, told, kind, size) == (8, entries, 1, itemsize) and order in (0, 1)
        return right and 0 < bits <= 8 * itemsize - offset
    if (
        code == h5py.h5z.FILTER_SCALEOFFSET
    ):  # how, digits or bits, entries, class, bytes; sign, order, fill value
        return len(parameters) == 20 and (parameters[2], parameters[4]) == (entries, itemsize)
    return True


def _number_format(
    dataset: h5py.Dataset, datatype: h5py.h5t.TypeID, place: Place, kind: Kind
) -> tuple[str, bool]:
    """Return (precision, whether bfloat16 is encoded as uint16) or refuse the type."""
    type_class = datatype.get_class()
    if type_class == h5py.h5t.FLOAT:
        precision = _FLOATS.get((datatype.get_size(), datatype.get_fields(), datatype.get_ebias()))
        if precision is not None and kind != "integer":
            return precision, False
        if kind == "integer":
            msg = "holds floating-point numbers, but must hold whole ones"
            raise FileError(msg, place, "store integers")
        msg = f"holds floating-point numbers of an unknown format ({8 * datatype.get_size()} bits)"
        raise FileError(msg, place, _WANTED)
    if type_class == h5py.h5t.INTEGER:
        if (
            dataset.dtype.kind == "u"
            and dataset.dtype.itemsize == 2
            and text(dataset, "dtype", place) == "bfloat16"
        ):
            return "bfloat16", True
        if kind != "float":
            return dataset.dtype.name, False
        msg = f"holds integers ({dataset.dtype.name})"
        raise FileError(msg, place, _WANTED)
    what = _TYPE_NAMES.get(type_class, "values of an unknown type")
    if type_class == h5py.h5t.COMPOUND and dataset.dtype.kind == "c":
        what = "complex numbers"
    msg = f"holds {what}, not real numbers"
    raise FileError(msg, place, _WANTED)


def _check_size(dataset: h5py.Dataset, itemsize: int, place: Place, ndim: int | None) -> None:
    """Refuse shapes that do not fit or that the file cannot hold."""
    shape = dataset.shape
    if shape is None:
        msg = "holds no numbers at all (an empty dataspace)"
        raise FileError(msg, place, "export the file again")
    if ndim is not None and len(shape) != ndim:
        wanted = {1: "one dimension", 2: "two dimensions"}[ndim]
        msg = f"has shape {shape}, but must have {wanted}"
        raise FileError(msg, place, "export the file again")
    claimed = math.prod(shape) * itemsize
    stored = dataset.id.get_storage_size()
    if claimed > max(SMALL, EXPANSION * stored):
        msg = (
            f"claims shape {shape}, {size_text(claimed)}, but only {size_text(stored)} of it are in the file"
        )
        raise FileError(msg, place, "the file is damaged or made up: export it again")
    if dataset.chunks is not None:
        chunk = math.prod(dataset.chunks) * itemsize
        if chunk > LARGEST_CHUNK or chunk > max(SMALL, EXPANSION * stored):
            msg = f"is stored in chunks of {size_text(chunk)}, which would have to be in memory at once"
            raise FileError(msg, place, "store it in chunks of a few megabytes, e.g. with h5repack")


def _with_cache(
    dataset: h5py.Dataset, group: h5py.Group, name: str, place: Place
) -> tuple[h5py.Dataset, int]:
    """Return the dataset with room for the chunks that several blocks of rows or columns share, and how many bytes that is.

    HDF5 unpacks a whole chunk to read one number of it, and keeps only small ones.
    """
    if not dataset.chunks or len(dataset.shape) != 2 or not dataset.id.get_create_plist().get_nfilters():
        return dataset, 0
    itemsize = dataset.id.get_type().get_size()
    chunk = math.prod(dataset.chunks) * itemsize
    kept = 0
    for axis in (0, 1):
        size, across = dataset.shape[axis], dataset.shape[1 - axis]
        block = min(size, max(1, BLOCK_BYTES // (8 * max(1, across))))
        if block >= dataset.chunks[axis]:
            continue  # each chunk is unpacked for two blocks at most
        shared = -(-across // dataset.chunks[1 - axis]) * chunk
        if shared <= max(LARGEST_CACHE, 2 * dataset.id.get_storage_size()):
            kept = max(kept, shared)
        elif -(-dataset.chunks[axis] // block) * math.prod(dataset.shape) * itemsize > LARGEST_REPETITION:
            msg = f"is stored in chunks of {dataset.chunks}, too large to be unpacked again and again"
            raise FileError(msg, place, "store it in chunks of a few megabytes, e.g. with h5repack")
    if kept == 0:
        return dataset, 0
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(10 * (kept // chunk) + 521, kept + chunk, 1.0)
    return h5py.Dataset(h5py.h5d.open(group.id, name.encode("utf-8", "surrogateescape"), access)), kept
