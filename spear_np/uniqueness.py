"""Do the zero rows of a direction determine it, and is any of them indispensable?

A combination of several inputs' directions can annul rows of its own only by a choice of its coefficients: each such
row is then indispensable to the rank of its zero rows, with leverage one among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .backend import gather, solve_or_nan, to_host
from .factorize import Factors, expand

Array = Any
HostArray = np.ndarray[Any, Any]

NUMERICALLY_NOTHING = 1e-12
"""Eigenvalue of a Gram matrix of orthonormal columns that float64 cannot tell from zero, with some margin."""
OPEN_ENERGY = 4.0
"""Mean square of the products of a direction with many rows, in noise units, that does not stand out of the noise."""
BLOCK_NUMBERS = 8_000_000
SPARE = 2
"""Zero rows beyond b - 1 that a direction needs to be relied on before the batch is whole."""


@dataclass(frozen=True)
class Uniqueness:
    """What the zero rows of each of k directions determine."""

    unique: HostArray
    """(k,) bool: rank b - 1, well above the noise."""
    redundancy: HostArray
    """(k,) int: rows that could be missing (lower bound)."""
    mixing: HostArray
    """(k, k): variance of the share of direction i in direction k, [i, k]; infinite where nothing bounds it."""


def uniqueness(factors: Factors, directions: Array, inputs: Array, off: Array) -> Uniqueness:
    """Rank, redundancy and error propagation of the zero rows of each direction.

    Parameters
    ----------
    directions : (k, b)
    inputs : (p, b)
        Dual vectors of the inputs whose error is asked for, in U-coordinates.
    off : (m, k) bool
        Zero rows of each direction.
    """
    xp = factors.xp
    off_live = xp.take(off, factors.live, axis=0).T
    k, live = off_live.shape
    b = factors.batch_size
    if b == 1:
        # Nothing can be mixed in: the single column is determined without any zero row.
        # Each live row alone is a multiple of the input.
        return Uniqueness(np.ones(1, dtype=bool), np.asarray([live - 1]), np.zeros((1, 1)))
    unique, redundancy, mixing = [], [], []
    step = max(1, BLOCK_NUMBERS // (live * b))
    for start in range(0, k, step):
        part = slice(start, min(start + step, k))
        block = _uniqueness_block(factors, directions[part, :], inputs, off_live[part, :])
        unique.append(block[0])
        redundancy.append(block[1])
        mixing.append(block[2])
    return Uniqueness(np.concatenate(unique), np.concatenate(redundancy), np.concatenate(mixing, axis=0).T)


def _uniqueness_block(
    factors: Factors, q: Array, inputs: Array, off: Array
) -> tuple[HostArray, HostArray, HostArray]:
    """For directions `q` (k, b) with zero rows `off` (k, ℓ): unique (k,), redundancy (k,), mixing (k, b)."""
    xp = factors.xp
    count = xp.sum(xp.astype(off, xp.int64), axis=1)
    most = max(1, int(xp.max(count)))
    order = xp.argsort(xp.astype(~off, xp.int8), axis=1, stable=True)[:, :most]
    used = xp.arange(most, device=factors.device.handle)[None, :] < count[:, None]
    count = xp.astype(xp.maximum(count, xp.ones_like(count)), xp.float64)
    rows = gather(xp, factors.U, order) * xp.astype(used, xp.float64)[:, :, None]
    H = xp.matrix_transpose(rows) @ rows
    # Lift the null direction itself, so that what remains is the complement.
    unit = q / xp.linalg.vector_norm(q, axis=1, keepdims=True)
    project = factors.device.eye(q.shape[1])[None, :, :] - unit[:, :, None] * unit[:, None, :]
    H = project @ H @ project + unit[:, :, None] * unit[:, None, :]
    inverse, open_space = _inverse_and_open(factors, H, count)
    unique = ~xp.any(xp.any(open_space != 0, axis=2), axis=1)
    pulled = rows @ inverse  # (k, most, b): H⁻¹ u_j, what row j alone could turn
    leverage = xp.clip(xp.sum(pulled * rows, axis=2), 0.0, 1.0)
    dispensable = (leverage < 0.5) | ~used
    spared = xp.all(dispensable, axis=1)
    if not bool(xp.all(spared)):
        left = (
            leverage
            * (1 - leverage)
            / xp.maximum(xp.sum((pulled / factors.S) ** 2, axis=2), xp.full_like(leverage, 1e-300))
        )
        shared = leverage < 1 - math.sqrt(NUMERICALLY_NOTHING)
        dispensable = dispensable | (shared & (left > 4 * count[:, None]))
        spared = xp.all(dispensable, axis=1)
    ordered = xp.flip(xp.sort(leverage, axis=1), axis=1)
    # Removing rows cannot lower the rank while their leverages sum to less than one.
    removable = xp.sum(xp.astype(xp.cumulative_sum(ordered, axis=1) < 1.0, xp.int64), axis=1)
    removable = xp.minimum(removable, xp.astype(count, xp.int64) - 1)
    redundancy = xp.where(spared, xp.maximum(removable, xp.ones_like(removable)), xp.zeros_like(removable))
    redundancy = xp.where(unique, redundancy, xp.zeros_like(redundancy))
    # Directions the zero rows leave open: what reaches an input through them is unbounded, the rest is not.
    mixing = xp.sum((inputs @ inverse) * inputs, axis=2)
    unbounded = xp.sum((inputs @ open_space) ** 2, axis=2)
    if not bool(xp.all(spared)):
        # What a single row holds in place may be a combination that annuls it by design: no bound through it.
        turned = xp.where(dispensable[:, :, None], xp.zeros_like(pulled), pulled)
        length = xp.linalg.vector_norm(turned, axis=2, keepdims=True)
        turned = turned / xp.where(length > 0, length, xp.ones_like(length))
        unbounded = unbounded + xp.max((turned @ inputs.T) ** 2, axis=1)
    mixing = mixing * (factors.noise_norm(q) ** 2)[:, None]
    mixing = xp.where(unbounded > 1e-12 * xp.sum(inputs**2, axis=1)[None, :], math.inf, mixing)
    return to_host(unique), to_host(redundancy), to_host(mixing)


def _inverse_and_open(factors: Factors, H: Array, count: Array) -> tuple[Array, Array]:
    """For Gram matrices `H` (k, b, b) of `count` (k,) rows: pseudo-inverses, and what the rows leave open.

    Noise alone would give a direction v the energy ``count · ‖v/S‖²``; rounding of the products gives it an energy
    near eps. Eigenvectors with no more than that are open: they are left out of the pseudo-inverse and are the
    non-zero columns of the second answer (k, b, b).
    """
    xp = factors.xp
    inverse = solve_or_nan(xp, H, xp.broadcast_to(factors.device.eye(H.shape[1])[None, :, :], H.shape))
    floor = xp.maximum(OPEN_ENERGY * count / xp.min(factors.S) ** 2, xp.full_like(count, NUMERICALLY_NOTHING))
    # ‖H⁻¹‖ bounds the least eigenvalue from below: nothing can be open where it is far above every noise.
    clear = xp.linalg.vector_norm(inverse, axis=(1, 2)) * floor < 0.5
    open_space = xp.zeros_like(H)
    if bool(xp.all(clear)):
        return inverse, open_space
    values, vectors = xp.linalg.eigh(H)
    values = xp.maximum(values, xp.full_like(values, 1e-30))
    noise = xp.sum((vectors / factors.S[None, :, None]) ** 2, axis=1) * count[:, None]
    open_ = values <= xp.maximum(OPEN_ENERGY * noise, xp.full_like(noise, NUMERICALLY_NOTHING))
    kept = xp.where(open_, xp.zeros_like(values), 1 / values)
    return (
        (vectors * kept[:, None, :]) @ xp.matrix_transpose(vectors),
        vectors * xp.astype(open_, xp.float64)[:, None, :],
    )


def lone_rows(factors: Factors, q: Array, zero_mask: HostArray) -> HostArray:
    """(k,) bool: which directions `q` (k, b) with zeros `zero_mask` (k, ℓ) may rest on a single row."""
    if not len(zero_mask) or factors.batch_size == 1:
        return np.zeros(len(zero_mask), dtype=bool)
    none = factors.device.zeros((1, factors.batch_size))
    off = expand(factors, factors.device.booleans(zero_mask))
    # Among thousands of null vectors one further row agrees by chance.
    few: HostArray = zero_mask.sum(axis=1) < factors.batch_size - 1 + SPARE
    return few | (uniqueness(factors, q, none, off).redundancy < 1)
