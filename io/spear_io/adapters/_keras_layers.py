"""The fully connected layers of a Keras model, and what follows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import keras

UNKNOWN = "unknown"
"""The activation of a layer whose output is taken somewhere out of sight."""


def dense_layers(model: keras.Model) -> dict[str, tuple[keras.layers.Dense, str]]:
    """Return every `Dense` layer of `model` and what follows it, by name, in forward order where Keras knows it."""
    return dict(_walk(model, prefix=""))


def _walk(model: Any, *, prefix: str) -> Iterator[tuple[str, tuple[keras.layers.Dense, str]]]:
    operations = getattr(model, "operations", model.layers)
    for operation in operations:
        name = f"{prefix}{operation.name}"
        if isinstance(operation, keras.layers.Dense):
            yield name, (operation, _activation(operation, operations, outermost=not prefix))
        elif hasattr(operation, "layers"):
            yield from _walk(operation, prefix=f"{name}.")


def _activation(layer: keras.layers.Dense, operations: Sequence[Any], *, outermost: bool) -> str:
    """Return "relu" if a ReLU and nothing else follows; else the names of what does, joined by +."""
    own = _function_name(layer.activation)
    if own != "linear":
        return own
    try:
        output = layer.output
    except AttributeError:  # called inside a model's own `call`, or several times
        return UNKNOWN
    followers = {_name(operation) for operation in operations if any(i is output for i in _inputs(operation))}
    if not followers and not outermost:
        return UNKNOWN
    return "+".join(sorted(followers)) or "linear"


def _inputs(operation: Any) -> list[Any]:
    inputs: list[Any] = []
    with suppress(AttributeError):  # called several times
        inputs = keras.tree.flatten(operation.input)
    return inputs


def _name(operation: Any) -> str:
    """Return the name of what an operation does to the numbers."""
    if isinstance(operation, keras.layers.Activation):
        return _function_name(operation.activation)
    if isinstance(operation, keras.layers.ReLU):
        options = (operation.max_value, operation.negative_slope or 0, operation.threshold or 0)
        plain = {(None, 0, 0): "relu", (6, 0, 0): "relu6"}
        return plain.get(options, f"relu{options}")
    return str(type(operation).__name__.lower())


def _function_name(activation: Any) -> str:
    return getattr(activation, "__name__", UNKNOWN)
