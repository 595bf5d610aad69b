"""Flax: trees of parameters in msgpack, as `flax.serialization.to_bytes` and `msgpack_serialize` write them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files.storage import Floats
from ..problems import FileError, Place
from .source import PRECISIONS, NamedArray, Source, check_count, reading, unsuitable

NDARRAY = 1
"""Extension type of an array: shape, name of the dtype and bytes, packed once more."""

CHUNKED = "__msgpack_chunked_array__"
"""Key of a mapping that stands for an array beyond a gigabyte."""

DEEPEST = 64


@dataclass(frozen=True)
class _Packed:
    """An array as it lies in the file."""

    shape: tuple[int, ...]
    precision: str
    numbers: bytes

    def load(self) -> Floats:
        dtype = "<u2" if self.precision == "bfloat16" else np.dtype(self.precision).newbyteorder("<")
        return np.frombuffer(self.numbers, dtype).reshape(self.shape)


@contextmanager
def open_flax(path: Path) -> Iterator[Source]:
    """Open a file of Flax parameters."""
    import msgpack

    place = Place(path)
    with reading(place):
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_unpack, strict_map_key=False)
        leaves = dict(_leaves(tree, place))
    arrays, skipped = [], {}
    for name, leaf in leaves.items():
        if not isinstance(leaf, _Packed):
            continue  # counters, names: what a training state also holds
        if reason := unsuitable(leaf.precision):
            skipped[name] = reason
        else:
            at = place.at(dataset=name)
            arrays.append(NamedArray(name, leaf.shape, leaf.precision, at, leaf.load))
    if not arrays and not skipped:
        msg = "a msgpack file without arrays"
        raise FileError(msg, place, "give parameters as flax.serialization.to_bytes writes them")
    # JAX sorts the keys of a tree, so their order says nothing.
    yield Source("Flax msgpack", path, tuple(arrays), skipped, orientation="nm", producer="flax")


def _unpack(code: int, data: bytes) -> Any:
    """Return what an extension type stands for; None for what is no array."""
    import msgpack

    if code != NDARRAY:
        return None
    shape, dtype, numbers = msgpack.unpackb(data)
    shape = tuple(int(size) for size in shape)
    known = dtype in PRECISIONS
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize if known else 0
    if known and (any(size < 0 for size in shape) or math.prod(shape) * itemsize != len(numbers)):
        msg = f"an array claims shape {shape} of {dtype}, but has {len(numbers)} bytes"
        raise ValueError(msg)
    return _Packed(shape, str(dtype), numbers)


def _leaves(tree: Any, place: Place, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings by name, arrays in chunks put together."""
    if len(path) > DEEPEST:
        msg = f"nested deeper than any model ({DEEPEST} levels)"
        raise FileError(msg, place, "give parameters as flax.serialization.to_bytes writes them")
    if not isinstance(tree, dict):
        yield "/".join(path), tree
    elif CHUNKED in tree:
        yield "/".join(path), _joined(tree)
    else:
        check_count(len(tree), place)
        for key, value in tree.items():
            yield from _leaves(value, place, (*path, str(key)))


def _joined(tree: dict[str, Any]) -> _Packed:
    """Return an array that was split into flat chunks."""
    shape = tuple(int(size) for size in tree["shape"].values())
    chunks = list(tree["chunks"].values())
    numbers = b"".join(chunk.numbers for chunk in chunks)
    if math.prod(shape) != sum(math.prod(chunk.shape) for chunk in chunks) or min(shape, default=0) < 0:
        msg = f"an array of shape {shape} whose chunks do not add up"
        raise ValueError(msg)
    (precision,) = {chunk.precision for chunk in chunks}
    return _Packed(shape, precision, numbers)
