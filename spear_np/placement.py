"""What runs where: of a small layer on a card only the search, and whatever else there is to compute on the host."""

from __future__ import annotations

import operator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np

from .backend.devices import CPU, Device

T = TypeVar("T")

HOST_UNITS = 500
"""Units up to which the algebra of a layer is done on the host though its search is on a card.

Measured: on an H100, with an earlier version that did all of it there, m = 200, b = 40 took 0.8 s for 0.3 s on two cores, and
m = 1000, b = 200 took 7 s for 21 s: the crossing lies between, and has not been measured more closely.
"""


def algebra_device(device: Device, units: int) -> Device:
    """Where the algebra of a layer of so many `units` is done, whose search runs on `device`.

    Matrices of a few hundred rows are decomposed on the host while a card is still launching kernels.
    """
    return CPU if device.name != "cpu" and units <= HOST_UNITS else device


def carried(value: T, device: Device) -> T:
    """`value`, a dataclass of arrays, devices and plain data, or a tuple, with all of it on `device`: one transfer a NumPy array.

    Arrays of other libraries stay where they are: they are there already.
    """
    there: T = _carried(value, device)
    return there


def _carried(value: Any, device: Device) -> Any:
    if isinstance(value, Device):
        return device
    if isinstance(value, np.ndarray):
        put = {"b": device.booleans, "i": device.integers}.get(value.dtype.kind)
        return (put or (device.float32 if value.dtype == np.float32 else device.float64))(value)
    if isinstance(value, tuple):
        parts = tuple(_carried(one, device) for one in value)
        return value if all(map(operator.is_, parts, value)) else parts
    if is_dataclass(value) and not isinstance(value, type):
        held = {field.name: _carried(getattr(value, field.name), device) for field in fields(value)}
        same = all(part is getattr(value, name) for name, part in held.items())
        return value if same else replace(value, **held)
    return value
