"""Arrays of other libraries as a dump takes them: PyTorch, JAX, CuPy, lists."""

from __future__ import annotations

from typing import Any, overload

import array_api_compat
import numpy as np
import numpy.typing as npt

from spear_np import Sliceable
from spear_np.adopt import adopted_bits
from spear_np.backend.host import to_host
from spear_np.errors import ArrayError

from ..problems import FileError, Place
from .storage import Bfloat16


@overload
def handed_over(array: None, place: Place) -> None: ...
@overload
def handed_over(array: Sliceable | npt.ArrayLike, place: Place) -> Sliceable: ...
def handed_over(array: Any, place: Place) -> Sliceable | None:
    """Return what has `shape`, a dtype of NumPy and slices, with the numbers of `array`; None stays None.

    Nothing is copied that lies on the host and has a type of NumPy. Tensors of bfloat16 become `Bfloat16`. What is
    sliceable already, such as an h5py dataset, is handed back as it is.

    Parameters
    ----------
    array : array of any library, sequence of numbers, or None
        As people hand it over.
    place : Place
        Named in errors.

    Raises
    ------
    FileError
        If nothing can be computed with it, or no array can be made of it.
    """
    if array is None or isinstance(array, Bfloat16):
        return array
    try:
        numbers, bfloat16 = adopted_bits(array)
    except ArrayError as error:
        raise FileError(error.problem, place, error.advice) from error
    if bfloat16:
        return Bfloat16(numbers)
    if array_api_compat.is_cupy_array(numbers):
        return to_host(numbers)
    if not isinstance(numbers, Sliceable):
        return _made(numbers, place)
    try:
        np.dtype(numbers.dtype)
    except TypeError:  # a type of another library
        return _made(numbers, place)
    return numbers


def _made(values: Any, place: Place) -> Sliceable:
    """Return the array that NumPy makes of `values`."""
    try:
        return np.asarray(values)
    except Exception as error:  # libraries raise anything at all
        msg = f"is a {type(values).__name__}, of which no array can be made"
        raise FileError(
            msg, place, "hand over a NumPy array, or anything with shape, dtype and slices"
        ) from error
