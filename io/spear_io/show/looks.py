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
from ..files.storage import Floats, Rows, row_blocks
from .normalisation import Normalisation, normalisation_of

MOST_COLUMNS = 64
"""Features that a table without names may have; more of them are drawn as a curve."""
SLACK = 0.05
"""How far pixels may lie outside of their range, as a share of it, for the range to be taken for theirs."""
BULK = (1.0, 99.0)
"""Percentiles of the pixels of an input between which they must lie in the range: single ones need not."""
RANGES = ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0))
"""Ranges that pixels usually have."""
FILLED = 0.25
"""Share of a usual range that the values must take up to be drawn on it.

Definition: fewer would leave fewer than 6 of the 8 bits of a picture to what is in it; values from 0 to 16, as those of scikit-learn's
digits, have 4 on 0 to 255, and come out black.
"""
FAR_OUT = 3.0
"""Distances of the quartiles beyond them from which an input does not count for the range: one wrong one must not turn all others black.

Definition: Tukey's "far out" (Exploratory Data Analysis, 1977, section 2E), of the lowest and highest values of all inputs.
"""
DIGITS = 4
"""Digits of its width to which a range that no one states is rounded: less than a step of grey, and no rounding error is shown."""


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


class Basis(StrEnum):
    """Why pictures are drawn on a range."""

    ASKED = "as asked for"
    STATED = "the range of the inputs that the file states"
    USUAL = "the usual range of pixels that the values of this layer fit"
    OWN = "the lowest and the highest value of this layer"


@dataclass(frozen=True)
class Tones:
    """What is black and what is white in all pictures of a layer, in the units that are shown."""

    low: float
    high: float
    basis: Basis

    def __str__(self) -> str:
        """The range and why it is that: "0 is black and 16 is white: the lowest and …"."""
        return f"{self.low:.10g} is black and {self.high:.10g} is white: {self.basis}"


EACH_ITS_OWN = (
    "the scale of the inputs is not known, so each is drawn from its own lowest value to its own highest"
)
"""What is said of pictures without `Tones`."""


def tones_of(recovered: RecoveredLayer, look: Look) -> Tones | None:
    """Return the range on which the pictures of a layer are drawn, the same for all of them.

    That is the range which the file states, else a usual one that the values fit and take up, else their own. None if the scale of the
    inputs is not known: then no range holds for two of them.
    """
    stated = recovered.details.data_range
    if stated is not None and stated[0] < stated[1]:
        ends = look.in_units(np.repeat(np.asarray(stated)[:, None], recovered.inputs.shape[1], axis=1))
        return Tones(float(np.min(ends)), float(np.max(ends)), Basis.STATED)
    return tones_by_values(recovered.inputs, look) if recovered.scale_known else None


def tones_by_values(rows: Rows, look: Look) -> Tones:
    """Likewise of `rows` (k, n) of which no file states the range; all are read, block by block."""
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = row_blocks(rows.shape) if rows.shape[1] else ()
        extremes = [_extremes(look.in_units(rows[block, :])) for block in blocks]
        if not extremes:
            return Tones(*RANGES[0], Basis.USUAL)
        found = np.concatenate(extremes, axis=1)
        first, third = np.percentile(found[[0, 3]], (25.0, 75.0))
        reach = FAR_OUT * (third - first)
        usual = (found[0] >= first - reach) & (found[3] <= third + reach)
    low, bulk_low, bulk_high, high = found[:, usual] if np.any(usual) else found
    darkest, brightest = float(np.min(low)), float(np.max(high))
    for least, most in RANGES:
        slack = SLACK * (most - least)
        fits = least - slack <= np.min(bulk_low) and np.max(bulk_high) <= most + slack
        if fits and min(brightest, most) - max(darkest, least) >= FILLED * (most - least):
            return Tones(least, most, Basis.USUAL)
    return Tones(*_rounded(darkest, brightest), Basis.OWN)


def _rounded(low: float, high: float) -> tuple[float, float]:
    """The ends of a range to `DIGITS` of its width; a range of no width gets one."""
    width = high - low
    if not 0 < width < math.inf:
        return low, low + max(1.0, abs(low))
    decimals = DIGITS - 1 - math.floor(math.log10(width))
    return round(low, decimals) + 0.0, round(high, decimals) + 0.0


def _extremes(values: Floats) -> Floats:
    """(4, k): lowest value, both ends of the bulk, and highest value of every input (k, n)."""
    low, bulk_low, bulk_high, high = np.percentile(values, (0.0, *BULK, 100.0), axis=1)
    return np.stack([low, bulk_low, bulk_high, high])


def own_range(values: Floats) -> tuple[float, float]:
    """Return the range of one picture."""
    low, high = float(np.min(values)), float(np.max(values))
    return (low, high) if high > low else (low, low + 1.0)


def read_rows(rows: Rows, which: Sequence[int], look: Look) -> Floats:
    """Return some rows (k, n) in the units of the data; only these are read, those that follow each other at once."""
    if not which:
        return np.zeros((0, rows.shape[1]))
    breaks = np.flatnonzero(np.diff(which) != 1) + 1
    runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(np.asarray(which), breaks)]
    return look.in_units(np.concatenate([rows[first:last, :] for first, last in runs]).astype(np.float64))
