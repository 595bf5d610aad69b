"""How much memory factorising a layer takes, asked before any of it is taken."""

from __future__ import annotations

import numpy as np

from ..backend.devices import Device
from ..backend.memory import memory_of
from ..errors import InputError

CROSS_TABLES = 6
"""Tables of (m, m) numbers at once, W multiplied into weight_grad and into itself, where weight decay is fitted.

Measured: with `FACTOR_TABLES` it covers what 1200 x 60, 1200 x 300 and 500 x 500 take with decay and noise, by up to 5 %.
"""
FACTOR_TABLES = 8
"""Tables of (m, min(m, n)) numbers at once while weight_grad is decomposed.

Measured: 7.3 at m = 3000, n = 400 with noise, where two readings of the singular values are compared.
"""


def working_memory(shape: tuple[int, int], *, with_weight: bool) -> int:
    """Bytes that factorising a layer of `shape` (m, n) takes, about: nothing of it grows with n beyond m."""
    m, n = shape
    return np.dtype(np.float64).itemsize * (
        CROSS_TABLES * m * m * with_weight + FACTOR_TABLES * m * min(m, n)
    )


def check_memory(shape: tuple[int, int], device: Device, *, with_weight: bool) -> None:
    """Refuse a layer whose factors do not fit into the memory of `device`.

    Raises
    ------
    InputError
        If it has less; nothing was taken of it.
    """
    needed, there = working_memory(shape, with_weight=with_weight), memory_of(device)
    if there is not None and needed > there:
        msg = (
            f"a layer of {shape[0]} output units and {shape[1]} input features takes about {needed:.1e} bytes of "
            f"memory, but {device.name} has {there:.1e}"
        )
        raise InputError(msg)
