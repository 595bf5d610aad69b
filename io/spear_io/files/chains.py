"""What a layer says of its activation and of the layer before it: how a dump stores it, and when it makes sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

import spear_np
from spear_np.factors.activation import PARAMETERS, as_activation

from ..problems import FileError, Place, listing, printable
from . import safety, stated


@dataclass(frozen=True)
class Link:
    """What `follows` is checked against, for one layer."""

    shape: tuple[int, ...] | None
    """(m, n); None where it is not known, or the layer is not fully connected."""
    follows: str | None
    place: Place


def read_activation(group: h5py.Group, name: str, place: Place) -> spear_np.Activation:
    """Return the activation `name` of a layer with the parameters stored beside it.

    Raises
    ------
    FileError
        If a parameter is no number, not finite or out of range.
    """
    parameters: dict[str, Any] = {}
    plain = spear_np.Activation(name).name
    for parameter in PARAMETERS.get(plain, {}):
        value: Any = stated.number(group, parameter, place)
        if value is None and plain == "prelu":
            value = _slopes(group, parameter, place)
        if value is not None:
            parameters[parameter] = value
    try:
        return spear_np.Activation(plain, parameters)
    except spear_np.InputError as error:
        raise FileError(str(error), place, "correct it, or leave it out") from error


def _slopes(group: h5py.Group, name: str, place: Place) -> Any:
    """Return the dataset of the slopes of a PReLU; None if there is none."""
    array = safety.numbers(group, name, place, ndim=None)
    if array is None:
        return None
    gradient = safety.numbers(group, "weight_grad", place, ndim=2)
    units = gradient.shape[:1] if gradient is not None else ()
    if array.shape not in ((), (1,), units):
        msg = f"has shape {array.shape}, but must be one number, or one for each output unit {units}"
        raise FileError(msg, array.place, "store the slope as the layer uses it")
    return np.asarray(array[()])


def write_activation(group: h5py.Group, activation: str | spear_np.Activation) -> None:
    """Store what is applied to the output of a layer: the name, and every parameter that it has."""
    known = as_activation(activation)
    group.attrs["activation"] = known.name
    for parameter, value in known.parameters.items():
        if known.name == "prelu":
            group.create_dataset(parameter, data=np.asarray(value, dtype=np.float64))
        else:
            group.attrs[parameter] = value


def check_follows(layers: Mapping[str, Link]) -> None:
    """Refuse a `follows` that cannot be; `layers` come in forward order.

    A layer follows an earlier one, as wide as its own input. So there are no circles.

    Raises
    ------
    FileError
        For the first layer whose `follows` names itself, a later layer or none, or one of another width.
    """
    earlier: dict[str, Link] = {}
    for name, layer in layers.items():
        before = layer.follows
        if before is not None:
            _check_link(name, layer, before, earlier, layers)
        earlier[name] = layer


def _check_link(
    name: str, layer: Link, before: str, earlier: Mapping[str, Link], layers: Mapping[str, Link]
) -> None:
    said = f"the attribute 'follows' is '{printable(before)}'"
    if before == name:
        msg, advice = f"{said}, the layer itself", "name the layer whose output it takes, or leave it out"
    elif before not in layers:
        msg = f"{said}, but there is no such layer"
        advice = f"there is: {listing(other for other in layers if other != name)}"
    elif before not in earlier:
        msg = f"{said}, which comes later in the forward pass"
        advice = "name the layer whose output it takes, or correct the attribute 'order'"
    elif (
        layer.shape is not None
        and (shape := earlier[before].shape) is not None
        and shape[0] != layer.shape[1]
    ):
        msg = f"{said}, which has {shape[0]} output units, but this layer has {layer.shape[1]} input features"
        advice = "name the layer whose output it takes, or leave it out"
    else:
        return
    raise FileError(msg, layer.place, advice)
