"""Attributes of a new group, written without the detours of h5py: a small file consists of little else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

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
        kind = _SCALARS.get(type(value))
        if kind is None or (type(value) is int and not -LARGEST <= value < LARGEST):
            holder.attrs[name] = _plain(value)
            continue
        dtype, stored = kind
        attribute = h5py.h5a.create(holder.id, name.encode(), stored, _SCALAR)
        attribute.write(np.asarray(value, dtype=dtype))


def stored_name(path: Path) -> str:
    """The name of a file as a text that can be stored."""
    return os.fsencode(path.name).decode("utf-8", "replace")
