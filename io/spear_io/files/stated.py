"""What groups and datasets of files from strangers state in their attributes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from ..problems import FileError, Place, cause, printable, size_text

LARGEST_ATTRIBUTE = 64 * 2**10
"""Bytes of one attribute, and characters of one text."""

LONGEST_LIST = LARGEST_ATTRIBUTE // 16
"""Numbers or texts in one attribute: with 8 bytes for each there is room left to write them again."""


def text(holder: h5py.Group | h5py.Dataset, name: str, place: Place) -> str | None:
    """Return a string attribute, or None if there is none."""
    value = attribute(holder, name, place)
    if value is None or isinstance(value, str):
        return value
    raise _wrong_attribute(name, "text", value, place)


def number(holder: h5py.Group | h5py.Dataset, name: str, place: Place) -> float | None:
    """Return a real number attribute (NaN and infinities included), or None if there is none."""
    value = attribute(holder, name, place)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise _wrong_attribute(name, "a number", value, place)


def integer(holder: h5py.Group | h5py.Dataset, name: str, place: Place) -> int | None:
    """Return an integer attribute, or None if there is none."""
    value = number(holder, name, place)
    if value is None or (math.isfinite(value) and value == int(value)):
        return value if value is None else int(value)
    raise _wrong_attribute(name, "a whole number", value, place)


def vector(holder: h5py.Group | h5py.Dataset, name: str, place: Place) -> tuple[float, ...] | None:
    """Return an attribute of real numbers as a tuple (a single number as one of length 1), or None."""
    value = attribute(holder, name, place)
    values: Sequence[Any] | None = value if value is None or isinstance(value, list) else [value]
    if values is None or all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return values if values is None else tuple(values)
    raise _wrong_attribute(name, "numbers", value, place)


def texts(holder: h5py.Group | h5py.Dataset, name: str, place: Place) -> tuple[str, ...] | None:
    """Return an attribute that is a list of texts as a tuple, or None if there is none."""
    value = attribute(holder, name, place)
    if value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return value if value is None else tuple(value)
    raise _wrong_attribute(name, "a list of texts", value, place)


def boolean(holder: h5py.Group | h5py.Dataset, name: str, place: Place) -> bool | None:
    """Return a truth value (0 and 1 are some), or None if there is none."""
    value = attribute(holder, name, place)
    if value is None or (isinstance(value, int) and value in (0, 1)):
        return value if value is None else bool(value)
    raise _wrong_attribute(name, "a truth value", value, place)


def label(holder: h5py.Group | h5py.Dataset, name: str, place: Place) -> str | int | None:
    """Return an attribute that is only shown, a text or a number (as text if it is not whole), or None."""
    value = attribute(holder, name, place)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return str(value)
    raise _wrong_attribute(name, "text or a number", value, place)


_PLAIN = (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)
"""Types of which an attribute may be."""


def attribute(holder: h5py.Group | h5py.Dataset, name: str, place: Place) -> Any:
    """Return an attribute as plain Python data (str, bool, int, float or a list of them), or None.

    Strings, numbers and booleans of a modest size are read; everything else is refused. Every text that is returned
    can be stored again.
    """
    with damage(place):
        # Opened once: `holder.attrs` would open it for each of these questions, and a record asks twenty.
        if not h5py.h5a.exists(holder.id, name.encode()):
            return None
        identity = h5py.h5a.open(holder.id, name.encode())
        stored, space = identity.get_type(), identity.get_space()
        shape = space.shape or ()
        count = math.prod(shape)
        size = count * stored.get_size()
        if (
            stored.get_class() not in _PLAIN
            or len(shape) > 1
            or size > LARGEST_ATTRIBUTE
            or count > LONGEST_LIST
        ):
            raise _unwanted_attribute(name, size, place)
        if space.get_simple_extent_type() == h5py.h5s.NULL:
            return None
        held = np.zeros(shape, dtype=stored.dtype)
        identity.read(held)
    value = held.tolist()
    if isinstance(value, list):
        value = [_clean(item) for item in value]
        length = sum(len(item) for item in value if isinstance(item, str))
    else:
        value = _clean(value)
        length = len(value) if isinstance(value, str) else 0
    if length > LARGEST_ATTRIBUTE:  # a text of varying length does not tell before it is read
        raise _unwanted_attribute(name, length, place)
    return value


def _clean(value: Any) -> Any:
    """Return a text as valid Unicode without NUL, which no other text can hold; anything else as it is."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace").replace("\0", "\ufffd")
    return value


def _unwanted_attribute(name: str, size: int, place: Place) -> FileError:
    msg = f"the attribute '{name}' is of a type or size that nothing here needs ({size_text(size)})"
    return FileError(msg, place, "store a short text, a number or a few numbers")


def _wrong_attribute(name: str, wanted: str, value: Any, place: Place) -> FileError:
    msg = f"the attribute '{name}' should be {wanted}, but is {printable(repr(value), 60)}"
    return FileError(msg, place, "export the file again")


@contextmanager
def damage(place: Place) -> Iterator[None]:
    """Turn what h5py raises for inconsistent metadata into a `FileError`."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, UnicodeError, MemoryError) as error:
        msg = f"the structure of the file is damaged here ({cause(error)})"
        raise FileError(msg, place, "copy or export it again") from error
