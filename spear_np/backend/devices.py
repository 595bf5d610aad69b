"""Devices: where arrays live, and which namespace works on them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import array_api_compat
import array_api_compat.numpy as np_compat
import numpy as np

from ..arrays import Array, Namespace
from ..errors import DeviceError, InputError
from .card import at_work, check_card, launch, one_line
from .host import to_host
from .uploads import uploaded

Launch = Callable[[str, str, int, int, tuple[Any, ...], int], None]
"""Run a CUDA kernel: source text, name, blocks, threads of a block, arguments, bytes of dynamic shared memory."""


@dataclass(frozen=True)
class Device:
    """Where arrays live and which namespace works on them."""

    xp: Namespace
    """Array-API namespace."""
    handle: Any = None
    """What `xp` takes as `device=`."""
    name: str = "cpu"
    """"cpu" or "gpu:N", as shown to people and written to files."""
    launch: Launch | None = None
    """Runs CUDA kernels; None where the device has none."""

    def activate(self) -> AbstractContextManager[Any]:
        """Make this the current device of its library, where the library has such a notion.

        What CuPy's pools keep for arrays to come is handed back when the outermost of such blocks ends; no array is touched.

        Raises
        ------
        DeviceError
            On leaving, if a card ran out of memory or stopped answering.
        """
        return at_work(self) if array_api_compat.is_cupy_namespace(self.xp) else nullcontext()

    def float64(self, values: Any) -> Array:
        """Copy `values` (array, block of a dataset, sequence) to this device as float64."""
        return self._move(values, np.float64, self.xp.float64)

    def float32(self, values: Any) -> Array:
        """Copy `values` to this device as float32."""
        return self._move(values, np.float32, self.xp.float32)

    def streamed(self, reads: Iterable[Sequence[Any]]) -> Iterator[tuple[Array, ...]]:
        """As `float64`, of all arrays of each of `reads`, which are made one after the other.

        On a card each is on its way while its predecessor is computed with; elsewhere it is made when it is asked for. What making
        one raises comes when its turn comes.
        """
        if array_api_compat.is_cupy_namespace(self.xp):
            return uploaded(self, reads)
        return (tuple(self.float64(values) for values in read) for read in reads)

    def integers(self, values: Any) -> Array:
        """Copy host integers to this device as an int64 index array."""
        return self.xp.asarray(np.asarray(values, dtype=np.int64), device=self.handle)

    def booleans(self, values: Any) -> Array:
        """Copy host truth values to this device."""
        return self.xp.asarray(np.asarray(values, dtype=np.bool_), device=self.handle)

    def zeros(self, shape: int | tuple[int, ...]) -> Array:
        """Array of float64 zeros on this device."""
        return self.xp.zeros(shape, dtype=self.xp.float64, device=self.handle)

    def eye(self, size: int) -> Array:
        """Identity matrix, float64."""
        return self.xp.eye(size, dtype=self.xp.float64, device=self.handle)

    def normal(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Standard normal float64 numbers, drawn on the host so that every device sees the same."""
        return self.float64(rng.standard_normal(shape))

    def _move(self, values: Any, host_dtype: Any, dtype: Any) -> Array:
        if array_api_compat.is_array_api_obj(values) and not array_api_compat.is_numpy_array(values):
            here = array_api_compat.array_namespace(values) is self.xp
            if here and array_api_compat.device(values) == self.handle:
                return self.xp.astype(values, dtype)
            values = to_host(values)
        return self.xp.asarray(np.asarray(values, dtype=host_dtype), device=self.handle)


CPU = Device(np_compat, "cpu", "cpu")


def device_for(name: str | None, *arrays: Any) -> Device:
    """Return the device called `name`; None stays where `arrays` are (host data stays on the CPU).

    Raises
    ------
    InputError
        If `name` is none of "cpu", "gpu", "gpu:N".
    DeviceError
        If a GPU is asked for and CuPy or the device is missing.
    """
    if name is None:
        for array in arrays:
            if array_api_compat.is_array_api_obj(array) and not array_api_compat.is_numpy_array(array):
                return _device_of(array)
        return CPU
    if name == "cpu":
        return CPU
    match = re.fullmatch(r"gpu(?::(\d+))?", name)
    if match is None:
        msg = f"unknown device {name!r}: expected cpu, gpu or gpu:N"
        raise InputError(msg)
    return _gpu(int(match[1] or 0))


def _device_of(array: Array) -> Device:
    handle = array_api_compat.device(array)
    if array_api_compat.is_cupy_array(array):
        return _gpu(int(handle.id))
    return Device(array_api_compat.array_namespace(array), handle, "cpu")


def _gpu(number: int) -> Device:
    try:
        import cupy
    except ImportError as error:
        if getattr(error, "name", None) == "cupy":
            msg = "a GPU was asked for, but CuPy is not installed: pip install 'spear-np[cuda13]' (or cuda12)"
        else:
            msg = (
                "a GPU was asked for, but CuPy does not load: install the one for your CUDA, pip install "
                f"'spear-np[cuda13]' (or cuda12), and no other beside it ({one_line(error)})"
            )
        raise DeviceError(msg) from error
    check_card(number)
    import array_api_compat.cupy as cupy_compat

    return Device(cupy_compat, cupy.cuda.Device(number), f"gpu:{number}", launch)
