"""Arrays that have a number instead of a name: what they are by their order and shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import itemgetter

from ..problems import FileError, Place, printable
from .layers import FoundLayer, natural
from .names import Meaning
from .source import NamedArray


def by_position(
    numbered: Iterable[tuple[int, NamedArray]], *, gradient: bool
) -> list[tuple[NamedArray, Meaning]]:
    """Return what arrays are that their numbers put into forward order: a kernel, its bias, the next kernel, …

    Vectors of the same length after a kernel are its bias, a normalisation (two, or four with its statistics), or
    both: an odd number begins with the bias.
    """
    named: list[tuple[NamedArray, Meaning]] = []
    runs: defaultdict[int, list[NamedArray]] = defaultdict(list)
    number = -1
    for _, array in sorted(numbered, key=itemgetter(0)):
        if len(array.shape) >= 2:
            number += 1
        runs[number].append(array)
    for number, run in runs.items():
        kernel, vectors = (None, run) if number < 0 else (run[0], run[1:])
        layer, title = (str(number),), f"layer_{number}"
        if kernel is not None:
            named.append((kernel, Meaning("weight", gradient, layer, title)))
        fitting = [v for v in vectors if kernel and len(v.shape) == 1 and v.shape[0] in kernel.shape]
        for position, vector in enumerate(vectors):
            if position == 0 and len(fitting) % 2 and vector is fitting[0]:
                named.append((vector, Meaning("bias", gradient, layer, title)))
            else:
                named.append((vector, Meaning(reason="is no kernel or bias, by its position and shape")))
    return named


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
        msg = "gradients by position fit the layers of the model in the order of the file and in that of their names"
        raise FileError(msg, place, "give the gradients under the names of the weights")
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
