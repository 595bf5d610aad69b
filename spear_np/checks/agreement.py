"""Gradient and layer, unit by unit: where a gradient is, where the recovered input turns a unit on, and how far both agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.host import to_host
from ..factors.factorize import Factors
from ..factors.row_space import RowSpace
from ..factors.zero import expected_hidden, is_nonzero, is_zero, surely_nonzero
from ..inputs.bounds import preactivation_doubt
from ..inputs.reconstruct import Reconstruction

SMALL = 0.01
"""Quantile that stands for the smallest non-zero entries of a column.

Heuristic: the smallest itself may be hidden by noise without making anything wrong.
"""


@dataclass(frozen=True, eq=False)
class Agreement:
    """Gradient and layer, entry by entry, summed up for each of k columns of ∂L/∂Z."""

    off: Array
    """(m, k) bool: live units without gradient that the layer leaves off (or, without W, without gradient)."""
    no_gradient: Array
    """(m, k) bool: live units without gradient."""
    agreement: HostArray
    """(k,) λ over decided units; NaN without W."""
    contradictions: HostArray
    """(k,) int: units with a gradient that the layer leaves off."""
    blatant: HostArray
    """(k,) int: those of them where the gradient is there for sure."""
    hidden: HostArray
    """(k,): share of the units that the layer turns on without visible gradient; 0 without W."""
    missing: HostArray
    """(k,) int: how many these are."""
    expected_missing: HostArray
    """(k,): how many of them noise is expected to hide, see `expected_hidden`."""
    decided: HostArray
    """(k,): share of the live units whose activation sign is beyond doubt."""
    gap: HostArray
    """(k,): 1 % quantile of the non-zero entries over the largest zero, in noise units."""


def compare_signs(factors: Factors, batch: Reconstruction, input_error: HostArray) -> Agreement:
    """Compare gradient and layer on the live units; `input_error` (k,) bounds the errors of the inputs."""
    space, layer, xp = factors.space, factors.layer, factors.space.xp
    units = xp.abs(space.columns(batch.directions)) / batch.deviation
    live = _live_mask(space)[:, None]
    has_gradient, no_gradient = is_nonzero(units) & live, is_zero(units) & live
    if batch.preactivation is None or layer is None or not factors.signs_known:
        nothing = np.zeros(units.shape[1])
        return Agreement(
            off=no_gradient,
            no_gradient=no_gradient,
            agreement=nothing * math.nan,
            contradictions=nothing.astype(np.int64),
            blatant=nothing.astype(np.int64),
            hidden=nothing,
            missing=nothing.astype(np.int64),
            expected_missing=nothing,
            decided=nothing,
            gap=_gaps(xp, units, has_gradient, no_gradient),
        )

    def total(mask: Array) -> HostArray:
        return to_host(xp.sum(xp.astype(mask, xp.int64), axis=0))

    layer_on, layer_off = layer.states(
        batch.preactivation, preactivation_doubt(space, layer, batch, input_error)
    )
    contradiction, hidden = has_gradient & layer_off, no_gradient & layer_on
    decided, off = total((layer_on | layer_off) & live), no_gradient & layer_off
    return Agreement(
        off=off,
        no_gradient=no_gradient,
        agreement=1 - (total(contradiction) + total(hidden)) / np.maximum(decided, 1),
        contradictions=total(contradiction),
        blatant=total(contradiction & surely_nonzero(units)),
        hidden=total(hidden) / np.maximum(total(layer_on & live), 1),
        missing=total(hidden),
        expected_missing=np.asarray([expected_hidden(column) for column in to_host(space.live_of(units)).T]),
        decided=decided / int(space.live.shape[0]),
        gap=_gaps(xp, units, has_gradient & layer_on, off),
    )


def _live_mask(space: RowSpace) -> Array:
    """(m,) bool: the live rows."""
    host = np.zeros(space.shape[0], dtype=bool)
    host[to_host(space.live)] = True
    return space.device.booleans(host)


def _gaps(xp: Namespace, units: Array, nonzero: Array, zero: Array) -> HostArray:
    """(k,): 1 % quantile of the entries (m, k) that are `nonzero` over the largest that is `zero`, in noise units.

    Infinite where none is non-zero; no zero counts as smaller than the noise itself.
    """
    largest = np.maximum(1.0, to_host(xp.max(xp.where(zero, units, xp.zeros_like(units)), axis=0)))
    gaps = np.full(units.shape[1], math.inf)
    for column, (values, chosen) in enumerate(zip(to_host(units).T, to_host(nonzero).T, strict=True)):
        if np.any(chosen):
            gaps[column] = float(np.quantile(values[chosen], SMALL)) / largest[column]
    return gaps
