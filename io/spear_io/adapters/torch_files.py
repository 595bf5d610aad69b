"""PyTorch checkpoints as NumPy arrays: the one place where such a file is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
except ImportError as error:
    msg = "PyTorch is not installed: pip install 'spear-np[torch]'"
    raise ImportError(msg) from error

from spear_io.files.storage import Bfloat16
from spear_np.adopt import adopted_bits
from spear_np.arrays import HostArray
from spear_np.errors import ArrayError

from ._torch_tensors import DTYPES

__all__ = ["read_tensors"]

DEEPEST = 64

MOST_VISITS = 100_000
"""Tensors and containers that are looked at: a list may hold another many times, and a few of them a great many."""

FREELY_REPEATED = 2**20
"""Bytes that a tensor may claim beyond those that it stores, as one that was expanded does."""


class TooManyError(ValueError):
    """A checkpoint that multiplies what it holds."""


def read_tensors(path: str | Path) -> dict[str, HostArray | Bfloat16 | str]:
    """Return what a checkpoint holds, by names joined with "/", in its order.

    Only tensors, numbers and plain containers are read (``weights_only=True``): nothing else is unpickled.

    Returns
    -------
    dict
        An array for a dense tensor of float16, float32 or float64, a `Bfloat16` for bfloat16, and for every other
        tensor, and for None, a text that says what it is.

    Raises
    ------
    Exception
        Whatever PyTorch raises for a file that it cannot or must not read.
    """
    found: dict[str, HostArray | Bfloat16 | str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the file is like: it is read or it is not
        content = torch.load(path, map_location="cpu", weights_only=True)
    _collect(content, (), found, count())
    return found


def _collect(
    value: Any, path: tuple[str, ...], found: dict[str, HostArray | Bfloat16 | str], visits: Iterator[int]
) -> None:
    """Sort the tensors in nested containers into `found`."""
    if isinstance(value, torch.Tensor):
        found["/".join(path)] = _array(value.detach())
    elif value is None and path:
        found["/".join(path)] = "is None, as the gradient of what is frozen or was not used"
    elif isinstance(value, dict | list | tuple) and len(path) < DEEPEST:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if next(visits) >= MOST_VISITS:
                msg = f"holds more than {MOST_VISITS} tensors, lists and numbers"
                raise TooManyError(msg)
            _collect(item, (*path, str(key)), found, visits)


def _array(tensor: torch.Tensor) -> HostArray | Bfloat16 | str:
    """Return a tensor as NumPy sees it, or what it is if NumPy cannot."""
    dense = tensor.layout is torch.strided and not tensor.is_quantized
    if dense and tensor.nbytes > tensor.untyped_storage().nbytes() + FREELY_REPEATED:
        return f"claims shape {tuple(tensor.shape)}, but repeats a few numbers"
    if dense and tensor.dtype not in DTYPES:
        dtype = str(tensor.dtype).removeprefix("torch.")
        return f"holds {dtype}, not floating-point numbers of 16, 32 or 64 bits"
    try:
        numbers, bfloat16 = adopted_bits(tensor)
    except ArrayError as error:
        return str(error)
    return Bfloat16(numbers) if bfloat16 else np.asarray(numbers)
