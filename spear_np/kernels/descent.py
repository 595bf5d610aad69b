"""What a step of the descent does to each start besides its two matrix products.

Shapes: k starts, ℓ rows, b coordinates; all arrays float32 and C-contiguous. Arrays that a function is said to overwrite may
hold anything afterwards; what it returns is its answer.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array
from ..backend import Device, between
from .source import WARP, launch, runs_kernels

TINY = 1e-30
"""Added to float32 lengths before dividing by them.

Derived: far below any length, and its inverse is a float32 number.
"""
LARGEST_SIGN_LOGIT = 60.0
"""Exponent beyond which a sign weight counts as zero.

Derived: exp(60) is a float32 number.
"""
WIDEST_BLOCK = 256
"""Threads that share one start, at most.

Heuristic: eight warps hide each other's waiting, and several such blocks fit one multiprocessor.
"""


def pull(device: Device, values: Array, weights: Array | None, width: float | None) -> Array:
    """(k, ℓ): how much each row pulls at each start, by the products `values` (k, ℓ), which are overwritten.

    The subgradient of ``Σ w |v|``, or with `width`, in means of |v| over the rows, of ``Σ w log(1 + |v| / width)``.
    """
    if runs_kernels(device, values):
        k, rows = values.shape
        arguments = (
            values,
            values if weights is None else weights,
            np.int32(rows),
            np.float32(width or 0.0),
            np.int32(weights is not None),
            np.float32(TINY),
        )
        launch(device, "descent_pull", k, _threads(rows), arguments)
        return values
    xp = device.xp
    size = xp.abs(values)
    # v / |v| is the sign, several times faster than xp.sign, and a product the mean.
    below = size
    if width is not None:
        # The subgradient of Σ log(1 + |v| / width) is sign(v) / (|v| + width), but for a factor.
        average = xp.full((size.shape[1], 1), width / size.shape[1], dtype=size.dtype, device=device.handle)
        below = size + size @ average
        below *= size
    below += TINY
    pulled = values / below
    if weights is not None:
        pulled *= weights
    return pulled


def soft_pattern(device: Device, values: Array, threshold: float) -> Array:
    """(k, ℓ): from -1, where a row's product is zero, over 0 at `threshold` means of all rows to 1 at two and beyond."""
    xp = device.xp
    if runs_kernels(device, values):
        k, rows = values.shape
        pattern = xp.empty_like(values)
        launch(
            device,
            "descent_pattern",
            k,
            _threads(rows),
            (values, pattern, np.int32(rows), np.float32(threshold)),
        )
        return pattern
    size = xp.abs(values)
    return between(xp, size / (threshold * xp.mean(size, axis=1, keepdims=True)) - 1, -1.0, 1.0)


def sign_weights(device: Device, z: Array, sharpness: float) -> Array:
    """(k, ℓ) between 0 and 1: small where the predicted pre-activations `z` (k, ℓ), which are overwritten, are large."""
    xp = device.xp
    if runs_kernels(device, z):
        k, rows = z.shape
        arguments = (
            z,
            np.int32(rows),
            np.float32(sharpness),
            np.float32(LARGEST_SIGN_LOGIT),
            np.float32(TINY),
        )
        launch(device, "descent_weights", k, _threads(rows), arguments)
        return z
    z *= sharpness / (xp.sqrt(xp.mean(z * z, axis=1, keepdims=True)) + TINY)
    return 1 / (1 + xp.exp(between(xp, z, -LARGEST_SIGN_LOGIT, LARGEST_SIGN_LOGIT)))


def move(device: Device, q: Array, gradient: Array, length: float) -> Array:
    """(k, b): the unit vectors `q` after a step of `length` radians along the sphere; both arguments are overwritten."""
    if runs_kernels(device, q):
        k, b = q.shape
        arguments = (q, gradient, np.int32(b), np.float32(length), np.float32(TINY))
        launch(device, "descent_move", k, _threads(b), arguments)
        return q
    xp = device.xp
    gradient -= xp.vecdot(gradient, q)[:, None] * q
    gradient *= length / (xp.sqrt(xp.vecdot(gradient, gradient)) + TINY)[:, None]
    moved = q - gradient
    moved /= xp.sqrt(xp.vecdot(moved, moved))[:, None]
    return moved


def _threads(entries: int) -> int:
    """Whole warps, no more than there are entries for, and no more than `WIDEST_BLOCK`."""
    return min(WIDEST_BLOCK, WARP * -(-entries // WARP))
