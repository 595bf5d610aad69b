"""The one face of all formats: named arrays that are read only where they are sliced."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal

import numpy as np

from spear_np.adopt import from_bfloat16

from ..adapters.wiring import Step
from ..files.limits import reading_block
from ..files.safety import SMALL
from ..files.storage import Bfloat16, Floats
from ..problems import FileError, Place, cause, printable, size_text

Orientation = Literal["mn", "nm"]
"""Of a stored matrix: "mn", rows are output units (torch); "nm", columns are output units (Keras, Flax)."""

PRECISIONS = ("float16", "bfloat16", "float32", "float64")

EXPANSION = 100
"""Bytes of numbers for each byte of a file, beyond `SMALL`: floating-point numbers hardly shrink."""

LARGEST_ARRAYS = 100_000
"""Arrays in one source: more is no model, and listing them would take the time of everybody."""


@dataclass(frozen=True)
class NamedArray:
    """One array of a source; `spear_io.DumpWriter` copies it by blocks of rows.

    Parameters
    ----------
    name : str
        As in the source, parts separated by "/" or ".".
    shape : tuple of int
        As the matrix is handed out.
    precision : str
        One of `PRECISIONS`.
    place : Place
        Named in errors.
    load : callable
        Returns what can be sliced: floating-point numbers, or the bits of bfloat16.
    transposed : bool
        Whether rows handed out are columns of what `load` returns.
    """

    name: str
    shape: tuple[int, ...]
    precision: str
    place: Place
    load: Callable[[], Any] = field(repr=False, compare=False)
    transposed: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of what slicing returns: float32 for bfloat16."""
        return np.dtype(np.float32 if self.precision == "bfloat16" else self.precision)

    @property
    def T(self) -> NamedArray:
        """The transposed array; nothing is read."""
        return replace(self, shape=self.shape[::-1], transposed=not self.transposed)

    @property
    def flat(self) -> NamedArray:
        """The same numbers in one dimension, for vectors stored as a row or a column."""
        return replace(
            self,
            shape=(math.prod(self.shape),),
            load=lambda: self[:].reshape(-1),
            transposed=False,
        )

    @property
    def for_dump(self) -> NamedArray | Bfloat16:
        """What `DumpWriter` takes, so that no bit changes."""
        return Bfloat16(_Bits(self)) if self.precision == "bfloat16" else self

    def __getitem__(self, key: slice | tuple[EllipsisType, slice]) -> Floats:
        """Read a block of rows, or of columns (`[..., columns]`): contiguous, in the byte order of this machine."""
        turned = key[1] if isinstance(key, tuple) else (..., key)
        size = math.prod(self.shape) * self.dtype.itemsize  # some formats are read whole
        with reading(self.place), reading_block(self.place.file, size):
            stored = self.load()
            block = np.asarray(stored[turned].T if self.transposed else stored[key])
            if self.precision == "bfloat16" and block.dtype != np.float32:
                block = from_bfloat16(block)
        return np.ascontiguousarray(block, dtype=self.dtype)


@dataclass(frozen=True)
class _Bits:
    """The upper halves of float32 numbers that came from bfloat16: nothing is lost."""

    numbers: NamedArray
    dtype = np.dtype(np.uint16)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def __getitem__(self, rows: slice) -> Floats:
        return (self.numbers[rows].view(np.uint32) >> 16).astype(np.uint16)


@dataclass(frozen=True)
class Source:
    """A file of arrays, whatever its format."""

    format: str
    """For people: "NumPy .npz"."""
    path: Path
    arrays: tuple[NamedArray, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Arrays that cannot be taken, and why."""
    in_forward_order: bool = False
    """Whether the file tells the order of the forward pass by that of its arrays."""
    orientation: Orientation | None = None
    """How the format stores every matrix, where it says so."""
    network: tuple[Step, ...] = ()
    """How the layers are used, under the names of their arrays without the last part, where the file says so."""
    producer: str = ""
    notes: tuple[str, ...] = ()
    """What else the file says that people must know."""

    @property
    def place(self) -> Place:
        """The file."""
        return Place(self.path)


@contextmanager
def reading(place: Place) -> Iterator[None]:
    """Turn whatever a library raises for a malformed file into a `FileError`."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:  # parsers of foreign formats raise anything at all
        msg = f"cannot be read ({cause(error)})"
        raise FileError(msg, place, "the file is damaged or incomplete: copy or export it again") from error


def precision_of(dtype: np.dtype[Any]) -> str:
    """Return what numbers of that dtype were rounded to, or the name of a dtype that holds none.

    Two bytes without a meaning are bfloat16: what NumPy stores of the extension type of that name.
    """
    return "bfloat16" if dtype == np.dtype("V2") else dtype.name


def unsuitable(precision: str) -> str | None:
    """Why an array of what a format calls `precision` cannot be taken; None if it can."""
    if precision == "object":
        return "holds Python objects, which only unpickling could read"
    if precision not in PRECISIONS:
        return f"holds {printable(precision)}, not floating-point numbers of 16, 32 or 64 bits"
    return None


def check_claims(claimed: int, place: Place) -> None:
    """Refuse a source whose arrays together are far larger than the file."""
    size = place.file.stat().st_size
    if claimed > max(SMALL, EXPANSION * size):
        msg = f"claims {size_text(claimed)} of numbers, but is {size_text(size)} long"
        raise FileError(msg, place, "the file is damaged or made up: export it again")


def check_count(count: int, place: Place) -> None:
    """Refuse a source of too many arrays."""
    if count > LARGEST_ARRAYS:
        msg = f"holds {count} arrays, more than any model ({LARGEST_ARRAYS})"
        raise FileError(msg, place, "export only the layers that matter")
