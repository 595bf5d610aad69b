"""MATLAB files of version 5: full matrices of numbers, read as MathWorks documents the format.

SciPy's reader takes a byte of the file for an index without looking, and a damaged file ends the process; so only
what this module has checked is read, and nothing else of the file is touched.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files.storage import Floats
from ..problems import FileError, Place, size_text

HEADER = 128
"""Bytes before the first element; the last two tell the byte order."""

MATRIX, COMPRESSED = 14, 15
"""Types of elements: a variable, and one packed with zlib."""

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Types of numbers; those without a fraction are packed into fewer bytes, whatever their class."""

CLASSES = dict(
    enumerate(
        [
            "cell",
            "struct",
            "object",
            "char",
            "sparse",
            "double",
            "single",
            "int8",
            "uint8",
            "int16",
            "uint16",
            "int32",
            "uint32",
            "int64",
            "uint64",
        ],
        1,
    )
)
PRECISION = {"double": "float64", "single": "float32"}
COMPLEX = 0x08


@dataclass(frozen=True)
class Variable:
    """A variable of a file."""

    name: str
    kind: str
    """MATLAB's class, "complex double" included."""
    shape: tuple[int, ...]
    numbers: Floats | None
    """Its numbers if it is a full real matrix of floating-point numbers."""


@dataclass(frozen=True)
class _Elements:
    """Elements one after the other in memory, each with a tag of type and size."""

    raw: bytes
    order: str

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield (type, content)."""
        at = 0
        while at + 8 <= len(self.raw):
            kind, size = (int(word) for word in np.frombuffer(self.raw, f"{self.order}u4", 2, at))
            if kind >> 16:  # up to four bytes lie in the tag itself
                kind, size, begin, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            else:
                begin, after = at + 8, at + 8 + (size if kind == COMPRESSED else -(-size // 8) * 8)
            if begin + size > len(self.raw):
                msg = f"an element claims {size} bytes, but {len(self.raw) - begin} are there"
                raise ValueError(msg)
            yield kind, self.raw[begin : begin + size]
            at = after


def variables(path: Path, *, limit: int) -> Iterator[Variable]:
    """Yield the variables of a version 5 file, unpacking at most `limit` bytes in all.

    Raises
    ------
    FileError
        If it would unpack to more.
    ValueError
        If an element claims what is not there.
    """
    content = path.read_bytes()
    order = "<" if content[HEADER - 2 : HEADER] == b"IM" else ">"
    for kind, element in _Elements(content[HEADER:], order):
        inner = [(kind, element)]
        if kind == COMPRESSED:
            unpacked = zlib.decompressobj().decompress(element, limit + 1)
            limit -= len(unpacked)
            if limit < 0:
                msg = f"a file of {size_text(len(content))} that would unpack to far more"
                raise FileError(
                    msg, Place(path), "if it is yours and means it, save it with -v6 (no packing)"
                )
            inner = list(_Elements(unpacked, order))
        for inner_kind, matrix in inner:
            if inner_kind == MATRIX:
                yield _variable(matrix, order)


def _variable(matrix: bytes, order: str) -> Variable:
    """Return what a matrix element holds: flags, shape, name, and then the numbers."""
    parts = iter(_Elements(matrix, order))
    flags, sizes, name = (next(parts, (0, b""))[1] for _ in range(3))
    (word,) = np.frombuffer(flags, f"{order}u4", 1)
    shape = tuple(int(size) for size in np.frombuffer(sizes, f"{order}i4"))
    code = int(word) & 0xFF
    kind = CLASSES.get(code, "function or object")
    kind = f"complex {kind}" if (int(word) >> 8) & COMPLEX else kind
    numbers = None
    if kind in PRECISION:
        stored, raw = next(parts, (0, b""))
        if stored not in NUMBERS or min(shape, default=0) < 0:
            msg = f"a matrix of shape {shape} holds numbers of type {stored}"
            raise ValueError(msg)
        packed = np.frombuffer(raw, f"{order}{NUMBERS[stored]}")
        if packed.size != math.prod(shape):
            msg = f"a matrix claims shape {shape}, but has {packed.size} numbers"
            raise ValueError(msg)
        numbers = packed.reshape(shape, order="F").astype(PRECISION[kind], copy=False)
    return Variable(name.decode("utf-8"), kind, shape, numbers)
