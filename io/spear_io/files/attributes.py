"""Attributes and arrays of a new group, written without the detours of h5py: a small file consists of little else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

_SCALAR = h5py.h5s.create(h5py.h5s.SCALAR)
_SCALARS = {
    kind: (np.dtype(dtype), h5py.h5t.py_create(np.dtype(dtype), logical=True))
    for kind, dtype in (
        (str, h5py.string_dtype()),
        (int, np.int64),
        (float, np.float64),
        (np.float64, np.float64),
        (bool, np.bool_),
    )
}
"""How h5py stores one value of a type: the dtype in memory, and the type in the file."""

_PLAIN = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
"""How h5py stores arrays: without the time, so that equal files are equal."""
_PLAIN.set_obj_track_times(False)

LARGEST = 2**63
"""Whole numbers from here on are not int64."""


def _plain(value: Any) -> Any:
    """What h5py stores: texts and sequences of them may be NumPy's own, as scikit-learn names its features."""
    if isinstance(value, tuple | list | np.ndarray):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, str) else value


def write_attributes(holder: h5py.Group | h5py.Dataset, values: Mapping[str, Any]) -> None:
    """Write attributes that are not there yet, as h5py would; those that are None are left out."""
    for name, value in values.items():
        if value is None:
            continue
        texts = type(value) in (list, tuple) and value and all(type(one) is str for one in value)
        kind = _SCALARS.get(str if texts else type(value))
        if kind is None or (type(value) is int and not -LARGEST <= value < LARGEST):
            holder.attrs[name] = _plain(value)
            continue
        dtype, stored = kind
        space = h5py.h5s.create_simple((len(value),)) if texts else _SCALAR
        attribute = h5py.h5a.create(holder.id, name.encode(), stored, space)
        attribute.write(np.asarray(value, dtype=dtype))


def write_array(
    holder: h5py.Group, name: str, array: npt.ArrayLike, dtype: npt.DTypeLike | None = None
) -> h5py.h5d.DatasetID:
    """Write an array of numbers that is not there yet, as h5py would; returns the new dataset."""
    values = np.ascontiguousarray(array, dtype=dtype)
    dataset = new_array(holder, name, values.shape, values.dtype)
    if values.size:
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return dataset


def new_array(
    holder: h5py.Group, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> h5py.h5d.DatasetID:
    """Return a new dataset for numbers, as h5py would make it."""
    stored = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    return h5py.h5d.create(holder.id, name.encode(), stored, h5py.h5s.create_simple(shape), _PLAIN)


def write_columns(dataset: h5py.h5d.DatasetID, columns: slice, block: npt.NDArray[Any]) -> None:
    """Write the `columns` of a dataset (k, n): a block (k, columns) of its dtype."""
    there, block = dataset.get_space(), np.ascontiguousarray(block)
    there.select_hyperslab((0, columns.start), block.shape)
    dataset.write(h5py.h5s.create_simple(block.shape), there, block)


def stored_name(path: Path) -> str:
    """The name of a file as a text that can be stored."""
    return os.fsencode(path.name).decode("utf-8", "replace")
