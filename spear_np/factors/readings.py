"""What the singular values of weight_grad may say of its rank: whitened by the noise of rounding, or by equal noise.

The most plausible reading comes first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import array_api_compat

from ..arrays import Array, Namespace
from ..backend.algebra import TINIEST
from ..backend.devices import Device
from ..backend.host import to_host
from .accumulate import Accumulated
from .gradients import LayerGradients
from .rank import (
    RANK_GAP,
    Spectrum,
    additive_rank,
    excess_over_noise,
    gap_rank,
    in_all_rows,
    plausible_ranks,
    rounding_rank,
    spectrum_at,
)
from .singular import singular_values, thin_svd

BEYOND_DOUBT = 100.0
"""Drop in the singular values that leaves hardly another rank to consider.

Heuristic: far above any drop that noise shows; it only saves time, see `LARGE_LAYER`.
"""
LARGE_LAYER = 1000
"""Units from which a second decomposition takes so long that it is not tried for the sake of another rank beside one
that is beyond doubt.

Heuristic: an SVD of that size takes about a second.
"""


@dataclass(frozen=True, eq=False)
class RankReading:
    """One reading of the singular values, and the decomposition that it rests on."""

    spectrum: Spectrum
    rows: Array
    """weight_grad in the basis of its triangular factor, each row divided by `model`."""
    model: Array
    """(m,): noise of one entry of each row, as far as it is known before it is measured."""
    values: Array
    """Singular values of `rows`, largest first."""
    known: Array | None = None
    """Left singular vectors of `rows`, as columns, where they were computed with the values."""

    @property
    def left(self) -> Array:
        """Left singular vectors of `rows`, as columns; they take three times as long as the values, and only what is chosen needs them."""
        xp: Namespace = array_api_compat.array_namespace(self.rows)
        return thin_svd(xp, self.rows).U if self.known is None else self.known


def rank_readings(
    accumulated: Accumulated, gradients: LayerGradients, device: Device
) -> tuple[list[RankReading], list[RankReading]]:
    """Whiten by a noise model, decompose, find the rank; returns the readings, the most plausible first, and doubted ones.

    Rounding (noise in proportion to each row) is doubted without a clear gap; equal additive noise, or a gap, come after it.
    """
    m, n = gradients.shape
    row_norm = accumulated.rounded_norm
    if float(device.xp.max(accumulated.row_norm)) == 0:
        nothing = Spectrum((0.0,) * min(m, n), 0, math.inf, rounding=True)
        return [RankReading(nothing, accumulated.R.T, device.xp.ones_like(row_norm), device.zeros(0))], []
    rounding = _read_rounding(accumulated, gradients, device, row_norm)
    rank, gap = rounding.spectrum.rank, rounding.spectrum.gap
    if rank is not None and gap > BEYOND_DOUBT and m > LARGE_LAYER:
        sure = replace(rounding.spectrum, plausible=(rank, rank), rank_at_least=rank)
        return [replace(rounding, spectrum=sure)], []
    clear = rank is not None and gap > RANK_GAP
    others = [
        reading
        for reading in _read_noise(accumulated, gradients, device, accumulated.row_norm)
        if not clear or reading.spectrum.rank != rank
    ]
    if clear:
        return _in_order([rounding, *others]), []
    return _in_order(others or [rounding]), [rounding]


def _read_rounding(
    accumulated: Accumulated, gradients: LayerGradients, device: Device, row_norm: Array
) -> RankReading:
    """As if all noise were rounding: of each entry by its size times the unit roundoff.

    Or by half the distance of the smallest numbers of the precision, if that is more: it hides small rows, of norm
    `row_norm` (m,), and adds up over them.
    """
    xp, n = device.xp, gradients.shape[1]
    ones = xp.ones_like(row_norm)
    unit = gradients.unit_roundoff / math.sqrt(n)
    least = ones * (float(xp.max(row_norm)) * TINIEST)
    relative = xp.where(row_norm > 0, xp.maximum(row_norm, least) * unit, ones)
    live = int(xp.sum(xp.astype(row_norm > 0, xp.int64)))

    def rank_of(values: Array) -> int | None:
        """Rank by rounding of the singular `values`."""
        return rounding_rank(to_host(values), live, n, accumulated.used_features)

    half = accumulated.spacing / 2
    model = xp.where(row_norm > 0, xp.sqrt(relative**2 + half**2), ones) if half else relative
    rows = accumulated.R.T / model[:, None]
    svd = thin_svd(xp, rows)
    spectrum = spectrum_at(to_host(svd.S), rank_of(svd.S), rounding=True)
    if bool(xp.any((row_norm > 0) & (relative < half))):
        without = rank_of(singular_values(xp, accumulated.R.T / relative[:, None]))
        spectrum = replace(spectrum, spacing=accumulated.spacing, rank_without_spacing=without)
    return RankReading(spectrum, rows, model, svd.S, svd.U)


def _read_noise(
    accumulated: Accumulated, gradients: LayerGradients, device: Device, row_norm: Array
) -> list[RankReading]:
    """As if noise were of one size in all entries, independent or of no known kind; the smaller rank first."""
    xp, n = device.xp, gradients.shape[1]
    model = xp.ones_like(row_norm) * (float(xp.max(row_norm)) * gradients.unit_roundoff / math.sqrt(n))
    rows = accumulated.R.T / model[:, None]
    singular = singular_values(xp, rows)
    values = to_host(singular)
    live = int(xp.sum(xp.astype(row_norm > 0, xp.int64)))
    independent = additive_rank(values, live, accumulated.used_features)
    by_gap = gap_rank(values, gradients.unit_roundoff)
    readings = []
    for rank in sorted({b for b in (by_gap, independent) if b is not None}):
        spectrum = spectrum_at(values, rank, rounding=False)
        if rank != independent or not in_all_rows(values, rank, to_host(row_norm / model), n):
            excess = excess_over_noise(values, rank, live, n)
            spectrum = replace(spectrum, noise_known=False, noise_excess=excess)
        readings.append(RankReading(spectrum, rows, model, singular))
    return readings


def _in_order(readings: list[RankReading]) -> list[RankReading]:
    """The readings, each knowing how many follow and what all of them together allow."""
    first = readings[0].spectrum
    by_rounding = first.rank if first.rounding else None
    interval = plausible_ranks(*(reading.spectrum for reading in readings))
    return [
        replace(
            reading,
            spectrum=replace(
                reading.spectrum,
                plausible=interval,
                alternatives=len(readings) - 1 - number,
                rank_at_least=max(by_rounding or 0, reading.spectrum.rank or 0),
            ),
        )
        for number, reading in enumerate(readings)
    ]
