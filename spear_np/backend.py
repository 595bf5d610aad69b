"""Devices, namespaces and the few operations the array API standard lacks; all that is known of CuPy.

Everything else in the package sees arrays through `Device.xp`, an array-API namespace.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import array_api_compat
import array_api_compat.numpy as np_compat
import numpy as np
from threadpoolctl import ThreadpoolController

from .arrays import Array, HostArray, Namespace
from .errors import DeviceError, InputError

T = TypeVar("T")

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
        return _at_work(self) if array_api_compat.is_cupy_namespace(self.xp) else nullcontext()

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
            return _uploaded(self, reads)
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

BLOCK_NUMBERS = 8_000_000
"""Numbers of one temporary array that a loop over blocks may make where nothing tells how much memory is free (64 MB in float64).

Heuristic: large enough to keep a GPU busy, small beside the memory of any machine; it changes no answer.
"""
CARD_ARRAYS = 32
"""Temporary arrays of the size of a block that the free memory of a card has room for.

Heuristic: a block makes some ten at once, and what decomposes them takes as much again; if it does not do, blocks are halved.
"""
TINIEST = 1e-300
"""Stands for zero where something is divided by it, or takes its place.

Derived: its inverse, and its product with any number of this package, stay in the range of float64.
"""
OWN_ROUNDING = float(np.finfo(np.float64).eps)
"""Relative error of a number by our own arithmetic: smaller steps are no progress, and smaller parts of a sum are lost.

Derived: one rounding in float64.
"""


CACHED_NUMBERS = 1_000_000
"""The same for blocks that a processor passes over many times (8 MB in float64).

Measured: at m = 400, b = 100 a third of the time of `uniqueness` is saved where blocks stay in the cache; 200,000 to a million do
as well as each other.
"""


def block_length(entries: int, numbers: int = BLOCK_NUMBERS) -> int:
    """How many items of `entries` numbers each fill a temporary array of so many `numbers`, at least one."""
    return max(1, numbers // max(1, entries))


def block_numbers(device: Device) -> int:
    """Numbers of one temporary array that a loop over blocks makes: what a processor caches, or what a card has free for it."""
    if device.name == "cpu":
        return CACHED_NUMBERS
    free = free_memory(device)
    room = BLOCK_NUMBERS if free is None else free // (np.dtype(np.float64).itemsize * CARD_ARRAYS)
    # A power of two: what another process takes of the card seldom changes how the work is divided.
    return max(1, 1 << max(0, room.bit_length() - 1 - _HALVINGS.get()))


def blocks(device: Device, count: int, entries: int) -> list[slice]:
    """Slices of `count` items with `entries` numbers each that fill temporary arrays one at a time."""
    step = block_length(entries, block_numbers(device))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


SMALL_MATRIX = 250_000
"""Entries up to which a second thread gains a matrix product nothing.

Measured: on a busy machine of two cores two threads took 30 times as long as one at m = 200, b = 20, and at m = 1000, b = 200
ten times as long (556 s for 34). Blocks of work for several cores are `mapped`: they do not wait for each other.
"""


SHARED_FROM = 30_000
"""Entries of a matrix from which cores share steps that pass over it: many small ones, each a few calls of the library.

