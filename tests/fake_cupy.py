"""A CuPy that imports, and whose card goes wrong where a test says so.

Its streams are as lazy as CUDA allows: nothing runs before somebody waits for it, each stream in its own order. What a stream
must wait for and does not is not there yet, or is overwritten before it was used.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest

from spear_np.backend import card


class CUDARuntimeError(RuntimeError):
    """As CuPy raises it: the name of the error first."""


class OutOfMemoryError(MemoryError):
    """As CuPy raises it."""


class _Thread(threading.local):
    """What is current in a thread."""

    def __init__(self) -> None:
        self.cards: list[int] = [0]
        self.math_modes: dict[int, int] = {}
        self.streams: dict[int, list[Stream]] = {}


_THREAD = _Thread()


class Card:
    """`cupy.cuda.Device`."""

    attributes = {"MultiProcessorCount": 132}  # noqa: RUF012  (as CuPy has it)

    def __init__(self, number: int) -> None:
        self.id = number

    def __enter__(self) -> Self:
        _THREAD.cards.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        _THREAD.cards.pop()

    @property
    def cublas_handle(self) -> int:
        """That of this card and this thread."""
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Card) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


def current_card() -> int:
    """Number of the card that is current in this thread."""
    return _THREAD.cards[-1]


CUBLAS = SimpleNamespace(
    CUBLAS_DEFAULT_MATH=0,
    CUBLAS_TENSOR_OP_MATH=1,
    getMathMode=lambda handle: _THREAD.math_modes.get(handle, 0),
    setMathMode=lambda handle, mode: _THREAD.math_modes.__setitem__(handle, mode),
)
"""`cupy.cuda.cublas`: every thread has handles of its own."""


class Stream:
    """`cupy.cuda.Stream`: work on one card, in order, that runs when somebody waits for it."""

    waited_for = 0
    """How often the host waited for all of a stream."""

    def __init__(self, *, non_blocking: bool = False) -> None:
        self.card = current_card()
        self.non_blocking = non_blocking
        self.tasks: list[Callable[[], None] | Event] = []
        self.free: list[np.ndarray[Any, Any]] = []
        """Memory that arrays which were made while this stream was current left behind."""

    def __enter__(self) -> Self:
        _THREAD.streams.setdefault(self.card, []).append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _THREAD.streams[self.card].pop()

    def do(self, task: Callable[[], None]) -> None:
        """Launch something."""
        assert self.card == current_card(), "launched on a stream of another card"
        self.tasks.append(task)

    def run(self, until: Event | None = None) -> None:
        """Do what was launched, in order."""
        while self.tasks and not (until is not None and until.over):
            task = self.tasks.pop(0)
            if isinstance(task, Event):
                task.over = True
            else:
                task()

    def wait_event(self, event: Event) -> None:
        """What is launched from now on comes after `event`."""
        self.tasks.append(event.synchronize)

    def synchronize(self) -> None:
        """Wait for all of it."""
        Stream.waited_for += 1
        self.run()


class Event:
    """`cupy.cuda.Event`."""

    def __init__(self, *, disable_timing: bool = False) -> None:
        assert disable_timing, "timing makes events slow"
        self.stream: Stream | None = None
        self.over = False

    def record(self, stream: Stream) -> None:
        """Happen after what was launched on `stream`."""
        self.stream = stream
        stream.tasks.append(self)

    def synchronize(self) -> None:
        """Wait for it."""
        if self.stream is not None:
            self.stream.run(until=self)


_DEFAULT: dict[int, Stream] = {}


def current_stream() -> Stream:
    """`cupy.cuda.get_current_stream`: of this thread on its card."""
    held = _THREAD.streams.get(current_card())
    return held[-1] if held else _DEFAULT.setdefault(current_card(), Stream())


class Numbers:
    """`cupy.ndarray`: its memory is that of the stream it was made on, and goes back there without waiting for anything."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.device, self._stream = Card(current_card()), current_stream()
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        left = next((one for one in self._stream.free if one.nbytes == size), None)
        if left is None:
            left = np.full(size, 0xFF, dtype=np.uint8)  # NaN
        else:
            self._stream.free = [one for one in self._stream.free if one is not left]
        self._memory = left
        self.values = left.view(dtype).reshape(shape)

    def __del__(self) -> None:
        self._stream.free.append(self._memory)

    def set(self, host: np.ndarray[Any, Any], stream: Stream) -> None:
        """Copy from the host: what is there when it is run."""
        assert host.dtype == self.values.dtype
        into = self.values

        def copy() -> None:
            into[...] = host

        stream.do(copy)

    def astype(self, dtype: Any, *, copy: bool) -> Numbers:
        """Convert on the current stream."""
        if not copy and self.values.dtype == dtype:
            return self
        return self.plus(0, dtype)

    def plus(self, number: float, dtype: Any = None) -> Numbers:
        """A kernel on the current stream."""
        assert self.device.id == current_card(), "an array of another card"
        made = Numbers(self.values.shape, dtype or self.values.dtype)
        source, target = self.values, made.values

        def add() -> None:
            target[...] = source + number

        current_stream().do(add)
        return made

    def get(self) -> np.ndarray[Any, Any]:
        """Copy to the host, after what the current stream was told to do."""
        current_stream().run()
        host: np.ndarray[Any, Any] = self.values.copy()
        return host


