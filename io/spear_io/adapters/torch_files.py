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

__all__ = ["read_tensors"]

DEEPEST = 64

MOST_VISITS = 100_000
"""Tensors and containers that are looked at: a list may hold another many times, and a few of them a great many."""

FREELY_REPEATED = 2**20
"""Bytes that a tensor may claim beyond those that it stores, as one that was expanded does."""


class TooManyError(ValueError):
    """A checkpoint that multiplies what it holds."""


def read_tensors(path: str | Path) -> dict[str, Any]:
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
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the file is like: it is read or it is not
        content = torch.load(path, map_location="cpu", weights_only=True)
    _collect(content, (), found, count())
    return found


def _collect(value: Any, path: tuple[str, ...], found: dict[str, Any], visits: Iterator[int]) -> None:
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


def _array(tensor: torch.Tensor) -> Any:
    """Return a tensor as NumPy sees it, or what it is if NumPy cannot."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return "holds a sparse or quantised tensor: save it dense (.to_dense(), .dequantize())"
    if tensor.nbytes > tensor.untyped_storage().nbytes() + FREELY_REPEATED:
        return f"claims shape {tuple(tensor.shape)}, but repeats a few numbers"
    if tensor.dtype is torch.bfloat16:  # for which NumPy has no type
        return Bfloat16(tensor.contiguous().view(torch.int16).numpy().view(np.uint16))
    if tensor.dtype in (torch.float16, torch.float32, torch.float64):
        return tensor.numpy()
    return (
        f"holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers of 16, 32 or 64 bits"
    )
