"""Devices, namespaces and the few operations the array API standard lacks; all that is known of CuPy.

Everything else in the package sees arrays through `Device.xp`, an array-API namespace.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import array_api_compat
import array_api_compat.numpy as np_compat
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from .errors import DeviceError, InputError

T = TypeVar("T")

Array = Any
"""An array of the namespace in use, see `Device.xp`; the array API standard has no type for it that checkers know."""
HostArray = np.ndarray[Any, Any]
"""A NumPy array, on the host."""


@dataclass(frozen=True)
class Device:
    """Where arrays live and which namespace works on them."""

    xp: ModuleType
    """Array-API namespace."""
    handle: Any = None
    """What `xp` takes as `device=`."""
    name: str = "cpu"
    """"cpu" or "gpu:N", as shown to people and written to files."""

    def activate(self) -> AbstractContextManager[Any]:
        """Make this the current device of its library, where the library has such a notion."""
        context: AbstractContextManager[Any] = self.handle if self.name != "cpu" else nullcontext()
        return context

    def float64(self, values: Any) -> Array:
        """Copy `values` (array, block of a dataset, sequence) to this device as float64."""
        return self._move(values, np.float64, self.xp.float64)

    def float32(self, values: Any) -> Array:
        """Copy `values` to this device as float32."""
        return self._move(values, np.float32, self.xp.float32)

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
"""Numbers of one temporary array that a loop over blocks may make (64 MB in float64).

Heuristic: large enough to keep a GPU busy, small beside the memory of any machine; it changes no answer.
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


def blocks(device: Device, count: int, entries: int) -> list[slice]:
    """Slices of `count` items with `entries` numbers each that fill temporary arrays one at a time."""
    step = block_length(entries, CACHED_NUMBERS if device.name == "cpu" else BLOCK_NUMBERS)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


