"""Host arrays on their way to a card while the last ones are computed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeVar

import array_api_compat
import numpy as np

from ..arrays import Array, HostArray
from .card import current
from .host import as_stored

if TYPE_CHECKING:
    from .devices import Device

T = TypeVar("T")


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """What `items` yields, each while the next is made already; what making one raises is raised in its turn."""
    made: list[T] = []
    try:
        for item in items:
            made.append(item)
            if len(made) > 1:
                yield made.pop(0)
    except Exception:
        if made:
            yield made.pop()
        raise
    if made:
        yield made.pop()


def uploaded(device: Device, reads: Iterable[Sequence[Any]]) -> Iterator[tuple[Array, ...]]:
    """`Device.streamed` of a card."""
    uploads = _Uploads(device)
    try:
        yield from map(uploads.arrived, one_ahead(map(uploads.sent, reads)))
    finally:
        uploads.end()


class _Travelling:
    """A pinned buffer of the host, and the arrays of a card that are being filled from it."""

    def __init__(self) -> None:
        self.memory: Any = None
        self.size = 0
        self.arrays: list[Any] = []
        self.done: Any = None
        """Event after the last copy."""


class _Uploads:
    """Copies of host arrays to a card through two pinned buffers in turn, on a stream of their own.

    Arrays are taken from the memory of the stream that is current for the caller, so that it is this stream that memory goes back to.
    What it was used for before may not have run yet: the copies wait for that, and the caller's stream waits for the copies.
    """

    def __init__(self, device: Device) -> None:
        import cupy

        self._device, self._cuda, self._empty = device, cupy.cuda, cupy.empty
        with current(device):
            self._stream = cupy.cuda.Stream(non_blocking=True)
        self._buffers = (_Travelling(), _Travelling())
        self._turn = cycle(self._buffers)

    def sent(self, read: Sequence[Any]) -> _Travelling:
        """Start to copy the arrays of `read`; those that are on the card stay what they are."""
        buffer = next(self._turn)
        if buffer.done is not None:
            buffer.done.synchronize()  # it may still be read from
        with current(self._device):
            values = [one if self._is_there(one) else as_stored(one) for one in read]
            places = self._places(buffer, [one for one in values if isinstance(one, np.ndarray)])
            buffer.arrays = [
                self._empty(one.shape, one.dtype) if isinstance(one, np.ndarray) else one for one in values
            ]
            before = self._cuda.Event(disable_timing=True)
            before.record(self._cuda.get_current_stream())
            self._stream.wait_event(before)
            for one, array in zip(values, buffer.arrays, strict=True):
                if isinstance(one, np.ndarray):
                    place = next(places)
                    np.copyto(place, one)
                    array.set(place, stream=self._stream)
            buffer.done = self._cuda.Event(disable_timing=True)
            buffer.done.record(self._stream)
        return buffer

    def arrived(self, buffer: _Travelling) -> tuple[Array, ...]:
        """Return the arrays of `buffer` as float64, for the stream that is current for the caller."""
        with current(self._device):
            self._cuda.get_current_stream().wait_event(buffer.done)
            arrays, buffer.arrays = buffer.arrays, []
            return tuple(array.astype(np.float64, copy=False) for array in arrays)

    def end(self) -> None:
        """Wait for copies that nobody waited for, and let go of the buffers."""
        self._stream.synchronize()
        for buffer in self._buffers:
            buffer.arrays, buffer.memory, buffer.size = [], None, 0

    def _is_there(self, values: Any) -> bool:
        """Whether `values` are on the card already."""
        return bool(array_api_compat.is_cupy_array(values) and values.device == self._device.handle)

    def _places(self, buffer: _Travelling, values: list[HostArray]) -> Iterator[HostArray]:
        """Arrays in pinned memory of the shapes and dtypes of `values`, in a `buffer` that is made larger if need be."""
        starts = np.cumsum([0, *(-(-one.nbytes // ALIGNED) * ALIGNED for one in values)]).tolist()
        if starts[-1] > buffer.size:
            buffer.memory, buffer.size = self._cuda.alloc_pinned_memory(starts[-1]), starts[-1]
        return iter(
            [
                np.frombuffer(buffer.memory, one.dtype, one.size, start).reshape(one.shape)
                for one, start in zip(values, starts, strict=False)
            ]
        )


ALIGNED = 256
"""Bytes of which the places of arrays in a buffer are multiples.

Definition: as CUDA aligns memory.
"""
