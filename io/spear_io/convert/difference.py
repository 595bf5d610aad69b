"""Two models instead of a gradient: what changed between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..files.storage import Floats, row_blocks
from ..problems import FileError, Place, printable
from .layers import FoundLayer, Part
from .names import MOMENT, understand_all
from .pairing import Given
from .source import NamedArray, Source

GRADIENTS: tuple[Part, ...] = ("weight_grad", "bias_grad")


@dataclass(frozen=True)
class _Difference:
    """after − before, computed where it is sliced, in the precision of both."""

    before: NamedArray
    after: NamedArray

    def __getitem__(self, key: Any) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are named when the dump is written
            return self.after[key] - self.before[key]


def updates(before: Source, after: Source) -> list[Given]:
    """Return the arrays of the model before, and their changes as gradients.

    Differences of bfloat16 are float32, which holds them unrounded; all others keep the dtype of the models.

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
    counterparts = _counterparts(before, after)
    meanings = understand_all(array.name for array in before.arrays)
    given = []
    for array in before.arrays:
        meaning = meanings[array.name]
        if meaning.gradient:
            continue  # of another step
        given.append(Given(array))
        if meaning.reason is None:
            given.append(Given(_difference(array, counterparts.get(array.name), after), gradient=True))
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


def _counterparts(before: Source, after: Source) -> dict[str, NamedArray]:
    """Return the arrays of the model after by their names before; DataParallel puts `module.` before all names."""
    there = {array.name: array for array in after.arrays}
    names = [array.name for array in before.arrays]
    if there.keys().isdisjoint(names):
        bare = {_bare(name): array for name, array in there.items()}
        there = {name: bare[_bare(name)] for name in names if _bare(name) in bare}
    return {name: there[name] for name in names if name in there}


def _bare(name: str) -> str:
    return re.sub(r"(^|[./])module\.", r"\1", name)


def _difference(before: NamedArray, after: NamedArray | None, source: Source) -> NamedArray:
    what = f"'{printable(before.name)}'"
    if after is None:
        msg = f"has no array {what}, which the model before has"
        raise FileError(msg, source.place, "give two states of the same model")
    if (before.shape, before.precision) != (after.shape, after.precision):
        msg = (
            f"{what} is {after.precision} of shape {after.shape}, but {before.precision} of shape {before.shape} "
            "in the model before"
        )
        raise FileError(msg, source.place, "give two states of the same model")
    precision = "float32" if before.precision == "bfloat16" else before.precision
    return replace(after, precision=precision, load=lambda: _Difference(before, after), transposed=False)
