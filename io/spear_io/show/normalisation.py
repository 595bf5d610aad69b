"""From what a network is given back to the units of the data: normalisation undone, for people to look at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..files.display import Display
from ..files.sight import Seen, Sight
from ..files.storage import Floats, Rows, column_blocks
from ..problems import FileError, Place


@dataclass(frozen=True)
class Normalisation:
    """What was done to the data before the network saw it: input = (data - mean) / std, per feature or overall."""

    mean: Floats | float
    std: Floats | float

    def undone(self, inputs: Floats, columns: slice = slice(None)) -> Floats:
        """Return some `columns` of inputs (k, width) in the units of the data."""
        mean, std = self._of(columns)
        data: Floats = inputs * std + mean
        return data

    def done(self, data: Floats) -> Floats:
        """Return data (k, n) as the network sees it."""
        inputs: Floats = (data - self.mean) / self.std
        return inputs

    def std_of(self, columns: slice) -> Floats | float:
        """What errors in the inputs are multiplied by to be errors in the data."""
        return self._of(columns)[1]

    def _of(self, columns: slice) -> tuple[Floats | float, Floats | float]:
        mean, std = (value if isinstance(value, float) else value[columns] for value in (self.mean, self.std))
        return mean, std


def normalisation_of(display: Display, seen: Seen, features: int, place: Place) -> Normalisation | None:
    """Return how to get back to the data, if the layer sees the network's own inputs and the file says how.

    Raises
    ------
    FileError
        If the figures cannot be: not finite, or a `std` that is not positive.
    """
    mean, std, shape = display.input_mean, display.input_std, display.input_shape
    if seen.sight is not Sight.INPUTS or mean is None or std is None:
        return None
    if shape is not None and math.prod(shape) != features:
        return None
    if not all(math.isfinite(v) for v in mean) or not all(0 < v < math.inf for v in std):
        msg = "the attributes 'input_mean' and 'input_std' must be finite, and 'input_std' positive"
        raise FileError(msg, place, "correct them, or leave them out")
    means, stds = (_per_feature(values, shape, features) for values in (mean, std))
    return None if means is None or stds is None else Normalisation(means, stds)


def data_range_of(truth: Rows, pixels: Normalisation | None) -> float:
    """Range of the true inputs (b, n), the peak of every PSNR, in the units of the data; 1 if they are pixels between 0 and 1."""
    low, high = math.inf, -math.inf
    for columns in column_blocks(truth.shape):
        block = truth[:, columns].astype(np.float64)
        if pixels is not None:
            block = pixels.undone(block, columns)
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    if pixels is not None and low > -1e-3 and high < 1 + 1e-3:
        return 1.0
    return high - low or max(abs(high), 1.0)


def _per_feature(
    values: tuple[float, ...], shape: tuple[int, ...] | None, features: int
) -> Floats | float | None:
    """Spread one figure a channel over all features; None if it is not clear which is which."""
    if len(values) == 1:
        return float(values[0])
    if len(values) == features:
        return np.asarray(values)
    if shape is None or len(values) not in shape:
        return None
    axis = shape.index(len(values))  # channels first wins where both would fit
    spread = np.asarray(values).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.broadcast_to(spread, shape).reshape(-1)
