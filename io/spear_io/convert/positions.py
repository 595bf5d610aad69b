"""Gradients that have a number instead of a name, beside a model whose layers have names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ..problems import FileError, Place, printable
from .layers import FoundLayer, natural
from .lists import TWO_ORDERS
from .names import Meaning
from .source import NamedArray


def by_rank(
    gradients: Sequence[tuple[NamedArray, Meaning]], model: Sequence[FoundLayer], place: Place
) -> list[tuple[NamedArray, Meaning]]:
    """Return numbered gradients as those of a model whose layers have names: the first is of the first layer, …

    The layers come in the order of the file or in that of their names: only an order in which all shapes fit counts.

    Raises
    ------
    FileError
        If there are not as many gradients as layers, or their shapes fit in no order or in both.
    """
    shapes: defaultdict[tuple[str, ...], list[tuple[int, ...]]] = defaultdict(list)
    for array, meaning in gradients:
        if meaning.role is not None:
            shapes[meaning.layer].append(array.shape)
    if not shapes:
        return list(gradients)
    orders = [list(model), sorted(model, key=natural)]
    fitting = [order for order in orders if [_shapes(layer) for layer in order] == list(shapes.values())]
    if not fitting:
        msg = f"gradients by position do not fit the model: {_misfit(list(shapes.values()), model)}"
        raise FileError(
            msg, place, "give the gradients of all its layers in their order, or under their names"
        )
    if fitting[0] != fitting[-1]:
        raise FileError(TWO_ORDERS, place, "give the gradients under the names of the weights")
    layers = dict(zip(shapes, fitting[0], strict=True))
    return [
        (array, replace(meaning, layer=layers[meaning.layer].words, title=layers[meaning.layer].title))
        if meaning.role is not None
        else (array, meaning)
        for array, meaning in gradients
    ]


def _misfit(shapes: Sequence[list[tuple[int, ...]]], model: Sequence[FoundLayer]) -> str:
    """Return what is wrong, of the order of the file."""
    if len(shapes) != len(model):
        return f"they are of {len(shapes)} layers, but it has {len(model)}"
    number, layer = next((k, one) for k, one in enumerate(model) if _shapes(one) != shapes[k])
    found, wanted = (" and ".join(map(str, each)) for each in (shapes[number], _shapes(layer)))
    return f"layer {number + 1} has gradients of shape {found}, but '{printable(layer.title)}' has {wanted}"


def _shapes(layer: FoundLayer) -> list[tuple[int, ...]]:
    return [layer.parts[part].shape for part in ("weight", "bias") if part in layer.parts]
