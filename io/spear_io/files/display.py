"""What a picture of an input needs beside its numbers, and whose it is: the same attributes in both layouts."""

from __future__ import annotations

from dataclasses import dataclass, fields

import h5py

from ..problems import FileError, Place, printable
from . import stated
from .attributes import write_attributes

LARGEST_SIZE = 2**63 - 1
"""Of one axis: what int64 holds, as which a shape is stored."""


CHANNELS = (1, 3, 4)
SMALLEST_SIDE = 7
"""Pixels: the window over which structural similarity is taken."""


@dataclass(frozen=True)
class Display:
    """How one input of the network is drawn, and whom it came from; everything is optional."""

    input_shape: tuple[int, ...] | None = None
    """Shape of one input of the network, e.g. (1, 28, 28)."""
    input_mean: tuple[float, ...] | None = None
    """Mean subtracted from the inputs, one figure or one a channel; undone only for display and evaluation."""
    input_std: tuple[float, ...] | None = None
    """Standard deviation the inputs were divided by, likewise."""
    client: str | int | None = None
    round: str | int | None = None
    feature_names: tuple[str, ...] | None = None
    """Names of the features of one input, as the columns of a table."""


def read_display(group: h5py.Group, place: Place) -> Display:
    """Return what the attributes of a record of a dump, or of a layer of an inversion, say.

    Raises
    ------
    FileError
        If one of them is of the wrong kind.
    """
    return Display(
        input_shape=_sizes(group, "input_shape", place),
        input_mean=stated.vector(group, "input_mean", place),
        input_std=stated.vector(group, "input_std", place),
        client=stated.label(group, "client", place),
        round=stated.label(group, "round", place),
        feature_names=stated.texts(group, "feature_names", place),
    )


def write_display(group: h5py.Group, display: Display) -> None:
    """Store what is known, and of a subclass no more than a `Display` has."""
    write_attributes(group, {field.name: getattr(display, field.name) for field in fields(Display)})


def _sizes(group: h5py.Group, name: str, place: Place) -> tuple[int, ...] | None:
    """Return an attribute that is a shape."""
    values = stated.vector(group, name, place)
    if values is None or all(1 <= value <= LARGEST_SIZE and value == value // 1 for value in values):
        return None if values is None else tuple(int(value) for value in values)
    shown = printable(str(values), 60)
    msg = f"the attribute '{name}' is {shown}, but must be positive whole numbers"
    raise FileError(msg, place, "correct it, or leave it out")


def image_axes(shape: tuple[int, ...] | None) -> tuple[tuple[int, ...], int] | None:
    """Return the shape (with channels) and the channel axis of inputs that are images, or None.

    Channels come first where both would fit.
    """
    if shape is None or len(shape) not in (2, 3):
        return None
    if len(shape) == 2:
        shape = (1, *shape)
    axis = 0 if shape[0] in CHANNELS else 2
    sides = [size for place, size in enumerate(shape) if place != axis]
    return (shape, axis) if shape[axis] in CHANNELS and min(sides) >= SMALLEST_SIDE else None
