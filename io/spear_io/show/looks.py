"""How recovered inputs are looked at: as pictures, as a table or as curves, in the units of the data where they are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ..files.display import Display, image_axes
from ..files.inversion import RecoveredLayer
from ..files.sight import Seen, Sight
from ..files.storage import Floats, Rows
from .normalisation import Normalisation, normalisation_of

MOST_COLUMNS = 64
"""Features that a table without names may have; more of them are drawn as a curve."""
SLACK = 0.05
"""How far pixels may lie outside of their range, as a share of it, for the range to be taken for theirs."""
BULK = (1.0, 99.0)
"""Percentiles of pixels between which they must lie in the range: a wrong row need not."""
RANGES = ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0))
"""Ranges that pixels usually have."""


class Kind(StrEnum):
    """What an input is drawn as."""

    PICTURE = "picture"
    TABLE = "table"
    CURVE = "curve"


@dataclass(frozen=True)
class Look:
    """How the inputs of one layer are drawn."""

    kind: Kind
    shape: tuple[int, ...]
    """Of one input: with channels for a picture, (n,) for a table."""
    channel_axis: int
    """Of a picture: 0 or 2."""
    normalisation: Normalisation | None
    """How to get back to the units of the data."""
    names: tuple[str, ...]
    """Of the columns of a table."""

    def in_units(self, inputs: Floats) -> Floats:
        """Return inputs (k, n) in the units of the data, or as the layer sees them where those are not known."""
        values = inputs.astype(np.float64)
        return values if self.normalisation is None else self.normalisation.undone(values)

    def pictures(
        self, values: Floats, low: float, high: float
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Return values (k, n) as pixels (k, height, width, 1, 3 or 4), with `low` black and `high` white."""
        images = values.reshape(len(values), *self.shape)
        images = np.moveaxis(images, 1 + self.channel_axis, -1)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.nan_to_num((images - low) / (high - low))
        return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def look_of(recovered: RecoveredLayer) -> Look:
    """Return how the inputs of a layer are drawn, by what its file says of them.

    Raises
    ------
    FileError
        If the file states a normalisation that cannot be.
    """
    return look(recovered.display, recovered.seen, recovered.inputs)


def look(display: Display, seen: Seen, inputs: Rows) -> Look:
    """Return how `inputs` (k, n) are drawn that a layer has `seen`."""
    features = inputs.shape[1]
    normalisation = normalisation_of(display, seen, features, inputs.place)
    names = display.feature_names or ()
    named = seen.sight is not Sight.FEATURES and len(names) == features
    image = image_axes(display.input_shape) if seen.sight is not Sight.FEATURES else None
    if image is not None and math.prod(image[0]) == features:
        return Look(Kind.PICTURE, image[0], image[1], normalisation, ())
    if named:
        return Look(Kind.TABLE, (features,), 0, normalisation, names)
    if features <= MOST_COLUMNS and seen.sight is not Sight.FEATURES:
        return Look(Kind.TABLE, (features,), 0, normalisation, tuple(map(str, range(features))))
    return Look(Kind.CURVE, (features,), 0, normalisation, ())


def pixel_range(values: Floats) -> tuple[float, float] | None:
    """Return the usual range that pixels (k, n) have, or None if each picture has to be stretched to its own."""
    if not values.size:
        return RANGES[0]
    low, high = (float(v) for v in np.percentile(values, BULK))
    for least, most in RANGES:
        slack = SLACK * (most - least)
        fits = least - slack <= low and high <= most + slack
        if fits and (most != RANGES[1][1] or high > 2.0):
            return least, most
    return None


def own_range(values: Floats) -> tuple[float, float]:
    """Return the range of one picture."""
    low, high = float(np.min(values)), float(np.max(values))
    return (low, high) if high > low else (low, low + 1.0)


def read_rows(rows: Rows, which: Sequence[int], look: Look) -> Floats:
    """Return some rows (k, n) in the units of the data; each is read by itself, so that the rest is not."""
    if not which:
        return np.zeros((0, rows.shape[1]))
    return look.in_units(np.concatenate([rows[row : row + 1, :] for row in which]).astype(np.float64))
