"""A card of CuPy: does it answer, what is wrong if not, and how kernels are run on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import array_api_compat

from ..errors import DeviceError

if TYPE_CHECKING:
    from .devices import Device


def current(device: Device) -> AbstractContextManager[Any]:
    """Make a card the current one of this thread, and no more."""
    return device.handle if array_api_compat.is_cupy_namespace(device.xp) else nullcontext()


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


@cache
def check_card(number: int) -> None:
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
            f"is installed) ({one_line(error)})"
        )
        raise DeviceError(msg) from error
    with on_card(cupy.cuda.Device(number), f"gpu:{number}"):
        square = cupy.zeros((2, 2), dtype=cupy.float32)
        cupy.matmul(square, square)
        cupy.cuda.runtime.deviceSynchronize()


@contextmanager
def at_work(device: Device) -> Iterator[None]:
    """`on_card`, and its pools hand back what they took; blocks inside of another only make it current.

    What is inside may try again with less memory, and then no error has happened.
    """
    if device.name in _WORKING.get():
        with current(device):
            yield
        return
    before = _WORKING.set(_WORKING.get() | {device.name})
    try:
        with on_card(device.handle, device.name):
            yield
    finally:
        _WORKING.reset(before)
        with suppress(Exception):  # a card that does not answer has said so already
            give_back_memory(device)


_WORKING: ContextVar[frozenset[str]] = ContextVar("working", default=frozenset())
"""Names of the cards that this thread works on."""


@contextmanager
def on_card(handle: Any, name: str) -> Iterator[None]:
    """Make a card current; what goes wrong on it is one line."""
    import cupy

    with handle:
        try:
            yield
        except cupy.cuda.memory.OutOfMemoryError as error:
            msg = f"{name}: {ADVICE['cudaErrorMemoryAllocation']} ({one_line(error)})"
            raise DeviceError(msg) from error
        except cupy.cuda.runtime.CUDARuntimeError as error:
            msg = f"{name}: {_explained(error)}"
            raise DeviceError(msg) from error


def _explained(error: Exception) -> str:
    """What an error of CUDA means and what to do about it."""
    advice = ADVICE.get(str(error).partition(":")[0], "CUDA does not answer: `nvidia-smi` must list the card")
    return f"{advice} ({one_line(error)})"


def one_line(error: Exception) -> str:
    """The last line of a message that says something, as CuPy frames and explains its own."""
    lines = [line.strip("= ") for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)


def launch(
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


TF32_MATH = 3
"""Math mode of cuBLAS in which tensor cores multiply float32 numbers, rounded to ten bits of the mantissa, and add in float32.

Definition: `CUBLAS_TF32_TENSOR_OP_MATH` of cublas_api.h, which CuPy has no name for.
"""


@contextmanager
def tensor_cores(device: Device) -> Iterator[None]:
    """Let cuBLAS use them for the products of float32 that this thread has on `device`; nothing changes elsewhere.

    The mode is that of the handle that CuPy keeps for this thread and this card, and is put back at the end. Who has chosen another
    one than the default, or CUPY_TF32=0, keeps it.
    """
    if not array_api_compat.is_cupy_namespace(device.xp) or os.environ.get("CUPY_TF32") == "0":
        yield
        return
    from cupy.cuda import cublas

    handle = device.handle.cublas_handle
    before = cublas.getMathMode(handle)
    if before != cublas.CUBLAS_DEFAULT_MATH:
        yield
        return
    cublas.setMathMode(handle, TF32_MATH)
    try:
        yield
    finally:
        cublas.setMathMode(handle, before)


def with_few_kernels() -> None:
    """Let CuPy make do with its plain reductions in this process, unless the environment says otherwise.

    Those of CUB are faster by little, and many more to compile on the first run. To be called before anything imports
    CuPy, and only where the process is our own.
    """
    os.environ.setdefault("CUPY_ACCELERATORS", "")


def kernel_cache() -> Path:
    """Where CuPy keeps what it has compiled."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path("~/.cupy/kernel_cache").expanduser())


def give_back_memory(device: Device) -> None:
    """Hand back what CuPy keeps of the memory of `device`, and of pinned memory, for arrays to come; a no-op on a CPU."""
    if array_api_compat.is_cupy_namespace(device.xp):
        import cupy

        with current(device):
            cupy.get_default_memory_pool().free_all_blocks()
            cupy.get_default_pinned_memory_pool().free_all_blocks()
