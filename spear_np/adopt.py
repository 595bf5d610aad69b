"""Arrays as people hold them, as NumPy computes with them: PyTorch, JAX, pandas, masked and sparse ones, lists."""

from __future__ import annotations

import sys
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from .arrays import HostArray
from .errors import ArrayError, InputError

LOWER_BITS = np.uint32(16)
"""Bits of a float32 that bfloat16 leaves out.

Definition: of the format.
"""


def adopted(name: str, values: Any) -> tuple[Any, str | None]:
    """Return `values` as the solver computes with them, and what they were rounded to if their dtype hides that.

    As `adopted_bits`, but what was bfloat16 in a tensor is float32 now.

    Raises
    ------
    InputError
        If nothing can be computed with them; `name` is what they are called in the message.
    """
    try:
        numbers, bfloat16 = adopted_bits(values)
    except ArrayError as error:
        msg = f"`{name}` {error}"
        raise InputError(msg) from error
    return (from_bfloat16(numbers), "bfloat16") if bfloat16 else (numbers, None)


def adopted_bits(values: Any) -> tuple[Any, bool]:
    """Return `values` bit by bit as something that has a shape, a dtype and slices, and whether they are bits of bfloat16.

    Tensors of PyTorch and arrays of JAX become NumPy arrays on the host, without a copy where they lie there: both
    compute in float32 unless told otherwise, and a tensor may carry a graph. A tensor of bfloat16, for which NumPy has no
    type, becomes the uint16 of its bits. Masked arrays and `numpy.matrix`, which compute in ways of their own, become plain
    ones; so do lists, tuples and data frames. Everything else, an h5py dataset or an array on a GPU, is handed back as it is.

    Raises
    ------
    ArrayError
        If it is sparse, quantised, masked, complex, has no numbers yet, or no array can be made of it.
    """
    if array_api_compat.is_torch_array(values):
        numbers, bfloat16 = _of_tensor(values)
    else:
        numbers, bfloat16 = _of_others(values), False
    if _is_complex(numbers):
        msg = f"has dtype {numbers.dtype}"
        raise ArrayError(msg, "hand over real numbers")
    return numbers, bfloat16


def from_bfloat16(bits: npt.ArrayLike) -> HostArray:
    """Return the float32 numbers whose upper halves are the uint16 `bits`: exact, bfloat16 is a cut float32."""
    bits = np.asarray(bits)
    if bits.dtype.kind == "V":  # opaque bytes
        bits = bits.view(np.uint16)
    return (bits.astype(np.uint32) << LOWER_BITS).view(np.float32)


def _of_tensor(tensor: Any) -> tuple[HostArray, bool]:
    """`adopted_bits` of a tensor of PyTorch."""
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        msg = "is a sparse or quantised tensor"
        raise ArrayError(msg, "hand over a dense one, e.g. .to_dense() or .dequantize()")
    dtype = str(tensor.dtype).removeprefix("torch.")
    bfloat16 = dtype == "bfloat16"
    try:
        host = tensor.detach().cpu().resolve_conj().resolve_neg()
        if bfloat16:
            host = host.contiguous().view(sys.modules["torch"].int16)
        numbers = host.numpy()
    except TypeError as error:  # float8 and other types that NumPy has not
        msg = f"has dtype {dtype}"
        raise ArrayError(msg, "convert it to float16, float32 or float64 first") from error
    except (RuntimeError, NotImplementedError) as error:
        msg = "is a tensor without numbers"
        raise ArrayError(
            msg, "hand over one that holds some, outside torch.func, torch.compile and the device meta"
        ) from error
    return (numbers.view(np.uint16), True) if bfloat16 else (numbers, False)


def _of_others(values: Any) -> Any:
    """`adopted_bits` of everything else."""
    if array_api_compat.is_jax_array(values):
        try:
            return np.asarray(values)
        except Exception as error:  # whatever JAX raises for what has no numbers yet
            msg = "is a traced JAX array"
            raise ArrayError(msg, "call this outside jit, grad and vmap") from error
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            msg = "has masked entries"
            raise ArrayError(msg, "every number must be there")
        return values.data
    if isinstance(values, np.matrix):
        return np.asarray(values)
    if hasattr(values, "shape") and hasattr(values, "toarray"):  # of SciPy, CuPy or the package `sparse`
        msg = "is a sparse array"
        raise ArrayError(msg, "hand over a dense one, e.g. .toarray()")
    if isinstance(values, list | tuple) or (hasattr(values, "__array__") and not hasattr(values, "dtype")):
        try:
            return np.asarray(values)
        except Exception as error:  # libraries raise anything at all
            msg = f"is a {type(values).__name__} of which no array can be made"
            raise ArrayError(msg, "hand over rows of equally many numbers") from error
    return values


def _is_complex(values: Any) -> bool:
    try:
        return bool(np.dtype(values.dtype).kind == "c")
    except (AttributeError, TypeError):
        return False
