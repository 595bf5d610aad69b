"""The CUDA source of all kernels, as one text: what is compiled together is compiled once."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from ..arrays import Array
from ..backend.devices import Device

FILES = ("common.cuh", "sampling.cu", "descent.cu", "reflect.cu")
WARP = 32
"""Threads of a warp.

Definition: of every card that CUDA knows.
"""
KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(')


@cache
def source() -> str:
    """The whole text."""
    return "\n".join((Path(__file__).parent / name).read_text() for name in FILES)


def kernel_names() -> tuple[str, ...]:
    """What can be launched."""
    return tuple(KERNEL.findall(source()))


def launch(
    device: Device, name: str, blocks: int, threads: int, arguments: tuple[Any, ...], *, shared: int = 0
) -> None:
    """Run a kernel on `blocks` blocks of `threads` threads with `shared` bytes of dynamic shared memory each.

    `arguments` are arrays of `device`, C-contiguous, and NumPy scalars of the types that the kernel declares.
    """
    assert device.launch is not None
    device.launch(source(), name, blocks, threads, arguments, shared)


def runs_kernels(device: Device, *arrays: Array) -> bool:
    """Whether `device` runs CUDA kernels, and these arrays have something to run on."""
    return device.launch is not None and all(0 not in array.shape for array in arrays)