Measured: two cores take 1.6 steps of the descent at m = 400, b = 100 while one takes one, and 1.8 at m = 1000, b = 200; at m = 200,
b = 65 they gain nothing. Inputs of a chain are examined by two cores 1.2 times faster at m = 400, b = 160, 1.1 at m = 300, b = 120
and a little slower at m = 200, b = 80: what a step does besides its products waits for the interpreter.
"""


@contextmanager
def suitable_threads(device: Device, entries: int) -> Iterator[None]:
    """Keep BLAS to one thread while matrices have at most `SMALL_MATRIX` entries; a no-op on a GPU.

    Thousands of small products a second spend their time waiting for each other's threads, and when another process
    holds a core they stall.
    """
    if device.name != "cpu" or entries > SMALL_MATRIX:
        yield
        return
    pools = _pools(len(sys.modules))
    before = _WORKERS.set(_WORKERS.get() or _threads_of(pools))
    try:
        with pools.limit(limits=1, user_api="blas"):
            yield
    finally:
        _WORKERS.reset(before)


_WORKERS: ContextVar[int | None] = ContextVar("workers", default=None)
"""How many threads BLAS was allowed before `suitable_threads` took all but one."""


@lru_cache(maxsize=1)
def _pools(_modules: int) -> ThreadpoolController:
    """The libraries with threads; they are looked for anew, which takes milliseconds, when modules have come that may bring others."""
    return ThreadpoolController()


def _threads_of(pools: ThreadpoolController) -> int:
    """How many threads BLAS may use: as many as this process may compute with."""
    return max((pool["num_threads"] for pool in pools.select(user_api="blas").info()), default=1)


_HALVINGS: ContextVar[int] = ContextVar("halvings", default=0)
"""How often `narrowing` has halved the blocks of a card."""


def mapped(device: Device, function: Callable[[slice], T], parts: Sequence[slice]) -> list[T]:
    """[function(part) for part in parts], on all cores; a part for which memory does not do is halved, again and again.

    On a CPU each thread works on a part of its own, with a BLAS of one thread: the many small products and decompositions of a
    stack gain little from several, and where another process holds a core they wait for each other.

    Raises
    ------
    MemoryError
        If memory does not do for a single item.
    """
    serial = device.name != "cpu" or len(parts) < 2  # threads would share the stream of a GPU
    pools = None if serial else _pools(len(sys.modules))
    workers = 1 if pools is None else min(len(parts), _WORKERS.get() or _threads_of(pools))
    if pools is None or workers == 1:
        return one_by_one(device, function, parts)
    with pools.limit(limits=1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda part: _halved(device, function, part), parts))
    return [result for results in found for result in results]


def one_by_one(device: Device, function: Callable[[slice], T], parts: Sequence[slice]) -> list[T]:
    """As `mapped`, in this thread: where a part is one large operation, which all cores share."""
    return [result for part in parts for result in _halved(device, function, part)]


def narrowing(device: Device, entries: int, compute: Callable[[], T]) -> T:
    """compute(), which loops over blocks; again with blocks of half the size while the memory of a card does not do.

    Raises
    ------
    MemoryError
        If it does not do for blocks of `entries` numbers, those of a single item.
    """
    before = _HALVINGS.get()
    try:
        while True:
            try:
                return compute()
            except MemoryError:
                if device.name == "cpu" or block_numbers(device) <= entries:
                    raise
            give_back_memory(device)
            _HALVINGS.set(_HALVINGS.get() + 1)
    finally:
        _HALVINGS.set(before)


def _halved(device: Device, function: Callable[[slice], T], part: slice) -> list[T]:
    """[function(part)], or of the halves of `part` if memory does not do for all of it."""
    try:
        with _current(device):
            return [function(part)]
    except MemoryError:  # CuPy's is one too
        if part.stop - part.start < 2:
            raise
    give_back_memory(device)
    middle = (part.start + part.stop) // 2
    halves = slice(part.start, middle), slice(middle, part.stop)
    return [result for half in halves for result in _halved(device, function, half)]


def give_back_memory(device: Device) -> None:
    """Hand back what CuPy keeps of the memory of `device`, and of pinned memory, for arrays to come; a no-op on a CPU."""
    if array_api_compat.is_cupy_namespace(device.xp):
        import cupy

        with _current(device):
            cupy.get_default_memory_pool().free_all_blocks()
            cupy.get_default_pinned_memory_pool().free_all_blocks()


def _current(device: Device) -> AbstractContextManager[Any]:
    """Make a card the current one of this thread, and no more."""
    return device.handle if array_api_compat.is_cupy_namespace(device.xp) else nullcontext()


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


ADVICE = {
    "cudaErrorNoDevice": "CUDA shows no card: `nvidia-smi` must list one, and CUDA_VISIBLE_DEVICES must not hide it",
    "cudaErrorInsufficientDriver": "the NVIDIA driver is missing, or older than the CUDA that CuPy was built for: install a newer one, "
    "or CuPy for an older CUDA, pip install 'spear-np[cuda12]'",
    "cudaErrorSystemDriverMismatch": "the NVIDIA driver was updated and the old one still runs: restart the machine",
    "cudaErrorDevicesUnavailable": "another process holds the card: end it, `nvidia-smi` names it, or choose another card with gpu:N",
    "cudaErrorMemoryAllocation": "the card has no memory left: end what holds it, `nvidia-smi` names it, or choose another card with gpu:N, "
    "or the CPU",
    "cudaErrorNoKernelImageForDevice": "this CuPy does not know the card: pip install --upgrade 'spear-np[cuda13]'",
    "cudaErrorUnsupportedPtxVersion": "the NVIDIA driver is older than CuPy's compiler: install a newer one, or CuPy for an older CUDA, "
    "pip install 'spear-np[cuda12]'",
}
"""What to do about the errors of CUDA that a first use meets, by their names."""


def _gpu(number: int) -> Device:
    try:
        import cupy
    except ImportError as error:
        if getattr(error, "name", None) == "cupy":
            msg = "a GPU was asked for, but CuPy is not installed: pip install 'spear-np[cuda13]' (or cuda12)"
        else:
            msg = (
                "a GPU was asked for, but CuPy does not load: install the one for your CUDA, pip install "
                f"'spear-np[cuda13]' (or cuda12), and no other beside it ({_one_line(error)})"
            )
        raise DeviceError(msg) from error
    _check_card(number)
    import array_api_compat.cupy as cupy_compat

    return Device(cupy_compat, cupy.cuda.Device(number), f"gpu:{number}", _launch)


@cache
def _check_card(number: int) -> None:
    """Use everything of a card once: CUDA, the compiler, memory, cuBLAS; remembered if all answer."""
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        msg = f"a GPU was asked for, but {_explained(error)}"
        raise DeviceError(msg) from error
    if number >= count:
        cards = f"gpu:0 to gpu:{count - 1}" if count > 1 else "gpu:0" if count else "none"
        msg = f"gpu:{number} was asked for, but CUDA shows {count} device(s): there is {cards}"
        raise DeviceError(msg)
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # whatever this version of CuPy raises where a library is missing
        msg = (
            "a GPU was asked for, but CuPy finds no compiler of its CUDA version: pip install 'cupy-cuda13x[ctk]' (or cuda12x, as CUDA "
            f"is installed) ({_one_line(error)})"
        )
        raise DeviceError(msg) from error
    with _on_card(cupy.cuda.Device(number), f"gpu:{number}"):
        square = cupy.zeros((2, 2), dtype=cupy.float32)
        cupy.matmul(square, square)
        cupy.cuda.runtime.deviceSynchronize()


@contextmanager
def _at_work(device: Device) -> Iterator[None]:
    """`_on_card`, and its pools hand back what they took; blocks inside of another only make it current.

    What is inside may try again with less memory, and then no error has happened.
    """
    if device.name in _WORKING.get():
        with _current(device):
            yield
        return
    before = _WORKING.set(_WORKING.get() | {device.name})
    try:
        with _on_card(device.handle, device.name):
            yield
    finally:
        _WORKING.reset(before)
        with suppress(Exception):  # a card that does not answer has said so already
            give_back_memory(device)


_WORKING: ContextVar[frozenset[str]] = ContextVar("working", default=frozenset())
"""Names of the cards that this thread works on."""


@contextmanager
def _on_card(handle: Any, name: str) -> Iterator[None]:
    """Make a card current; what goes wrong on it is one line."""
    import cupy

    with handle:
        try:
            yield
        except cupy.cuda.memory.OutOfMemoryError as error:
            msg = f"{name}: {ADVICE['cudaErrorMemoryAllocation']} ({_one_line(error)})"
            raise DeviceError(msg) from error
        except cupy.cuda.runtime.CUDARuntimeError as error:
            msg = f"{name}: {_explained(error)}"
            raise DeviceError(msg) from error


def _explained(error: Exception) -> str:
    """What an error of CUDA means and what to do about it."""
    advice = ADVICE.get(str(error).partition(":")[0], "CUDA does not answer: `nvidia-smi` must list the card")
    return f"{advice} ({_one_line(error)})"


def _one_line(error: Exception) -> str:
    """The last line of a message that says something, as CuPy frames and explains its own."""
    lines = [line.strip("= ") for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)


def _launch(
    source: str, name: str, blocks: int, threads: int, arguments: tuple[Any, ...], shared: int
) -> None:
    """`Device.launch` of CuPy, on the stream that is current for the caller."""
    _module(source).get_function(name)((blocks,), (threads,), arguments, shared_mem=shared)


@cache
def _module(source: str) -> Any:
    """The kernels of `source`, compiled when the first of them is launched and then kept on disk by CuPy."""
    import cupy

    return cupy.RawModule(code=source, options=("--std=c++14",))


def multiprocessors(device: Device) -> int | None:
    """How many multiprocessors a card has; None for what is no card."""
    if not array_api_compat.is_cupy_namespace(device.xp):
        return None
    return int(device.handle.attributes["MultiProcessorCount"])


def with_few_kernels() -> None:
    """Let CuPy make do with its plain reductions in this process, unless the environment says otherwise.

    Those of CUB are faster by little, and many more to compile on the first run. To be called before anything imports
    CuPy, and only where the process is our own.
    """
    os.environ.setdefault("CUPY_ACCELERATORS", "")


def kernel_cache() -> Path:
    """Where CuPy keeps what it has compiled."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path("~/.cupy/kernel_cache").expanduser())


