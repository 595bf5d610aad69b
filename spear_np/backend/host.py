"""The way from any library to the host."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from ..arrays import HostArray


def as_stored(values: Any) -> HostArray:
    """`values` on the host in the floating-point type that they come in, so that no more is copied than is known; else float64."""
    host = to_host(values)
    stored = host.dtype in (np.float16, np.float32, np.float64)  # false in the byte order of another machine
    return host if stored else host.astype(np.float64)


def to_host(array: Any) -> HostArray:
    """Copy an array of any library to NumPy: the one deliberate way from a device to the host."""
    if array_api_compat.is_cupy_array(array):
        host: HostArray = array.get()
        return host
    if array_api_compat.is_array_api_obj(array) and not array_api_compat.is_numpy_array(array):
        return np.from_dlpack(array, device="cpu", copy=True)
    return np.asarray(array)
