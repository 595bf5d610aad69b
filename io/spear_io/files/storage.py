"""Numbers as they lie in a file: bfloat16, scaled and ordinary datasets behind one face, read by slices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt

from spear_np import Sliceable
from spear_np.adopt import from_bfloat16
from spear_np.arrays import HostArray

from ..problems import FileError, Place, cause
from .limits import reading_block

Floats: TypeAlias = HostArray

BLOCK_BYTES = 32 * 2**20
"""Target size of one block of columns, as float64."""


FINITE = "every number must be finite: export a step that did not overflow"
"""What to do about a NaN or an infinity in a dump."""
TRUTH_AGAIN = "export the true inputs again"
"""What to do about one in true inputs."""


class Bfloat16:
    """bfloat16 numbers, for which NumPy has no type: uint16 `bits` that read as float32.

    Parameters
    ----------
    bits : array or sliceable of uint16
        The numbers as they lie in memory, e.g. ``tensor.view(torch.uint16).numpy()``.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, bits: Sliceable) -> None:
        if np.dtype(bits.dtype) != np.uint16:
            msg = f"`bits` has dtype {bits.dtype}: bfloat16 numbers are handed over as uint16"
            raise TypeError(msg)
        self.bits = bits

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the numbers."""
        return tuple(self.bits.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the bits."""
        return 2 * math.prod(self.shape)

    def __getitem__(self, key: Any) -> Floats:
        """Read a slice as float32."""
        return from_bfloat16(self.bits[key])


class StoredArray:
    """A dataset that is read only where it is sliced; what `spear_np.LayerGradients` takes for a matrix.

    Parameters
    ----------
    dataset : h5py.Dataset
        Already found harmless (`spear_io.files.safety`).
    place : Place
        Named in the error when the bytes cannot be read.
    precision : str
        What the numbers were rounded to: "float16", "bfloat16", "float32" or "float64".
    divisor : float
        Every number read is divided by it.
    kept : int
        Bytes of unpacked chunks that HDF5 keeps.
    """

    def __init__(
        self,
        dataset: h5py.Dataset,
        place: Place,
        *,
        precision: str,
        encoded: bool = False,
        divisor: float = 1.0,
        kept: int = 0,
    ) -> None:
        self._dataset = dataset
        self._encoded = encoded
        self._kept = kept
        self._divisor = divisor
        self._loaded: Floats | None = None
        self.finite = False
        """Whether it was found to hold no NaN and no infinity."""
        self.place = place
        self.precision = precision

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dataset."""
        return tuple(int(size) for size in self._dataset.shape)

    @property
    def dataset(self) -> h5py.Dataset:
        """The dataset itself."""
        return self._dataset

    @property
    def stored(self) -> int:
        """Bytes that it takes in the file."""
        return int(self._dataset.id.get_storage_size())

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of what slicing returns, in the byte order of this machine.

        A division would round once more, so a scaled dataset reads as float64.
        """
        if self._divisor != 1.0:
            return np.dtype(np.float64)
        return np.dtype(np.float32 if self.precision == "bfloat16" else self.precision)

    def __getitem__(self, key: Any) -> Floats:
        """Read a slice.

        Raises
        ------
        FileError
            If the bytes cannot be read: damaged, cut off, or packed with a filter that fails.
        """
        if self._loaded is not None:
            return np.asarray(self._loaded[key])
        try:
            with reading_block(self.place.file, self._unpacked(key)):
                block = self._dataset[key]
        except (OSError, RuntimeError, ValueError, KeyError, MemoryError) as error:
            msg = f"the numbers cannot be read ({cause(error)})"
            raise FileError(
                msg, self.place, "the file is damaged or incomplete: copy or export it again"
            ) from error
        if self._encoded:
            block = from_bfloat16(block)
        block = np.asarray(block, dtype=self.dtype)
        if self._divisor == 1.0:
            return block
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused as such
            return block / self._divisor

    def load(self) -> None:
        """Keep the numbers in memory from now on, if they fit into one block: nothing is read twice.

        Raises
        ------
        FileError
            As if all were sliced.
        """
        if 8 * math.prod(self.shape) <= BLOCK_BYTES and self._loaded is None:
            loaded = self[...]
            loaded.setflags(write=False)  # every slice is a view of them
            self._loaded = loaded

    @property
    def loaded(self) -> Floats | None:
        """The numbers, if they are in memory: they can be used when the file is closed."""
        return self._loaded

    def _unpacked(self, key: Any) -> int:
        """Return how many bytes are unpacked, at most, to read a slice: at least one chunk."""
        keys = [one for one in (key if isinstance(key, tuple) else (key,)) if one is not Ellipsis]
        # The only ellipsis that is used comes first: `array[..., columns]`.
        first = isinstance(key, tuple) and key[:1] == (Ellipsis,)
        shape = self.shape[len(self.shape) - len(keys) :] if first else self.shape
        taken = [
            len(range(*one.indices(size))) / max(size, 1)
            for size, one in zip(shape, keys, strict=False)
            if isinstance(one, slice)
        ]
        entries = math.ceil(math.prod(taken) * math.prod(self.shape))
        unpacked = max(entries, math.prod(self._dataset.chunks or ())) * int(self._dataset.dtype.itemsize)
        return max(unpacked, self._kept)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Floats:
        """Read everything: for vectors."""
        return np.asarray(self[...], dtype=dtype)

    def divided_by(self, divisor: float) -> StoredArray:
        """Return the same dataset, divided by `divisor` wherever it is read."""
        return StoredArray(
            self._dataset,
            self.place,
            precision=self.precision,
            encoded=self._encoded,
            divisor=self._divisor * divisor,
            kept=self._kept,
        )


