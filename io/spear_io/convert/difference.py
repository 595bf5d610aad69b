"""Two models instead of a gradient: what changed between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..adapters.prefixes import AmbiguousNamesError, counterparts
from ..files.storage import Floats, row_blocks
from ..problems import FileError, Place, listing, printable
from .layers import FoundLayer, Part
from .names import MOMENT, understand_all
from .pairing import Given
from .source import NamedArray, Source

GRADIENTS: tuple[Part, ...] = ("weight_grad", "bias_grad")


@dataclass(frozen=True)
class _Difference:
    """after − before, computed where it is sliced, in the wider type of both."""

    before: NamedArray
    after: NamedArray
    dtype: np.dtype[Any]

    def __getitem__(self, key: Any) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are named when the dump is written
            change: Floats = self.after[key].astype(self.dtype) - self.before[key].astype(self.dtype)
            return change


def updates(before: Source, after: Source) -> list[Given]:
    """Return the arrays of the model before, and their changes as gradients.

    Differences of bfloat16 are float32, which holds them unrounded; all others keep the dtype of the models, the wider
    one if there are two.

    Raises
    ------
    FileError
        If the two are not states of one model.
    """
    if before.format != after.format:
        msg = f"is {after.format}, but the model before is {before.format}"
        raise FileError(msg, after.place, "give two files of the same kind, of the same model")
    if before.path.samefile(after.path):
        msg = "is the model before as well as after"
        raise FileError(msg, after.place, "give the model before and after the step")
    there = _counterparts(before, after)
    meanings = understand_all(array.name for array in before.arrays)
    given = []
    for array in before.arrays:
        meaning = meanings[array.name]
        if meaning.gradient:
            continue  # of another step
        given.append(Given(array, ordered=before.in_forward_order))
        if meaning.reason is None:
            difference = _difference(array, there.get(array.name), after)
            given.append(Given(difference, gradient=True, ordered=before.in_forward_order))
    return given


def only_after(before: Source, after: Source) -> dict[str, str]:
    """Return the arrays that only the model after has, and why they are not used."""
    matched = {array.name for array in _counterparts(before, after).values()}
    meanings = understand_all(array.name for array in after.arrays)
    return dict(after.skipped) | {
        array.name: MOMENT
        if meanings[array.name].reason == MOMENT and array.shape
        else "is only in the model after"
        for array in after.arrays
        if array.name not in matched
    }


def leave_out_unchanged(layers: Sequence[FoundLayer], place: Place) -> None:
    """Take the gradients from layers whose weights and biases are the same in both models.

    Raises
    ------
    FileError
        If that is all of them.
    """
    changed = False
    for layer in layers:
        gradients = [layer.parts[part] for part in GRADIENTS if part in layer.parts]
        if any(array[rows].any() for array in gradients for rows in row_blocks(array.shape)):
            changed = True
            continue
        for part in GRADIENTS:
            layer.parts.pop(part, None)
        layer.without_gradient = "is of a layer that did not change"
    if layers and not changed:
        msg = "the two models are equal: no layer changed"
        raise FileError(msg, place, "give the model before and after a step of training")


def two_precisions(before: Source, after: Source) -> list[str]:
    """Return what to say of models whose numbers were rounded in two ways; the coarser decides what is left of a step."""
    there = _counterparts(before, after)
    found = {
        (array.precision, other.precision)
        for array in before.arrays
        if (other := there.get(array.name)) and array.precision != other.precision
    }
    return [
        f"the model before is {first} and the model after {second}: the difference holds the rounding of the coarser "
        "of them, which may be larger than the step"
        for first, second in sorted(found)
    ]


def _counterparts(before: Source, after: Source) -> dict[str, NamedArray]:
    """Return the arrays of the model after by their names before, whatever wrappers have put before either."""
    there = {array.name: array for array in after.arrays}
    meanings = understand_all([array.name for array in before.arrays])
    used = [name for name, meaning in meanings.items() if meaning.reason is None]
    try:
        meant = counterparts(used or meanings, there)
    except AmbiguousNamesError as error:
        msg = (
            "the names of the two models fit in several ways: without "
            f"{listing(error.choices)} before those of one"
        )
        raise FileError(msg, after.place, "give files of one model each") from error
    same = {name: name for name in meanings if name in there}
    return {name: there[other] for name, other in (same | meant).items()}


def _difference(before: NamedArray, after: NamedArray | None, source: Source) -> NamedArray:
    what = f"'{printable(before.name)}'"
    if after is None:
        msg = f"has no array {what}, which the model before has"
        raise FileError(msg, source.place, "give two states of the same model")
    if before.shape != after.shape:
        msg = f"{what} has shape {after.shape}, but {before.shape} in the model before"
        raise FileError(msg, source.place, "give two states of the same model")
    precision = np.promote_types(before.dtype, after.dtype).name
    load = partial(_Difference, before, after, np.dtype(precision))
    return replace(after, name=before.name, precision=precision, load=load, transposed=False)
