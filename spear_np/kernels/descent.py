"""What a step of the descent does to each start besides its two matrix products.

Shapes: s problems side by side, of each k starts, ℓ rows, b coordinates; all arrays float32 and C-contiguous. Problems of fewer rows or
coordinates have zeros in their place, which stay without effect; numbers that each has for itself are (s, 1, 1). Arrays that a function is said to overwrite may hold
anything afterwards; what it returns is its answer.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array, Namespace
from ..backend.algebra import between
from ..backend.devices import Device
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


def pull(device: Device, values: Array, weights: Array | None, width: Array | None) -> Array:
    """(s, k, ℓ): how much each row pulls at each start, by the products `values` (s, k, ℓ), which are overwritten.

    The subgradient of ``Σ w |v|``, or with `width`, in sums of |v| over the rows, of ``Σ w log(1 + |v| / width)``.
    """
    if runs_kernels(device, values):
        starts, rows = values.shape[1:]
        arguments = (
            values,
            values if weights is None else weights,
            values if width is None else width,
            np.int32(starts),
            np.int32(rows),
            np.int32(weights is not None),
            np.int32(width is not None),
            np.float32(TINY),
        )
        launch(device, "descent_pull", values.shape[0] * starts, _threads(rows), arguments)
        return values
    xp = device.xp
    size = xp.abs(values)
    # v / |v| is the sign, several times faster than xp.sign, and a product the mean.
    below = size
    if width is not None:
        # The subgradient of Σ log(1 + |v| / width) is sign(v) / (|v| + width), but for a factor.
        share = xp.empty((size.shape[0], size.shape[2], 1), dtype=size.dtype, device=device.handle)
        share[...] = width
        below = size + size @ share
        below *= size
    below += TINY
    pulled = values / below
    if weights is not None:
        pulled *= weights
    return pulled


def soft_pattern(device: Device, values: Array, counts: Array, threshold: Array) -> Array:
    """(s, k, ℓ): from -1, where a row's product is zero, over 0 at `threshold` means of all rows to 1 at two and beyond.

    `counts` are the rows of each problem.
    """
    xp = device.xp
    if runs_kernels(device, values):
        starts, rows = values.shape[1:]
        pattern = xp.empty_like(values)
        arguments = (values, pattern, counts, threshold, np.int32(starts), np.int32(rows))
        launch(device, "descent_pattern", values.shape[0] * starts, _threads(rows), arguments)
        return pattern
    size = xp.abs(values)
    level = threshold * _means(xp, size, counts)
    return between(xp, size / level - 1, -1.0, 1.0)


def sign_weights(device: Device, z: Array, counts: Array, sharpness: Array) -> Array:
    """(s, k, ℓ) between 0 and 1: small where the predicted pre-activations `z` (s, k, ℓ), which are overwritten, are large.

    `counts` are the rows of each problem, `sharpness` is in units of their root mean square.
    """
    xp = device.xp
    if runs_kernels(device, z):
        starts, rows = z.shape[1:]
        arguments = (
            z,
            counts,
            sharpness,
            np.int32(starts),
            np.int32(rows),
            np.float32(LARGEST_SIGN_LOGIT),
            np.float32(TINY),
        )
        launch(device, "descent_weights", z.shape[0] * starts, _threads(rows), arguments)
        return z
    z *= sharpness / (xp.sqrt(_means(xp, z * z, counts)) + TINY)
    return 1 / (1 + xp.exp(between(xp, z, -LARGEST_SIGN_LOGIT, LARGEST_SIGN_LOGIT)))


def move(device: Device, q: Array, gradient: Array, length: Array) -> Array:
    """(s, k, b): the unit vectors `q` after a step of `length` radians along the sphere; both arrays are overwritten."""
    if runs_kernels(device, q):
        starts, b = q.shape[1:]
        arguments = (q, gradient, length, np.int32(starts), np.int32(b), np.float32(TINY))
        launch(device, "descent_move", q.shape[0] * starts, _threads(b), arguments)
        return q
    xp = device.xp
    gradient -= xp.vecdot(gradient, q)[..., None] * q
    gradient *= length / (xp.sqrt(xp.vecdot(gradient, gradient)) + TINY)[..., None]
    moved = q - gradient
    moved /= xp.sqrt(xp.vecdot(moved, moved))[..., None]
    return moved


def _means(xp: Namespace, values: Array, counts: Array) -> Array:
    """(s, k, 1): means over the `counts` rows of each problem."""
    return xp.sum(values, axis=2, keepdims=True) / counts


def _threads(entries: int) -> int:
    """Whole warps, no more than there are entries for, and no more than `WIDEST_BLOCK`."""
    return min(WIDEST_BLOCK, WARP * -(-entries // WARP))
