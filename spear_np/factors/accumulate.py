"""One pass over the columns of weight_grad and W: what is left of them does not grow with their number."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..arrays import Array
from ..backend.algebra import triangular_factor
from ..backend.devices import Device
from ..backend.work import narrowing
from ..errors import InputError
from .gradients import LayerGradients, fits_precision, narrower_precisions, spacing_of
from .memory import check_memory

SUBNORMALS_SHOW = "float16"
"""The precision whose smallest numbers are no smaller than gradients are: below 6e-5 they are 6e-8 apart, before any scale."""
LARGEST = 1e100
"""Magnitude that no array may reach, nor its inverse.

Derived: products of three such numbers stay in the range of float64.
"""


@dataclass(frozen=True, eq=False)
class Accumulated:
    """What one pass over the columns leaves: nothing in it grows with n."""

    R: Array
    """(min(m, n), m): triangular factor (or the transpose itself), weight_grad = Rᵀ Qᵀ."""
    cross: Array | None
    """(m, m): W · weight_gradᵀ."""
    weight_squares: Array | None
    """(m,): squared norms of the rows of W."""
    used_features: int
    """Columns of weight_grad that are not zero throughout: its rank cannot exceed them."""
    precision: str
    """What the entries of weight_grad were rounded to, by their digits."""
    spacing: float
    """Distance of the smallest numbers of that precision, as weight_grad shows it; zero where it cannot matter."""
    row_norm: Array
    """(m,): norms of the rows of weight_grad."""
    rounded_norm: Array
    """(m,): norms of the rows that were rounded: with what weight decay adds to them."""


def accumulate(gradients: LayerGradients, device: Device, *, with_weight: bool) -> Accumulated:
    """Reduce weight_grad to its triangular factor by blocked QR, and multiply W into it on the way.

    Householder QR is backward stable column by column, here row by row of weight_grad: a row of small
    gradients keeps its full relative precision, which a Gram matrix in float64 would not give.
    """
    check_memory(gradients.shape, device, with_weight=with_weight)
    return narrowing(
        device, gradients.shape[0], lambda: _accumulated(gradients, device, with_weight=with_weight)
    )


def _accumulated(gradients: LayerGradients, device: Device, *, with_weight: bool) -> Accumulated:
    """`accumulate`, with blocks of one size."""
    xp = device.xp
    m, _ = gradients.shape
    decayed = gradients.decay.weight != 0
    names = ["weight_grad", *(["weight"] if with_weight else []), *(["update"] if decayed else [])]
    R: Array | None = None
    cross: Array | None = None
    squares: Array | None = None
    rounded: Array | None = None
    used = 0
    sizes = [0.0] * len(names)
    narrower = narrower_precisions(gradients.precision_name)
    spacing = math.inf
    for columns, blocks in gradients.blocks(*names, device=device):
        for name, block in zip(names, blocks, strict=True):
            if not bool(xp.all(xp.isfinite(block))):
                msg = f"`{name}` holds NaN or infinity in columns {columns.start} to {columns.stop - 1}"
                raise InputError(msg)
        sizes = [max(old, float(xp.max(xp.abs(block)))) for old, block in zip(sizes, blocks, strict=True)]
        for name, largest in zip(names, sizes, strict=True):
            check_size(name, max(largest, 1.0))  # how small it is shows in the end
        rounded_block = blocks[-1 if decayed else 0]
        narrower = [name for name in narrower if fits_precision(xp, rounded_block, name)]
        if SUBNORMALS_SHOW in (gradients.precision_name, *narrower):
            spacing = spacing_of(xp, rounded_block, spacing)
        used += int(xp.sum(xp.astype(xp.any(blocks[0] != 0, axis=0), xp.int64)))
        stacked = blocks[0].T if R is None else xp.concat([R, blocks[0].T], axis=0)
        R = stacked if stacked.shape[0] <= m else triangular_factor(xp, stacked)
        if with_weight:
            product = blocks[1] @ blocks[0].T
            cross = product if cross is None else cross + product
            norms = xp.sum(blocks[1] ** 2, axis=1)
            squares = norms if squares is None else squares + norms
        if decayed:
            norms = xp.sum(blocks[-1] ** 2, axis=1)
            rounded = norms if rounded is None else rounded + norms
    for name, largest in zip(names, sizes, strict=True):
        check_size(name, largest)
    assert R is not None  # a matrix has at least one block
    precision = (narrower or [gradients.precision_name])[0]
    spacing = spacing if precision == SUBNORMALS_SHOW and math.isfinite(spacing) else 0.0
    row_norm = xp.linalg.vector_norm(R, axis=0)
    rounded_norm = row_norm if rounded is None else xp.sqrt(rounded)
    return Accumulated(R, cross, squares, used, precision, spacing, row_norm, rounded_norm)


def check_size(name: str, largest: float) -> None:
    """Refuse numbers whose squares leave the range of float64."""
    if largest != 0 and not 1 / LARGEST < largest < LARGEST:
        msg = (
            f"the largest entry of `{name}` has the magnitude {largest:.1e}, which leaves no room for arithmetic: multiply "
            "weight_grad and bias_grad by one factor, or weight and bias, so that they are nearer to one"
        )
        raise InputError(msg)