def memory_of(device: Device) -> int | None:
    """Bytes of memory that `device` has in all, or that this process may take of it; None where the system does not say."""
    if array_api_compat.is_cupy_namespace(device.xp):
        import cupy

        with _current(device):
            return int(cupy.cuda.runtime.memGetInfo()[1])
    sizes = _memory_of_groups()
    with suppress(AttributeError, ValueError, OSError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(sizes, default=None)


def free_memory(device: Device) -> int | None:
    """Bytes that a card has free, with what CuPy's pool holds unused, within the limit of that pool; None for what is no card."""
    if not array_api_compat.is_cupy_namespace(device.xp):
        return None
    import cupy

    with _current(device):
        pool = cupy.get_default_memory_pool()
        free = int(cupy.cuda.runtime.memGetInfo()[0]) + int(pool.free_bytes())
        limit = int(pool.get_limit())
        return min(free, max(0, limit - int(pool.used_bytes()))) if limit else free


def _memory_of_groups(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Bytes that each of the control groups of this process allows it, where one does (Linux, version 2)."""
    try:
        lines = own.read_text().splitlines()
    except (OSError, ValueError):
        return []
    sizes = []
    for name in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        for folder in (name, *map(str, Path(name).parents)):
            with suppress(OSError, ValueError):  # "max" is no limit
                sizes.append(int((groups / folder / "memory.max").read_text()))
    return sizes


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


def _uploaded(device: Device, reads: Iterable[Sequence[Any]]) -> Iterator[tuple[Array, ...]]:
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
        with _current(device):
            self._stream = cupy.cuda.Stream(non_blocking=True)
        self._buffers = (_Travelling(), _Travelling())
        self._turn = cycle(self._buffers)

    def sent(self, read: Sequence[Any]) -> _Travelling:
        """Start to copy the arrays of `read`; those that are on the card stay what they are."""
        buffer = next(self._turn)
        if buffer.done is not None:
            buffer.done.synchronize()  # it may still be read from
        with _current(self._device):
            values = [one if self._is_there(one) else _as_stored(one) for one in read]
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
        with _current(self._device):
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


def _as_stored(values: Any) -> HostArray:
    """`values` on the host in the floating-point type that they come in, so that no more is copied than is known; else float64."""
    host = to_host(values)
    stored = host.dtype in (np.float16, np.float32, np.float64)  # false in the byte order of another machine
    return host if stored else host.astype(np.float64)


def to_host(array: Any) -> HostArray:
    """Copy an array of any library to NumPy: the one deliberate way from a device to the host."""
    if array_api_compat.is_cupy_array(array):
        host: HostArray = array.get()
        return host
    if array_api_compat.is_array_api_obj(array) and not array_api_compat.is_numpy_array(array):
        return np.from_dlpack(array, device="cpu", copy=True)
    return np.asarray(array)


def contiguous(xp: Namespace, array: Array) -> Array:
    """`array` with its last axis next to each other in memory, as kernels read it; a copy only if it is not yet."""
    if array_api_compat.is_cupy_namespace(xp):
        import cupy

        made: Array = cupy.ascontiguousarray(array)
        return made
    if array_api_compat.is_numpy_namespace(xp):
        return np.ascontiguousarray(array)
    return array


def stacked(device: Device, arrays: Sequence[Array]) -> Array:
    """(s, …): `arrays` of `device`, of two axes and one dtype, side by side and filled up with zeros; a view of a single one."""
    if len(arrays) == 1:
        return arrays[0][None, :, :]
    shape = [max(array.shape[axis] for array in arrays) for axis in range(2)]
    stack = device.xp.zeros((len(arrays), *shape), dtype=arrays[0].dtype, device=device.handle)
    for place, array in enumerate(arrays):
        stack[place, : array.shape[0], : array.shape[1]] = array
    return stack


def product(xp: Namespace, left: Array, right: Array, out: Array | None) -> Array:
    """Product of matrices or of stacks, written into `out` if that has its shape and the library can: no memory is asked for in a loop."""
    if out is None or out.shape[-2:] != (left.shape[-2], right.shape[-1]):
        return xp.matmul(left, right)
    if array_api_compat.is_numpy_namespace(xp):
        return xp.matmul(left, right, out=out)
    if array_api_compat.is_cupy_namespace(xp):
        if left.ndim == 3 and left.shape[0] == 1:  # what is no stack is multiplied the faster way
            xp.matmul(left[0, :, :], right[0, :, :], out=out[0, :, :])
            return out
        return xp.matmul(left, right, out=out)
    return xp.matmul(left, right)


def erf(xp: Namespace, values: Array) -> Array:
    """Error function of `values`, in their dtype; through the host where the library has none."""
    if array_api_compat.is_cupy_namespace(xp):
        from cupyx.scipy.special import erf as cupy_erf

        made: Array = cupy_erf(values)
        return made
    from scipy.special import erf as scipy_erf  # slow to import, needed for one activation

    if array_api_compat.is_numpy_namespace(xp):
        host: HostArray = scipy_erf(to_host(values))
        return host
    return xp.asarray(scipy_erf(to_host(values)), device=array_api_compat.device(values))


def triangular_factor(xp: Namespace, matrix: Array) -> Array:
    """R of the QR decomposition of (rows, columns) `matrix`, without forming Q where the library can."""
    if array_api_compat.is_numpy_namespace(xp):
        return np.asarray(np.linalg.qr(matrix, mode="r"))
    if array_api_compat.is_cupy_namespace(xp):
        import cupy

        factor: Array = cupy.linalg.qr(matrix, mode="r")
        return factor
    return xp.linalg.qr(matrix).R


CUPY_BATCHED = 256
"""Columns up to which CuPy solves a stack at once; larger systems go one by one.

Derived: the limit of `cupyx.set_batched_gesv_limit`.
"""


CUPY_BATCHED_SVD = 32
"""Rows and columns up to which CuPy decomposes a stack into singular values at once; larger ones go one by one.

Derived: the limit of cuSOLVER's `gesvdjBatched`.
"""


def decomposes_slowly(xp: Namespace, matrices: Array) -> bool:
    """Whether the library finds eigenvectors of a few Gram matrices in less time than singular vectors of `matrices` (…, r, b).

    On a GPU: above a size it does the latter one matrix after the other, in steps that wait for each other.
    """
    return bool(array_api_compat.is_cupy_namespace(xp)) and max(matrices.shape[-2:]) > CUPY_BATCHED_SVD


def eigenvectors(xp: Namespace, matrices: Array) -> tuple[Array, Array]:
    """Eigenvalues (…, b), ascending, and eigenvectors (…, b, b), as columns, of symmetric `matrices` (…, b, b).

    CuPy takes stacks by the method of Jacobi, which is slow where there is a single matrix in one.
    """
    if array_api_compat.is_cupy_namespace(xp) and matrices.ndim == 3 and matrices.shape[0] == 1:
        values, vectors = xp.linalg.eigh(matrices[0, :, :])
        return values[None, :], vectors[None, :, :]
    values, vectors = xp.linalg.eigh(matrices)
    return values, vectors


def solve_by_inverse(xp: Namespace, matrices: Array, right: Array) -> Array:
    """As `solve_or_nan`, by inverses, which CuPy computes at once whatever their size, and a step of refinement."""
    inverse = xp.linalg.inv(matrices)
    solution = inverse @ right
    return solution + inverse @ (right - matrices @ solution)


def solve_or_nan(xp: Namespace, matrices: Array, right: Array) -> Array:
    """Solve a stack of square systems; where the library refuses a singular one, its answer is NaN.

    `matrices` (..., r, r), `right` (..., r, p); returns (..., r, p). LAPACK's callers raise for the whole stack
    when one matrix is exactly singular, CUDA's return non-finite numbers for that one: this makes them alike.
    """
    if array_api_compat.is_cupy_namespace(xp) and matrices.ndim > 2 and matrices.shape[-1] > CUPY_BATCHED:
        return solve_by_inverse(xp, matrices, right)
    try:
        return xp.linalg.solve(matrices, right)
    except np.linalg.LinAlgError:
        pass
    # Exact singularity is rare (repeated rows): find the culprits by their LU determinant, replace them.
    sign, _ = xp.linalg.slogdet(matrices)
    singular = (sign == 0)[..., None, None]
    size = matrices.shape[-1]
    identity = xp.eye(size, dtype=matrices.dtype, device=array_api_compat.device(matrices))
    solution = xp.linalg.solve(xp.where(singular, identity, matrices), right)
    return xp.where(singular, xp.full_like(solution, float("nan")), solution)


def reported_failures(xp: Namespace) -> AbstractContextManager[Any]:
    """Make a decomposition that fails raise `numpy.linalg.LinAlgError`: CuPy hands back what it has, unless it is asked."""
    if array_api_compat.is_cupy_namespace(xp):
        from cupyx import errstate

        raising: AbstractContextManager[Any] = errstate(linalg="raise")
        return raising
    return nullcontext()


def inverse_or_pseudoinverse(xp: Namespace, matrix: Array) -> Array:
    """Inverse of square matrices; the pseudoinverse where the library finds one singular, or its inverse overflows.

    What holds NaN or infinity has no inverse, and gives NaN.
    """
    try:
        inverse = xp.linalg.inv(matrix)
        if bool(xp.all(xp.isfinite(inverse))):
            return inverse
    except np.linalg.LinAlgError:
        pass
    if not bool(xp.all(xp.isfinite(matrix))):
        return xp.full_like(matrix, float("nan"))
    return xp.linalg.pinv(matrix)


def least_squares(xp: Namespace, columns: Array, right: Array) -> Array:
    """(f, p): the combinations of independent `columns` (b, f), f ≤ b, that are nearest to those of `right` (b, p)."""
    Q, R = xp.linalg.qr(columns)
    return inverse_or_pseudoinverse(xp, R) @ (Q.T @ right)


def inverse_or_zero(xp: Namespace, gram: Array) -> Array:
    """Inverse of a stack (k, u, u) of float64 normal equations; zero for those that leave a direction open.

    An eigenvalue below the rounding of the largest is no smaller than that rounding once it is computed: its inverse would
    pass for something that is known.
    """
    size = int(gram.shape[1])
    identity = xp.eye(size, dtype=gram.dtype, device=array_api_compat.device(gram))
    inverse = solve_or_nan(xp, gram, xp.broadcast_to(identity[None, :, :], gram.shape))
    norms = [xp.max(xp.sum(xp.abs(one), axis=2), axis=1) for one in (gram, inverse)]
    condition = norms[0] * norms[1]
    determined = condition < 1 / (size * OWN_ROUNDING)  # false for NaN
    return xp.where(determined[:, None, None], inverse, xp.zeros_like(inverse))


def orthogonal_complement(xp: Namespace, vectors: Array) -> Array:
    """(b, b-f): orthonormal basis, as columns, of what is orthogonal to the independent columns `vectors` (b, f)."""
    return xp.linalg.qr(vectors, mode="complete").Q[:, vectors.shape[1] :]


def between(xp: Namespace, values: Array, low: float, high: float) -> Array:
    """`values`, those below `low` or above `high` replaced by these: `clip` without its checks, which wait for a GPU."""
    if array_api_compat.is_numpy_namespace(xp):
        return np.clip(values, low, high)
    return xp.minimum(xp.maximum(values, low), high)


def smallest(xp: Namespace, values: Array, count: int) -> Array:
    """Indices (k, count) of the `count` smallest entries in each row of `values` (k, m), in no order."""
    if array_api_compat.is_numpy_namespace(xp):
        return np.argpartition(values, count - 1, axis=-1)[..., :count]
    if array_api_compat.is_cupy_namespace(xp):
        import cupy

        order: Array = cupy.argpartition(values, count - 1, axis=-1)
        return order[..., :count]
    return xp.argsort(values, axis=-1)[..., :count]


def gather(xp: Namespace, matrix: Array, indices: Array) -> Array:
    """Rows of `matrix` (m, b) picked by `indices` (k, r): (k, r, b)."""
    k, r = indices.shape
    return xp.reshape(xp.take(matrix, xp.reshape(indices, (-1,)), axis=0), (k, r, matrix.shape[1]))


def scatter_columns(values: Array, indices: Array, size: int) -> Array:
    """(k, size) array with the columns of `values` (k, r) at the ascending `indices` (r,), zero elsewhere."""
    xp: Namespace = array_api_compat.array_namespace(values)
    device = array_api_compat.device(values)
    every = xp.arange(size, dtype=indices.dtype, device=device)
    place = between(xp, xp.searchsorted(indices, every), 0, indices.shape[0] - 1)
    taken = xp.take(values, place, axis=1)
    present = xp.take(indices, place) == every
    return xp.where(present[None, :], taken, xp.zeros_like(taken))


def replace_rows(values: Array, rows: Array, new: Array) -> Array:
    """`values` (k, d) with the rows of `new` (r, d) at the ascending places `rows` (r,)."""
    if rows.shape[0] == values.shape[0]:
        return new
    xp: Namespace = array_api_compat.array_namespace(values)
    every = xp.arange(values.shape[0], dtype=rows.dtype, device=array_api_compat.device(values))
    place = between(xp, xp.searchsorted(rows, every), 0, rows.shape[0] - 1)
    present = xp.take(rows, place) == every
    return xp.where(present[:, None], xp.take(new, place, axis=0), values)
