"""The errors callers may want to catch."""

from __future__ import annotations


class InputError(ValueError):
    """The arrays handed in cannot be a layer's gradients; the message says what is wrong and what to do."""


class DeviceError(RuntimeError):
    """The device asked for does not answer; the message says how to get one."""