class Rows(Protocol):
    """Numbers (k, n) that are read where they are sliced, and where they are: a dataset, or what was read already."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(k, n)."""
        ...

    @property
    def place(self) -> Place:
        """Named in errors."""
        ...

    def __getitem__(self, key: Any, /) -> Floats:
        """Read a slice."""
        ...


@dataclass(frozen=True, eq=False)
class LoadedRows:
    """Numbers (k, n) that are in memory already."""

    values: Floats
    place: Place

    @property
    def shape(self) -> tuple[int, ...]:
        """(k, n)."""
        return tuple(int(size) for size in self.values.shape)

    def __getitem__(self, key: Any) -> Floats:
        """Return a slice."""
        return np.asarray(self.values[key])


def stored_as(array: Sliceable) -> tuple[Sliceable, np.dtype[Any], bool]:
    """Return what slices of `array` give, the dtype they are stored with, and whether that encodes bfloat16."""
    if isinstance(array, Bfloat16):
        return array.bits, np.dtype(np.uint16), True
    dtype = np.dtype(array.dtype)
    return (array, np.dtype(np.uint16), True) if dtype.name == "bfloat16" else (array, dtype, False)


def same_numbers(dataset: h5py.Dataset | None, array: Sliceable | None) -> bool:
    """Whether a stored array, or a missing one, holds the numbers of `array` in its precision."""
    if dataset is None or array is None:
        return dataset is array
    array, dtype, bfloat16 = stored_as(array)
    return (
        dataset.shape == tuple(array.shape)
        and dataset.dtype == dtype
        and ("dtype" in dataset.attrs) == bfloat16
        and all(
            np.array_equal(dataset[rows], np.asarray(array[rows]).view(dtype))
            for rows in row_blocks(dataset.shape)
        )
    )


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of the first axis whose blocks take about `BLOCK_BYTES` as float64."""
    rows = max(1, BLOCK_BYTES // (8 * max(1, shape[-1] if len(shape) > 1 else 1)))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def column_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of the last axis whose blocks take about `BLOCK_BYTES` as float64."""
    rows = int(np.prod(shape[:-1], dtype=object)) if len(shape) > 1 else 1
    width = max(1, BLOCK_BYTES // (8 * max(1, rows)))
    for start in range(0, shape[-1], width):
        yield slice(start, min(start + width, shape[-1]))


def check_finite(array: StoredArray | Rows, advice: str) -> None:
    """Read `array` once by blocks and refuse the first number that is none.

    Parameters
    ----------
    array : StoredArray
        Of any number of dimensions from one.
    advice : str
        What to do if there is one.

    Raises
    ------
    FileError
        Naming the first NaN or infinity and its position.
    """
    for columns in column_blocks(array.shape):
        corner = (*[0] * (len(array.shape) - 1), columns.start)
        check_finite_block(array[..., columns], corner, array.place, advice)


def check_finite_block(block: Floats, corner: Sequence[int], place: Place, advice: str) -> None:
    """Refuse the first number of a block that is none; `corner` is the position of its first entry.

    Raises
    ------
    FileError
        Naming the first NaN or infinity and its position.
    """
    finite = np.isfinite(block)
    if finite.all():
        return
    first = np.argwhere(~finite)[0]
    value = "NaN" if np.isnan(block[tuple(first)]) else "infinity"
    index = [int(offset + i) for offset, i in zip(corner, first, strict=True)]
    where = f"entry {index[-1]}" if len(index) == 1 else f"row {index[0]}, column {index[-1]}"
    msg = f"holds {value} at {where}"
    raise FileError(msg, place, advice)
