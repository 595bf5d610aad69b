"""Arrays of other libraries as a dump takes them: PyTorch, JAX, CuPy, lists."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from spear_np.backend import to_host

from ..problems import FileError, Place
from .storage import Bfloat16


def handed_over(array: Any, place: Place) -> Any:
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
        If it is a sparse or quantised tensor, or no array can be made of it.
    """
    if array is None or isinstance(array, np.ndarray | Bfloat16):
        return array
    if array_api_compat.is_torch_array(array):
        return _from_torch(array, place)
    if array_api_compat.is_cupy_array(array):
        return to_host(array)
    try:
        np.dtype(array.dtype)
        known = hasattr(array, "shape") and not array_api_compat.is_jax_array(array)
    except (AttributeError, TypeError):
        known = False
    if known:
        return array
    try:
        return np.asarray(array)
    except Exception as error:  # libraries raise anything at all
        msg = f"is a {type(array).__name__}, of which no array can be made"
        raise FileError(
            msg, place, "hand over a NumPy array, or anything with shape, dtype and slices"
        ) from error


def _from_torch(tensor: Any, place: Place) -> Any:
    import torch  # loaded already: the tensor is one of its own

    if tensor.layout is not torch.strided or tensor.is_quantized:
        msg = "is a sparse or quantised tensor"
        raise FileError(msg, place, "hand over a dense one, e.g. .to_dense() or .dequantize()")
    host = tensor.detach().cpu()
    if host.dtype is torch.bfloat16:
        return Bfloat16(host.contiguous().view(torch.int16).numpy().view(np.uint16))
    try:
        return host.numpy()
    except TypeError as error:  # float8 and other types that NumPy has not
        msg = f"has dtype {str(host.dtype).removeprefix('torch.')}"
        raise FileError(msg, place, "convert it to float16, float32 or float64 first") from error
