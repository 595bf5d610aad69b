"""The fully connected layers of a Keras model, and how its own graph of tensors wires them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import keras

from .keras_operations import ACROSS, of_function, of_your_own, operations_of, slope_of, snake
from .probing import activation_of
from .wiring import Elementwise, Kept, Operation, Other, Output, Product, Step, Wiring, wire

UNKNOWN = "unknown"
"""What takes an output out of sight."""


@dataclass
class _Graph:
    """What was found of a model so far."""

    steps: list[Step] = field(default_factory=list)
    dense: dict[str, keras.layers.Dense] = field(default_factory=dict)
    """By name, in forward order where Keras knows it."""

    def add(self, operation: Operation, takes: Iterable[int] = ()) -> int:
        self.steps.append(Step(operation, tuple(dict.fromkeys(takes))))
        return len(self.steps) - 1


def dense_layers(model: keras.Model) -> dict[str, keras.layers.Dense]:
    """Return every `Dense` layer of `model` by name, those of inner models with their names in front."""
    return _graph(model).dense


def wiring_of(model: keras.Model, written: Iterable[str]) -> dict[str, Wiring]:
    """Return how the `Dense` layers of `model` are wired, as far as Keras knows.

    A dropout counts as one unless its rate is zero: whether the gradients were taken in training mode is not seen.

    Parameters
    ----------
    model : keras.Model
        Functional, sequential, with models inside; what happens in a `call` of your own cannot be seen.
    written : iterable of str
        The layers that the dump will hold.
    """
    graph = _graph(model)
    shapes = {name: tuple(graph.dense[name].kernel.shape[::-1]) for name in written}
    return wire(graph.steps, shapes)


def _graph(model: Any) -> _Graph:
    graph = _Graph()
    if _has_graph(model):
        entries = [graph.add(Kept()) for _ in keras.tree.flatten(model.inputs)]
        graph.add(Output(), _trace(model, entries, graph, prefix=""))
    else:
        _list_layers(model, graph, prefix="")
    return graph


def _has_graph(model: Any) -> bool:
    """Whether Keras knows which operations lie between the inputs and the outputs of what may be a model."""
    with suppress(AttributeError, ValueError):  # not built yet
        return isinstance(model, keras.Model) and bool(model.inputs) and bool(model.outputs)
    return False


def _list_layers(model: Any, graph: _Graph, *, prefix: str) -> None:
    """Add the layers of a model whose calls cannot be seen: what is told is what each of them has in itself."""
    for layer in model.layers:
        name = f"{prefix}{layer.name}"
        if isinstance(layer, keras.layers.Dense):
            graph.add(Other(UNKNOWN), [_add_layer(layer, name, (), graph)])
        elif _has_graph(layer):
            entries = [graph.add(Kept()) for _ in keras.tree.flatten(layer.inputs)]
            graph.add(Other(UNKNOWN), _trace(layer, entries, graph, prefix=f"{name}."))
        elif hasattr(layer, "layers"):
            _list_layers(layer, graph, prefix=f"{name}.")


def _trace(model: Any, entries: list[int], graph: _Graph, *, prefix: str) -> list[int]:
    """Add what lies between the inputs of a model, which are at `entries`, and its outputs; return where these are."""
    known = {id(tensor): at for tensor, at in zip(keras.tree.flatten(model.inputs), entries, strict=True)}
    outputs = keras.tree.flatten(model.outputs)
    waiting = list(reversed(outputs))
    while waiting:  # depth first, without recursion: models are deep
        tensor = waiting[-1]
        if id(tensor) in known:
            waiting.pop()
            continue
        operation, number, _ = tensor._keras_history  # Keras tells it only under private names
        node = operation._inbound_nodes[number]
        missing = [taken for taken in node.input_tensors if id(taken) not in known]
        if missing:
            waiting.extend(reversed(missing))
            continue
        takes = [known[id(taken)] for taken in node.input_tensors]
        found = _add_call(operation, node, takes, graph, prefix=prefix)
        known.update((id(output), at) for output, at in zip(node.output_tensors, found, strict=True))
    return [known[id(tensor)] for tensor in outputs]


def _add_call(operation: Any, node: Any, takes: list[int], graph: _Graph, *, prefix: str) -> list[int]:
    """Add one call of an operation; return where each of its outputs is."""
    name = f"{prefix}{operation.name}"
    if _has_graph(operation) and len(takes) == len(keras.tree.flatten(operation.inputs)):
        found = _trace(operation, takes, graph, prefix=f"{name}.")
        if len(found) == len(node.output_tensors):
            return found
    elif isinstance(operation, keras.Model):
        _list_layers(operation, graph, prefix=f"{name}.")
    at = _add_layer(operation, name, takes, graph)
    return [at] * len(node.output_tensors)


def _add_layer(layer: Any, name: str, takes: Iterable[int], graph: _Graph) -> int:
    """Add what a layer or operation does; return where its output is."""
    if isinstance(layer, keras.layers.Dense):
        graph.dense[name] = layer
        operations: list[Operation] = [Product("dense", name, linear=True), _of_function(layer.activation)]
        if type(layer).call is not keras.layers.Dense.call:  # which may do more, before and after
            around = Other(snake(type(layer).__name__))
            operations = [around, *operations, around]
    elif isinstance(layer, keras.layers.Activation):
        operations = [_of_function(layer.activation)]
    elif not _is_keras_own(layer):
        operations = [Other(snake(type(layer).__name__))]  # whatever class it inherits from
    else:
        slope = (
            slope_of(keras.ops.convert_to_numpy(layer.alpha))
            if isinstance(layer, keras.layers.PReLU)
            else None
        )
        operations = operations_of(type(layer).__name__, _config(layer), slope=slope)
        if "activation" in vars(layer) and isinstance(operations[0], Product):
            operations[1:] = [_of_function(layer.activation)]
    for operation in operations:
        at = graph.add(operation, takes)
        takes = [at]
    return at


def _is_keras_own(layer: Any) -> bool:
    return type(layer).__module__.partition(".")[0] == "keras"


def _config(layer: Any) -> Mapping[str, Any]:
    """Return the configuration of a layer; empty if it has none, as with a function of its own among its options."""
    with suppress(Exception):
        config: Mapping[str, Any] = layer.get_config()
        return config
    return {}


def _of_function(function: Any) -> Operation:
    """Return what the activation of a layer does: by its name if it is Keras' own, or else by its values."""
    if _is_keras_function(function):
        return of_function(function.__name__)
    if isinstance(function, keras.Layer) and _is_keras_own(function) and not function.weights:
        return operations_of(type(function).__name__, _config(function))[-1]
    name = getattr(function, "__name__", UNKNOWN)
    with suppress(Exception):  # a function of your own may do anything
        found = activation_of(lambda z: keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(z))))
        if found is not None:
            return Elementwise(found)
    return Other(name) if name in ACROSS else Elementwise(of_your_own(name))


def _is_keras_function(function: Any) -> bool:
    name = getattr(function, "__name__", None)
    return name is not None and getattr(keras.activations, name, None) is function
