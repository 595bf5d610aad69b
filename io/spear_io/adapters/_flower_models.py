"""What a Flower server was sent, read with the network at hand: a Keras or a PyTorch model."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from ._arrays import Arrays
from ._layers import Activations, check_names
from ._round import RecordingError, Update


def update_of_model(
    model: Any, before: Arrays, after: Arrays, example: Any, activations: Activations | None
) -> Update:
    """Return the update of `model` between two states, wired as the model tells.

    Parameters
    ----------
    model : keras.Model or torch.nn.Module
        The network.
    before, after : mapping of arrays
        All of its parameters, in their order: of `get_weights`, or of `state_dict`.
    example : tensor or tuple, optional
        What a PyTorch model is called with.
    activations : mapping, optional
        By layer, where they are known better.

    Raises
    ------
    ValueError
        If `activations` names something that is no layer.
    RecordingError
        If `model` is of neither kind, or the arrays are not its parameters.
    """
    if _is_a(model, "keras", "Model"):
        from .to_keras import from_weights

        return from_weights(model, list(before.values()), list(after.values()), activations=activations)
    if _is_a(model, "torch.nn", "Module"):
        return _of_torch(model, before, after, example, activations)
    msg = f"`model` is of type {type(model).__name__}: hand over a keras.Model or a torch.nn.Module"
    raise RecordingError(msg)


def _is_a(model: Any, module: str, name: str) -> bool:
    """Whether `model` is an object of a framework, which is imported already if it is."""
    framework = sys.modules.get(module)
    return framework is not None and isinstance(model, getattr(framework, name))


def _of_torch(
    model: Any, before: Arrays, after: Arrays, example: Any, activations: Activations | None
) -> Update:
    import torch

    from .to_torch import from_weights

    if example is None:
        msg = "a PyTorch `model` is called to see how it uses its parameters: give an `example` of its inputs"
        raise RecordingError(msg)
    names = list(model.state_dict())
    if len(names) != len(before):
        msg = (
            f"{len(before)} parameters were sent, but `model` has {len(names)}: hand over the network itself"
        )
        raise RecordingError(msg)
    states = [
        {name: torch.tensor(array) for name, array in zip(names, arrays.values(), strict=True)}
        for arrays in (before, after)
    ]
    update = from_weights(model, *states, inputs=example)
    activations = activations or {}
    check_names(activations, update.layers, "activations")
    # What the model was called with is not what the clients have.
    update.layers = {
        name: replace(layer, inputs=None, activation=activations.get(name, layer.activation))
        for name, layer in update.layers.items()
    }
    return update