SMALL_MATRIX = 50_000
"""Entries up to which a second thread gains a matrix product nothing.

Measured: m = 200, b = 20 on a busy two-core machine took 30 times as long with two threads as with one.
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
    before = _WORKERS.set(_workers())
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        _WORKERS.reset(before)


_WORKERS: ContextVar[int | None] = ContextVar("workers", default=None)
"""How many threads BLAS was allowed before `suitable_threads` took all but one."""


def _workers() -> int:
    """How many threads this process may compute with: as many as BLAS."""
    allowed = _WORKERS.get()
    if allowed is not None:
        return allowed
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


def mapped(device: Device, function: Callable[[slice], T], parts: Sequence[slice]) -> list[T]:
    """[function(part) for part in parts], on all cores; a part for which memory does not do is halved, again and again.

    On a CPU each thread works on a part of its own, with a BLAS of one thread: the many small products and decompositions of a
    stack gain little from several, and where another process holds a core they wait for each other.

    Raises
    ------
    MemoryError
        If memory does not do for a single item.
    """
    if device.name != "cpu":
        # Threads would share one stream, and wait for each other's results.
        return [result for part in parts for result in _halved(device, function, part)]
    workers = min(len(parts), _workers()) if len(parts) > 1 else 1
    if workers < 2:
        return [result for part in parts for result in _halved(device, function, part)]
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda part: _halved(device, function, part), parts))
    return [result for results in found for result in results]


def _halved(device: Device, function: Callable[[slice], T], part: slice) -> list[T]:
    """[function(part)], or of the halves of `part` if memory does not do for all of it."""
    try:
        return [function(part)]
    except MemoryError:  # CuPy's is one too
        if part.stop - part.start < 2:
            raise
    give_back_memory(device)
    middle = (part.start + part.stop) // 2
    halves = slice(part.start, middle), slice(middle, part.stop)
    return [result for half in halves for result in _halved(device, function, half)]


def give_back_memory(device: Device) -> None:
    """Hand back what CuPy keeps of the memory of `device` for arrays to come; a no-op on a CPU."""
    if array_api_compat.is_cupy_namespace(device.xp):
        with device.activate():
            import cupy

            cupy.get_default_memory_pool().free_all_blocks()


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


def _gpu(number: int) -> Device:
    try:
        import array_api_compat.cupy as cupy_compat
        import cupy
    except ImportError as error:
        msg = "a GPU was asked for, but CuPy is not installed: pip install 'spear-np[cuda13]' (or cuda12)"
        raise DeviceError(msg) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        msg = f"a GPU was asked for, but CUDA does not answer: {error}"
        raise DeviceError(msg) from error
    if number >= count:
        msg = f"gpu:{number} was asked for, but CUDA shows {count} device(s)"
        raise DeviceError(msg)
    return Device(cupy_compat, cupy.cuda.Device(number), f"gpu:{number}")


def memory_of(device: Device) -> int | None:
    """Bytes of memory that `device` has in all, or that this process may take of it; None where the system does not say."""
    if array_api_compat.is_cupy_namespace(device.xp):
        with device.activate():
            import cupy

            return int(cupy.cuda.runtime.memGetInfo()[1])
    sizes = _memory_of_groups()
    with suppress(AttributeError, ValueError, OSError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(sizes, default=None)


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


def to_host(array: Any) -> HostArray:
    """Copy an array of any library to NumPy: the one deliberate way from a device to the host."""
    if array_api_compat.is_cupy_array(array):
        host: HostArray = array.get()
        return host
    if array_api_compat.is_array_api_obj(array) and not array_api_compat.is_numpy_array(array):
        return np.from_dlpack(array, device="cpu", copy=True)
    return np.asarray(array)


def adopted(name: str, values: Any) -> tuple[Any, str | None]:
    """Return `values` as the solver computes with them, and what they were rounded to if their dtype hides that.

    Tensors of PyTorch and arrays of JAX become NumPy arrays on the host, without a copy where they lie there: both
    compute in float32 unless told otherwise, and a tensor may carry a graph. What was bfloat16, for which NumPy has no
    type, is float32 then. Masked arrays and `numpy.matrix`, which compute in ways of their own, become plain ones.
    Everything else is handed back as it is.

    Raises
    ------
    InputError
        If a tensor is sparse or quantised, an array has masked entries, or a JAX array is being traced.
    """
    if array_api_compat.is_torch_array(values):
        if str(values.layout) != "torch.strided" or values.is_quantized:
            msg = f"`{name}` is a sparse or quantised tensor: pass a dense one, e.g. .to_dense() or .dequantize()"
            raise InputError(msg)
        dtype = str(values.dtype).removeprefix("torch.")
        if dtype not in ("float16", "bfloat16", "float32", "float64"):
            return values, None  # refused by its dtype
        host = values.detach().cpu()
        return (host.float().numpy(), "bfloat16") if dtype == "bfloat16" else (host.numpy(), None)
    if array_api_compat.is_jax_array(values):
        try:
            return np.asarray(values), None
        except Exception as error:  # whatever JAX raises for what has no numbers yet
            msg = f"`{name}` is a traced JAX array: call the inversion outside jit, grad and vmap"
            raise InputError(msg) from error
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            msg = f"`{name}` has masked entries: every number must be there"
            raise InputError(msg)
        return values.data, None
    if isinstance(values, np.matrix):
        return np.asarray(values), None
    return values, None


def erf(xp: ModuleType, values: Array) -> Array:
    """Error function of `values`, in their dtype; through the host where the library has none."""
    if array_api_compat.is_cupy_namespace(xp):
        from cupyx.scipy.special import erf as cupy_erf

        return cupy_erf(values)
    from scipy.special import erf as scipy_erf  # slow to import, needed for one activation

    if array_api_compat.is_numpy_namespace(xp):
        return scipy_erf(values)
    return xp.asarray(scipy_erf(to_host(values)), device=array_api_compat.device(values))


def triangular_factor(xp: ModuleType, matrix: Array) -> Array:
    """R of the QR decomposition of (rows, columns) `matrix`, without forming Q where the library can."""
    if array_api_compat.is_numpy_namespace(xp):
        return np.linalg.qr(matrix, mode="r")
    if array_api_compat.is_cupy_namespace(xp):
        import cupy

        return cupy.linalg.qr(matrix, mode="r")
    return xp.linalg.qr(matrix).R


def solve_or_nan(xp: ModuleType, matrices: Array, right: Array) -> Array:
    """Solve a stack of square systems; where the library refuses a singular one, its answer is NaN.

    `matrices` (..., r, r), `right` (..., r, p); returns (..., r, p). LAPACK's callers raise for the whole stack
    when one matrix is exactly singular, CUDA's return non-finite numbers for that one: this makes them alike.
    """
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


def reported_failures(xp: ModuleType) -> AbstractContextManager[Any]:
    """Make a decomposition that fails raise `numpy.linalg.LinAlgError`: CuPy hands back what it has, unless it is asked."""
    if array_api_compat.is_cupy_namespace(xp):
        from cupyx import errstate

        raising: AbstractContextManager[Any] = errstate(linalg="raise")
        return raising
    return nullcontext()


def inverse_or_pseudoinverse(xp: ModuleType, matrix: Array) -> Array:
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


def inverse_or_zero(xp: ModuleType, gram: Array) -> Array:
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


def orthogonal_complement(xp: ModuleType, vectors: Array) -> Array:
    """(b, b-f): orthonormal basis, as columns, of what is orthogonal to the independent columns `vectors` (b, f)."""
    return xp.linalg.qr(vectors, mode="complete").Q[:, vectors.shape[1] :]


def between(xp: ModuleType, values: Array, low: float, high: float) -> Array:
    """`values`, those below `low` or above `high` replaced by these: `clip` without its checks, which wait for a GPU."""
    return xp.minimum(xp.maximum(values, low), high)


def smallest(xp: ModuleType, values: Array, count: int) -> Array:
    """Indices (k, count) of the `count` smallest entries in each row of `values` (k, m), in no order."""
    if array_api_compat.is_numpy_namespace(xp):
        return np.argpartition(values, count - 1, axis=-1)[..., :count]
    if array_api_compat.is_cupy_namespace(xp):
        import cupy

        return cupy.argpartition(values, count - 1, axis=-1)[..., :count]
    return xp.argsort(values, axis=-1)[..., :count]


def gather(xp: ModuleType, matrix: Array, indices: Array) -> Array:
    """Rows of `matrix` (m, b) picked by `indices` (k, r): (k, r, b)."""
    k, r = indices.shape
    return xp.reshape(xp.take(matrix, xp.reshape(indices, (-1,)), axis=0), (k, r, matrix.shape[1]))


def scatter_columns(values: Array, indices: Array, size: int) -> Array:
    """(k, size) array with the columns of `values` (k, r) at the ascending `indices` (r,), zero elsewhere."""
    xp = array_api_compat.array_namespace(values)
    device = array_api_compat.device(values)
    every = xp.arange(size, dtype=indices.dtype, device=device)
    place = xp.clip(xp.searchsorted(indices, every), 0, indices.shape[0] - 1)
    taken = xp.take(values, place, axis=1)
    present = xp.take(indices, place) == every
    return xp.where(present[None, :], taken, xp.zeros_like(taken))


def replace_rows(values: Array, rows: Array, new: Array) -> Array:
    """`values` (k, d) with the rows of `new` (r, d) at the ascending places `rows` (r,)."""
    if rows.shape[0] == values.shape[0]:
        return new
    xp = array_api_compat.array_namespace(values)
    every = xp.arange(values.shape[0], dtype=rows.dtype, device=array_api_compat.device(values))
    place = xp.clip(xp.searchsorted(rows, every), 0, rows.shape[0] - 1)
    present = xp.take(rows, place) == every
    return xp.where(present[:, None], xp.take(new, place, axis=0), values)
