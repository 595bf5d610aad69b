"""Two models instead of a gradient: what changed between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..problems import FileError, printable
from ..storage import Floats
from .names import understand
from .pairing import Given
from .source import NamedArray, Source


@dataclass(frozen=True)
class _Difference:
    """after − before, computed where it is sliced, in the precision of both."""

    before: NamedArray
    after: NamedArray

    def __getitem__(self, key: Any) -> Floats:
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # infinities are found and named when the dump is read
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
    there = {array.name: array for array in after.arrays}
    given = []
    for array in before.arrays:
        meaning = understand(array.name)
        if meaning.gradient:
            continue  # of another step
        given.append(Given(array))
        if meaning.reason is None:
            given.append(Given(_difference(array, there.get(array.name), after), gradient=True))
    return given


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