class Pool:
    """`cupy.get_default_memory_pool()`, of each card."""

    def __init__(self, limit: int = 0) -> None:
        self.unused = {0: 0, 1: 0}
        self.used = {0: 0, 1: 0}
        self.limit = limit
        self.freed: list[int] = []
        """Cards that were current when unused memory was handed back."""

    def free_bytes(self) -> int:
        """What it keeps for arrays to come."""
        return self.unused[current_card()]

    def used_bytes(self) -> int:
        """What arrays have."""
        return self.used[current_card()]

    def get_limit(self) -> int:
        """What it may take; zero for all."""
        return self.limit

    def free_all_blocks(self) -> None:
        """Hand back what no array has."""
        self.freed.append(current_card())
        self.unused[current_card()] = 0


def install(
    monkeypatch: pytest.MonkeyPatch, *, cards: int = 1, free: int = 2**36, **failing: Exception
) -> ModuleType:
    """Put it where `import cupy` finds it; each keyword names a call and what it raises: count, compiler, memory, product, wait.

    `free` is how many bytes of a card nobody has.
    """

    def answer(name: str, value: Any) -> Any:
        def call(*_: object, **__: object) -> Any:
            if name in failing:
                raise failing[name]
            return value

        return call

    cupy = ModuleType("cupy")
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=answer("count", cards),
        deviceSynchronize=answer("wait", None),
        memGetInfo=lambda: (free, 2**37),
    )
    pinned, pool = Pool(), Pool()
    contents: dict[str, Any] = {
        "cuda": SimpleNamespace(
            runtime=runtime,
            cublas=CUBLAS,
            nvrtc=SimpleNamespace(getVersion=answer("compiler", (13, 0))),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Device=Card,
            Stream=Stream,
            Event=Event,
            get_current_stream=current_stream,
            alloc_pinned_memory=bytearray,
        ),
        "ndarray": Numbers,
        "empty": Numbers,
        "float32": "float32",
        "zeros": answer("memory", None),
        "matmul": answer("product", None),
        "get_default_memory_pool": lambda: pool,
        "get_default_pinned_memory_pool": lambda: pinned,
    }
    for name, value in contents.items():
        setattr(cupy, name, value)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", contents["cuda"])
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", ModuleType("array_api_compat.cupy"))
    _DEFAULT.clear()
    _THREAD.math_modes.clear()
    return cupy


@contextmanager
def forgotten() -> Iterator[None]:
    """Cards that were checked are checked anew."""
    card.check_card.cache_clear()
    yield
    card.check_card.cache_clear()
