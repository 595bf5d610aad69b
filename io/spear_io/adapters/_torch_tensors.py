"""Tensors as a dump takes them: NumPy arrays, bit by bit, and large ones a block of rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spear_io.files.storage import Bfloat16
from spear_np import Sliceable
from spear_np.adopt import adopted_bits
from spear_np.arrays import HostArray

from ._round import RecordingError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What a dump can hold."""


class _Rows:
    """A tensor, or a difference of two, read where it is sliced: a view where it lies on the host.

    bfloat16, for which NumPy has no type, reads as the uint16 bits.
    """

    def __init__(self, tensor: torch.Tensor, minus: torch.Tensor | None) -> None:
        self._tensors = [t.detach() for t in (tensor, minus) if t is not None]
        self._versions = [version_of(t) for t in self._tensors]
        self.shape = tuple(tensor.shape)
        self.tensor_dtype = self._tensors[0].dtype
        for other in self._tensors[1:]:  # models of two precisions differ in the wider one
            self.tensor_dtype = torch.promote_types(self.tensor_dtype, other.dtype)
        self.dtype = to_numpy(torch.empty(0, dtype=self.tensor_dtype)).dtype

    def __getitem__(self, key: Any) -> HostArray:
        if [version_of(t) for t in self._tensors] != self._versions:
            msg = "a tensor changed after it was handed over: write the update before the training goes on"
            raise RecordingError(msg)
        rows, *minus = (tensor[key] for tensor in self._tensors)
        for other in minus:
            rows = rows - other.to(rows.device)
        return to_numpy(rows)


def rows_of(tensor: torch.Tensor | None, minus: torch.Tensor | None = None) -> Sliceable | None:
    """Return `tensor`, or `tensor` - `minus`, for `LayerArrays` without a copy of it; None stays None."""
    if tensor is None:
        return None
    rows = _Rows(tensor, minus)
    return Bfloat16(rows) if rows.tensor_dtype is torch.bfloat16 else rows


def array_of(tensor: torch.Tensor | None, *, copy: bool = False) -> Sliceable | None:
    """Return `tensor` on the host for `LayerArrays`, sharing its memory where it lies there; None stays None."""
    if tensor is None:
        return None
    values = to_numpy(tensor.detach().to("cpu", copy=copy))
    return Bfloat16(values) if tensor.dtype is torch.bfloat16 else values


def to_numpy(values: Any) -> HostArray:
    """Return a tensor, or anything else, as a NumPy array that shares its memory where it can; bfloat16 as the uint16 bits."""
    return np.asarray(adopted_bits(values)[0])


def version_of(tensor: torch.Tensor) -> int:
    """Return how often a tensor was changed in place, as far as PyTorch counts."""
    return 0 if tensor.is_inference() else tensor._version
