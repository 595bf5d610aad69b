"""The array libraries the solver must run on, and an assertion that tells them apart."""

from __future__ import annotations

from enum import Enum
from types import ModuleType
from typing import Any

import array_api_compat
import array_api_compat.numpy as np_compat
import numpy as np

import spear_np
from spear_np import Sliceable
from spear_np.backend.devices import Device, device_for
from spear_np.backend.host import to_host
from tests.networks import Floats, LayerData

Array = Any


class Backend(Enum):
    """Where the arrays of a test live; the value names the library and, after a colon, what is special."""

    NUMPY = "numpy"
    READ_ONLY = "numpy:read-only"
    """NumPy arrays that raise when written to: nothing may change its inputs."""
    STRICT = "array_api_strict:device1"
    """Only what the array API standard has, on a device that is not the default one."""
    CUPY = "cupy"

    @property
    def missing(self) -> str | None:
        """Why this backend cannot be tested here; None if it can."""
        if self is not Backend.CUPY:
            return None
        try:
            import cupy

            cupy.cuda.runtime.getDeviceCount()
        except ImportError:
            return "CuPy is not installed"
        except cupy.cuda.runtime.CUDARuntimeError as error:
            return f"CUDA does not answer: {error}"
        return None

    @property
    def xp(self) -> ModuleType:
        """The array-API namespace."""
        if self is Backend.STRICT:
            import array_api_strict

            strict: ModuleType = array_api_strict
            return strict
        if self is Backend.CUPY:
            import array_api_compat.cupy as cupy_compat

            cupy: ModuleType = cupy_compat
            return cupy
        numpy: ModuleType = np_compat
        return numpy

    @property
    def handle(self) -> Any:
        """What `xp` takes as `device=`."""
        if self is Backend.STRICT:
            return self.xp.Device("device1")
        if self is Backend.CUPY:
            import cupy

            return cupy.cuda.Device(0)
        return "cpu"

    @property
    def device(self) -> Device:
        """The solver's own notion of this backend, taken from an array as users hand it over."""
        return device_for(None, self.array(np.zeros(1)))

    def array(self, values: Any) -> Array:
        """Copy a NumPy array, its dtype unchanged, to this backend; the standard has no float16: float32 there."""
        host = np.array(values)
        if self is Backend.STRICT and host.dtype == np.float16:
            host = host.astype(np.float32)
        if self is Backend.READ_ONLY:
            host.flags.writeable = False
        return (
            host if self in (Backend.NUMPY, Backend.READ_ONLY) else self.xp.asarray(host, device=self.handle)
        )

    def gradients(self, data: LayerData, **changes: Any) -> spear_np.LayerGradients:
        """Return the layer of `data` on this backend; `changes` replace arrays or set options."""
        fields: dict[str, Any] = {
            "weight_grad": data.weight_grad,
            "bias_grad": data.bias_grad,
            "weight": data.weight,
            "bias": data.bias,
        } | changes
        moved = {
            name: self.array(value) if isinstance(value, np.ndarray) else value
            for name, value in fields.items()
        }
        return spear_np.LayerGradients(**moved)

    def host(self, array: Array) -> Floats:
        """Copy an array of this backend to NumPy; anything else is an error."""
        assert_lives_on(array, self)
        return to_host(array)


def assert_lives_on(array: Array, backend: Backend) -> None:
    """Fail unless `array` belongs to the library and the device of `backend`."""
    assert array_api_compat.is_array_api_obj(array), f"{type(array).__name__} is no array"
    namespace = array_api_compat.array_namespace(array)
    assert namespace is backend.xp, f"array of {namespace.__name__}, not of {backend.xp.__name__}"
    device = array_api_compat.device(array)
    assert device == backend.handle, f"array on {device}, not on {backend.handle}"


def assert_array(
    array: Array, expected: Any, backend: Backend, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Fail unless `array` has namespace and device of `backend` and dtype, shape, values of `expected`.

    `expected` is a NumPy array (or what becomes one); values must agree exactly unless a tolerance is given.
    """
    assert_lives_on(array, backend)
    wanted = np.asarray(expected)
    dtype = str(array.dtype).rsplit(".", maxsplit=1)[-1]
    assert dtype == wanted.dtype.name, f"dtype {dtype}, not {wanted.dtype.name}"
    assert tuple(array.shape) == wanted.shape, f"shape {tuple(array.shape)}, not {wanted.shape}"
    np.testing.assert_allclose(to_host(array), wanted, rtol=rtol, atol=atol)


def values_of(array: Sliceable | None) -> Floats:
    """What is there to be read, as a NumPy array: without a copy where it is one."""
    assert array is not None
    return np.asarray(array[...])
