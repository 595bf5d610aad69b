"""A gradient as one long vector, split as the model beside it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

from ..problems import FileError, Place, listing, printable
from .names import is_buffer, understand_all
from .pairing import Given
from .source import NamedArray


def split_vector(given: Sequence[Given], place: Place) -> list[Given]:
    """Return `given` with its only gradient, if that is a vector of the numbers of all parameters, in their parts.

    The parts come one after the other as the parameters do in their file, each row by row: as PyTorch's
    `parameters_to_vector` and ``numpy.concatenate([a.ravel() for a in …])`` write them.

    Raises
    ------
    FileError
        If there are not as many numbers as the parameters have, or their order is not known.
    """
    given = list(given)
    largest = max((math.prod(one.array.shape) for one in given if len(one.array.shape) > 1), default=0)
    if not any(len(one.array.shape) == 1 and one.array.shape[0] >= largest > 0 for one in given):
        return given
    meanings = understand_all([one.array.name for one in given if one.meaning is None])
    parts: dict[bool, list[Given]] = {False: [], True: []}
    for one in given:
        parts[one.gradient or (one.meaning or meanings[one.array.name]).gradient].append(one)
    model, gradients = parts[False], parts[True]
    if len(gradients) != 1 or not any(len(one.array.shape) > 1 for one in model):
        return given
    vector = gradients[0].array
    if len(vector.shape) != 1:
        return given
    parameters = [one for one in model if not is_buffer(one.array.name)]
    fitting = [
        members
        for members in (parameters, model)
        if sum(math.prod(one.array.shape) for one in members) == vector.shape[0]
    ]
    if not fitting:
        if vector.shape in {one.array.shape for one in model}:
            return given  # the gradient of a single bias
        numbers = sum(math.prod(one.array.shape) for one in parameters)
        msg = f"'{printable(vector.name)}' is one vector of {vector.shape[0]} numbers, but the model has {numbers}"
        raise FileError(msg, place, "give the model whose gradient it is, or the gradients of its parameters")
    if not all(one.ordered for one in fitting[0]):
        msg = (
            f"'{printable(vector.name)}' is the gradient of all parameters in one vector, and the file of the model does "
            f"not say in which order they come: {listing([one.array.name for one in fitting[0]][:3])}, …"
        )
        raise FileError(msg, place, "give the model as .npz or as a PyTorch checkpoint, which keep the order")
    sizes = [math.prod(one.array.shape) for one in fitting[0]]
    split = [
        replace(one, array=_part(vector, one.array, end - size, end), gradient=True, meaning=None)
        for one, size, end in zip(fitting[0], sizes, accumulate(sizes), strict=True)
    ]
    return [*model, *split]


def _part(vector: NamedArray, parameter: NamedArray, start: int, end: int) -> NamedArray:
    """Return the gradient of one parameter."""
    return replace(
        vector,
        name=parameter.name,
        shape=parameter.shape,
        load=partial(_reshaped, vector, start, end, parameter.shape),
    )


def _reshaped(vector: NamedArray, start: int, end: int, shape: tuple[int, ...]) -> Any:
    return vector[start:end].reshape(shape)
