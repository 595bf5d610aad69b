"""How far an input may be off: by the noise of the gradient, and in its pre-activations."""

from __future__ import annotations

import math

import numpy as np

from ..arrays import Array, HostArray
from ..backend.host import to_host
from ..directions.uniqueness import Uniqueness
from ..factors.layer import Layer
from ..factors.row_space import RowSpace
from ..factors.zero import ZERO_SIGMAS
from .reconstruct import Reconstruction

FORWARD_ROUNDING = 2.0**-24
"""Unit roundoff of the forward pass, at most.

Definition: it accumulates in float32 or better.
"""
FORWARD_ERRORS = 4.0
"""Roundings by which a pre-activation may be off, in units of the norms of weight and input.

Derived: errors of products that are summed in any order grow with the root of their number, less than the norms do.
"""
MAX_HIDDEN_ROW = 0.2
"""Largest share of the units that an input turns on, without visible gradient, with which it is handed out.

Heuristic: noise hides a few per cent, dropout half.
"""


def noise_bound(
    space: RowSpace,
    recovery: Array,
    input_max: HostArray,
    scale_variance: HostArray,
    unique: Uniqueness,
    *,
    largest: HostArray | None = None,
) -> HostArray:
    """(k,): six standard deviations of the largest error of each input, in units of the inputs.

    First order: ``δX = -E X + R N`` with E the mixing of directions by the noise of their zero rows, which also
    shifts the scales by its row sums, and R N the noise of weight_grad seen through the recovery matrix.

    Parameters
    ----------
    recovery : (k, m)
        Inputs are recovery · weight_grad.
    input_max, scale_variance : (k,)
        Largest absolute entry of each input, relative variance of its scale.
    unique : Uniqueness
        Of the directions (k, b), asked about the inputs.
    largest : (m,), optional
        Largest entry of each row of weight_grad that the inputs leave: noise may be in few entries.
    """
    if space.batch_size == 1 and space.hidden_input_factor > 1:
        # Another reading shows a second input: this one may be the mean of both, and no zeros tell.
        return np.full(len(input_max), math.inf)
    power = input_max**2
    with np.errstate(invalid="ignore", over="ignore"):
        mixing = np.where(np.eye(len(power), dtype=bool), 0.0, unique.mixing)  # its own share is its scale
        mixed = mixing @ power + mixing.sum(axis=1) * power
    scale = scale_variance * power
    noise = to_host(space.noise)
    if largest is not None:
        noise = np.maximum(noise, largest / ZERO_SIGMAS)
    direct = np.sum((to_host(recovery) * noise) ** 2, axis=1)
    bound: HostArray = np.nan_to_num(
        ZERO_SIGMAS * space.hidden_input_factor * np.sqrt(mixed + scale + direct),
        nan=math.inf,
        posinf=math.inf,
    )
    return bound


def preactivation_doubt(
    space: RowSpace, layer: Layer, batch: Reconstruction, input_error: HostArray
) -> Array:
    """(m, k): how far pre-activations may be off by rounding, and by the errors of the inputs, `input_error` (k,) at most."""
    unit = min(space.unit_roundoff, FORWARD_ROUNDING)
    spread = FORWARD_ERRORS * unit * batch.input_norm + space.device.float64(input_error)
    return layer.weight_norm[:, None] * spread[None, :]
