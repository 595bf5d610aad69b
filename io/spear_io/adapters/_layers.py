"""Which parameters of a model make a fully connected layer, how they lie, and in which order they are used.

Frameworks that hand over parameters by name or by position alone say neither. Parameters that belong together have
names with the same beginning (``Dense_0.kernel``, ``Dense_0.bias``) or number (``W1``, ``b1``), or follow each other
(``0``, ``1``); the length of the bias tells which side of the matrix the output units are on.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from spear_io.files.dump_writer import Follows, LayerArrays, linked
from spear_np import Activation

UNITS_LAST = {"kernel", "w"}
"""Names of matrices that are (n, m) where nothing else tells: Flax, Keras and Haiku multiply from the right."""

UNITS_FIRST = {"weight"}
"""Names of matrices that are (m, n) where nothing else tells: PyTorch, Equinox."""

EMBEDDINGS = {"embedding", "embeddings"}

Shape = tuple[int, ...]

Activations = Mapping[str, str | Activation]
"""By layer; a name stands for the activation with default parameters."""

Said = TypeVar("Said", bound=str | Activation)


@dataclass(frozen=True)
class Parameters:
    """The parameters of one fully connected layer, by name."""

    layer: str
    weight: str
    bias: str | None
    shape: tuple[int, int]
    """(m, n): output units, input features."""
    transposed: bool
    """Whether the matrix is stored as (n, m)."""


def find_layers(
    shapes: Mapping[str, Shape],
    *,
    order: Sequence[str] | None = None,
    transposed: bool | None = None,
) -> tuple[list[Parameters], dict[str, str]]:
    """Return the fully connected layers in forward order, and why what else has a matrix is none.

    Parameters
    ----------
    shapes : mapping
        Shape of every parameter by its name, whose parts are separated by dots.
    order : sequence of str, optional
        Names of the layers as they come in the forward pass; others are left out. By default numbers in the names
        decide, or else how the sizes fit together, or else the order of `shapes`.
    transposed : bool, optional
        Whether matrices are stored as (n, m). By default the length of the bias decides, or else the name.

    Raises
    ------
    ValueError
        If `order` names something that is no layer, or nothing tells how a matrix lies.
    """
    pairs: dict[str, tuple[str, str | None]] = {}
    skipped: dict[str, str] = {}
    for group, names in _groups(shapes).items():
        layer = group.replace("/", ".")
        found = _pair(names, shapes)
        if isinstance(found, str):
            skipped[layer] = found
        elif found is not None:
            pairs[layer] = found
    orientations = _orientations(pairs, shapes, transposed)
    layers = []
    for layer, (weight, bias) in pairs.items():
        rows, columns = shapes[weight]
        turned = orientations[layer]
        layers.append(Parameters(layer, weight, bias, (columns, rows) if turned else (rows, columns), turned))
    return (_forward_order(layers) if order is None else _chosen(layers, order)), skipped


def activations_of(layers: Sequence[str], given: Mapping[str, Said] | None = None) -> dict[str, Said | str]:
    """Return what follows each layer: as `given`, or else a ReLU, and nothing ("linear") after the last one.

    Raises
    ------
    ValueError
        If `given` names something that is no layer.
    """
    given = given or {}
    check_names(given, layers, "activations")
    return {layer: given.get(layer, "linear" if layer == layers[-1] else "relu") for layer in layers}


def follow(layers: Mapping[str, LayerArrays], follows: Follows) -> dict[str, LayerArrays]:
    """Return `layers` with what the user says of which takes the activated output of which.

    Parameters
    ----------
    layers : mapping
        Layers by name, in forward order.
    follows : bool or mapping, optional
        True: each takes that of the one before it, but where something is seen to stand in between. False: none
        does. A mapping decides for the layers that it names, whatever was seen.

    Raises
    ------
    ValueError
        If `follows` names something that is no layer.
    """
    if follows is False:
        return {name: replace(layer, follows=None) for name, layer in layers.items()}
    if isinstance(follows, Mapping):
        check_names([*follows, *filter(None, follows.values())], layers, "follows")
        layers = {
            name: replace(layer, follows=None, between=None) if name in follows else layer
            for name, layer in layers.items()
        }
    return linked(layers, follows)


def check_names(names: Iterable[str], layers: Iterable[str], argument: str) -> None:
    """Refuse a name in `argument` that is not one of `layers`."""
    layers = list(layers)
    for name in names:
        if name not in layers:
            there = ", ".join(layers) or "none"
            msg = f"`{argument}` names {name!r}, but the fully connected layers are: {there}"
            raise ValueError(msg)


def _groups(shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Return the names that belong together, by the name of their layer."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    matrices: defaultdict[str, list[str]] = defaultdict(list)
    for name, shape in shapes.items():
        parent, _, leaf = name.rpartition(".")
        if not leaf.isdigit():
            number = "".join(re.findall(r"\d+", leaf))
            groups[f"{parent}.{number}".strip(".") or "linear"].append(name)
            continue
        if len(shape) > 1 or not matrices[parent]:  # by position: a matrix, and the vectors that follow it
            matrices[parent].append(name)
        groups[matrices[parent][-1]].append(name)
    # A layer that is alone in its tuple is called as the tuple: "0", not "0.0".
    for parent, first in matrices.items():
        if parent and len(first) == 1 and parent not in groups:
            groups[parent] = groups.pop(first[0])
    return groups


def _pair(names: Sequence[str], shapes: Mapping[str, Shape]) -> tuple[str, str | None] | str | None:
    """Return (weight, bias) of a group, or why it is no fully connected layer, or None where nothing is to say."""
    weights = [name for name in names if len(shapes[name]) > 1]
    if not weights:
        return None  # a normalisation, a counter
    if len(weights) > 1:
        return f"holds {len(weights)} matrices, where a fully connected layer has one"
    (weight,) = weights
    shape = shapes[weight]
    if len(shape) > 2:
        return (
            f"its weight has {len(shape)} dimensions, where a fully connected layer has two: a convolution?"
        )
    if 0 in shape:
        return f"its weight has shape {shape}"
    if _leaf(weight) in EMBEDDINGS:
        return "an embedding: its rows are looked up, not multiplied"
    vectors = [name for name in names if len(shapes[name]) == 1]
    fitting = [name for name in vectors if shapes[name][0] in shape]
    if vectors and not fitting:
        return f"its vector has {shapes[vectors[0]][0]} entries, which fits no side of its weight {shape}"
    fitting.sort(key=lambda name: not _leaf(name).startswith("b"))
    return weight, fitting[0] if fitting else None


def _leaf(name: str) -> str:
    return re.sub(r"\d", "", name.rpartition(".")[2]).lower()


def _orientations(
    pairs: Mapping[str, tuple[str, str | None]], shapes: Mapping[str, Shape], transposed: bool | None
) -> dict[str, bool]:
    """Return for every layer whether its matrix is (n, m)."""
    if transposed is not None:
        return dict.fromkeys(pairs, transposed)
    known: dict[str, bool] = {}
    for layer, (weight, bias) in pairs.items():
        rows, columns = shapes[weight]
        if bias is not None and rows != columns:
            known[layer] = shapes[bias][0] == columns
        elif _leaf(weight) in UNITS_LAST | UNITS_FIRST:
            known[layer] = _leaf(weight) in UNITS_LAST
    for layer in [layer for layer in pairs if layer not in known]:
        if len(set(known.values())) != 1:
            msg = (
                f"nothing tells which side of the {shapes[pairs[layer][0]]} weight of layer {layer!r} the output "
                "units are on: give `transposed=False` if its rows are units, as in PyTorch, or `transposed=True` "
                "if its columns are, as in Keras and Flax"
            )
            raise ValueError(msg)
        known[layer] = next(iter(known.values()))  # as all the others
    return known


def _chosen(layers: Sequence[Parameters], order: Sequence[str]) -> list[Parameters]:
    by_name = {layer.layer: layer for layer in layers}
    check_names(order, by_name, "order")
    return [by_name[name] for name in order]


def _forward_order(layers: Sequence[Parameters]) -> list[Parameters]:
    """Return the layers by their numbers, and as a chain of fitting sizes where names of several kinds mix."""
    kinds: defaultdict[str, list[Parameters]] = defaultdict(list)
    for layer in layers:
        kinds[re.sub(r"\d+", "0", layer.layer)].append(layer)
    numbered = {kind: iter(sorted(alike, key=_numbers)) for kind, alike in kinds.items()}
    # The kinds stay where they are: "fc10, fc2, head" becomes "fc2, fc10, head".
    ordered = [next(numbered[re.sub(r"\d+", "0", layer.layer)]) for layer in layers]
    return (_chain(ordered) or ordered) if len(kinds) > 1 else ordered


def _numbers(layer: Parameters) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", layer.layer)]


def _chain(layers: Sequence[Parameters]) -> list[Parameters] | None:
    """Return the layers so that each takes what the one before it puts out; None if they do not join."""
    left = list(layers)
    outputs = {layer.shape[0] for layer in left}
    chain = [next((layer for layer in left if layer.shape[1] not in outputs), left[0])]
    while left:
        left.remove(chain[-1])
        following = [layer for layer in left if layer.shape[1] == chain[-1].shape[0]]
        if not following:
            break
        # One from which it goes on, if there is one: the output layer may fit anywhere.
        inputs = {layer.shape[1] for layer in left}
        chain.append(next((layer for layer in following if layer.shape[0] in inputs), following[0]))
    return None if left else chain
