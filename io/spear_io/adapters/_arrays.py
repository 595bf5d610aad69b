"""Parameters and gradients by name, of frameworks that say no more than that, as one update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spear_io.files.dump import RecordInfo
from spear_io.files.dump_writer import NO_INFO, Follows, LayerArrays
from spear_np import Activation, Sliceable
from spear_np.arrays import HostArray

from ._layers import Activations, Parameters, activations_of, check_names, find_layers, follow
from ._round import RecordingError, Update
from .wiring import Wiring

Arrays = Mapping[str, Sliceable]
See = Callable[[Sequence[Parameters], Sequence[str]], Mapping[str, Wiring]]


UNSEEN = Activation("unknown")
"""Of a layer that is not seen to be used as one."""


class Difference:
    """`after` - `before` in their own precision, computed where it is sliced."""

    def __init__(self, after: Sliceable, before: Sliceable) -> None:
        self._after, self._before = after, before
        self.shape = tuple(after.shape)
        self.dtype = after.dtype

    def __getitem__(self, key: Any) -> HostArray:
        difference: HostArray = np.asarray(self._after[key]) - np.asarray(self._before[key])
        return difference


class Transposed:
    """A matrix (n, m) whose columns are read as the rows of (m, n)."""

    def __init__(self, array: Sliceable) -> None:
        self._array = array
        self.shape = tuple(array.shape)[::-1]
        self.dtype = array.dtype

    def __getitem__(self, rows: slice) -> HostArray:
        return np.asarray(self._array[:, rows]).T


def differences(before: Arrays, after: Arrays) -> Arrays:
    """Return `after` - `before` for every name of both.

    Raises
    ------
    RecordingError
        If the names or shapes differ.
    """
    check_fit(before, after)
    return {name: Difference(array, before[name]) for name, array in after.items()}


def check_fit(parameters: Arrays, others: Arrays) -> None:
    """Refuse arrays that belong to no parameter or do not have its shape."""
    for name, array in others.items():
        if name not in parameters:
            msg = f"{name!r} is no parameter: there are {', '.join(parameters) or 'none'}"
            raise RecordingError(msg)
        if tuple(array.shape) != tuple(parameters[name].shape):
            msg = (
                f"{name!r} has shape {tuple(array.shape)}, but the parameter has {tuple(parameters[name].shape)}: "
                "hand over what belongs to the same model"
            )
            raise RecordingError(msg)


def update_of(
    parameters: Arrays,
    gradients: Arrays,
    *,
    producer: str,
    order: Sequence[str] | None = None,
    transposed: bool | None = None,
    activations: Activations | None = None,
    follows: Follows = None,
    see: See | None = None,
    inputs: Arrays | None = None,
    info: RecordInfo = NO_INFO,
) -> Update:
    """Return the update of the fully connected layers that are found among the parameters.

    Parameters
    ----------
    parameters : mapping of arrays
        Before the step, by names whose parts are separated by dots.
    gradients : mapping of arrays
        Or differences, by the same names; what is missing is skipped.
    producer : str
        Program and version.
    order, transposed
        See `find_layers`.
    activations : mapping, optional
        See `activations_of`.
    follows : bool or mapping, optional
        See `follow`.
    see : callable, optional
        Tells how the layers that are found are wired, in forward order: of all of them, and of those to be written.
    inputs : mapping of (b, n) arrays, optional
        True inputs by layer, for evaluation only.
    info : RecordInfo
        What is known of the update.
    """
    check_fit(parameters, gradients)
    shapes = {name: tuple(array.shape) for name, array in parameters.items()}
    layers, skipped = find_layers(shapes, order=order, transposed=transposed)
    wired: Mapping[str, Wiring] = {}
    if see is not None:
        wired = see(layers, [layer.layer for layer in layers if layer.weight in gradients])
        if order is None:
            forward = {name: position for position, name in enumerate(wired)}
            layers.sort(key=lambda layer: forward.get(layer.layer, len(forward)))
    names = [layer.layer for layer in layers]
    applied: Activations = activations_of(names, activations)
    if see is not None:
        seen = {name: wired[name].activation if name in wired else UNSEEN for name in names}
        applied = {**seen, **(activations or {})}
    inputs = inputs or {}
    check_names(inputs, names, "inputs")
    update = Update(skipped=skipped, info=info, producer=producer)
    for layer in layers:
        if layer.weight not in gradients:
            update.skipped[layer.layer] = "nothing of it was given"
            continue
        weight, weight_grad = parameters[layer.weight], gradients[layer.weight]
        wiring = wired.get(layer.layer, Wiring(UNSEEN))
        update.layers[layer.layer] = LayerArrays(
            weight_grad=Transposed(weight_grad) if layer.transposed else weight_grad,
            bias_grad=None if layer.bias is None else gradients.get(layer.bias),
            weight=Transposed(weight) if layer.transposed else weight,
            bias=None if layer.bias is None else parameters[layer.bias],
            inputs=inputs.get(layer.layer),
            activation=applied[layer.layer],
            follows=wiring.follows,
            between=wiring.between,
        )
    update.layers = follow(update.layers, follows)
    return update
