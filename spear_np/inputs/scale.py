"""The scale of inputs that no bias_grad gives: what activation patterns and a known range of the data leave of it.

A direction and its input are found up to a factor s, and nothing in weight_grad tells it. Two things bound it: the input
turns on the units that its gradient says, ``sign(s · W x + bias)``, and its entries lie in the range of the data,
``low <= s · x <= high``. Each is an interval for s of either sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..answer.certificate import Certificate
from ..arrays import Array, HostArray
from ..backend.host import to_host
from ..directions.chance import MAX_CHANCE
from ..factors.factorize import Factors
from ..factors.layer import Layer
from ..factors.row_space import RowSpace
from ..factors.zero import is_zero, surely_nonzero
from .bounds import MAX_HIDDEN_ROW, preactivation_doubt
from .polytope import states_known
from .reconstruct import Reconstruction

DataRange = tuple[float, float]
LARGEST_NOISE = 0.3
"""Noise of an input, as a share of its largest entry, up to which its factor can be bounded.

Definition: as `ROW_TOLERANCE` of a whole batch.
"""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Factors for k inputs whose scale is unknown; host arrays."""

    factor: HostArray
    """(k,): what to multiply each input by, of either sign; ±1 where nothing bounds it."""
    freedom: HostArray
    """(k,): how far the true factor may be from it; infinite where nothing bounds it."""
    contradicting: int
    """Inputs whose activation pattern contradicts every factor."""
    caveats: tuple[str, ...]
    """How the factors were chosen, and what that assumes."""

    def applied(self, certificate: Certificate, input_max: HostArray) -> Certificate:
        """Return the certificate of the scaled inputs, whose largest entries were `input_max` (k,).

        The new bound is the scaled old bound plus the uncertainty of the factor.
        """
        noise = np.asarray(certificate.error_bound)
        with np.errstate(invalid="ignore"):
            bound = np.abs(self.factor) * noise + self.freedom * (input_max + noise)
        return replace(
            certificate,
            error_bound=tuple(float(e) for e in np.where(np.isnan(bound), math.inf, bound)),
            caveats=(*certificate.caveats, *self.caveats),
        )


@dataclass(frozen=True, eq=False)
class _Allowed:
    """Factors of one sign that the data allows for k inputs; their magnitudes."""

    low: HostArray
    """(k,)."""
    high: HostArray
    """(k,), infinite without a bound; nothing is allowed where it is below `low`."""
    fills: HostArray
    """(k,): factor with which the input as it is reaches an end of the range; infinite without a range."""
    misses: HostArray
    """(k,): units that contradict every such factor."""


def choose_scale(
    factors: Factors,
    q: Array,
    batch: Reconstruction,
    certificate: Certificate,
    data_range: DataRange | None,
) -> Scaling | None:
    """Choose the factors of the inputs of a batch; None where nothing bounds them, or bias_grad has told them.

    With a range of the data, the largest factor that it allows: right for every input that reaches an end of the range.
    Where the activation pattern rules that out, or without a range, the middle of what is allowed.

    Parameters
    ----------
    q : (k, b)
        Directions of the inputs.
    batch : Reconstruction
        Of the k inputs.
    certificate : Certificate
        Noise of each input, and whether its direction is that of an input.
    data_range : (low, high), optional
        Every entry of every input lies in it.
    """
    with_pattern = factors.layer is not None and bool(factors.space.xp.any(factors.layer.bias != 0))
    if factors.bias_grad is not None or (data_range is None and not with_pattern):
        return None
    noise = np.asarray(certificate.error_bound, dtype=np.float64)
    # Noise that nothing bounds leaves the factor unbounded too, but not without an estimate.
    known = np.minimum(noise, LARGEST_NOISE * to_host(batch.input_max))
    by_sign = [_allowed(factors, q, batch, known, data_range, sign) for sign in (1.0, -1.0)]
    sign = _chosen_sign(*by_sign)
    allowed, other = _by_row(sign, *by_sign), _by_row(-sign, *by_sign)
    # A pattern that no factor explains gives way to the range.
    low, high = allowed.low, allowed.high
    trusted = (allowed.misses == 0) | (data_range is None)
    middle = trusted & (allowed.fills > high)
    estimate = np.where(middle, _middle(low, high), np.maximum(allowed.fills, low))
    fits = (low < high) & np.isfinite(estimate) & (estimate > 0)
    factor = np.where(fits, estimate, 1.0)
    freedom = np.maximum(high - factor, factor - low)
    opposite = (other.misses == 0) & (other.low < other.high)
    freedom = np.where(opposite, np.maximum(freedom, factor + other.high), freedom)
    # A wrong direction shows in its own pattern, but shifts the inputs of the others too.
    consistent = bool(np.all(allowed.misses == 0))
    sure = fits & consistent & (known == noise)
    # The pattern of a wrong direction says nothing of the input, even if that is right.
    sure &= (np.asarray(certificate.redundancy) >= 1) & (
        np.asarray(certificate.false_probability) <= MAX_CHANCE
    )
    if factors.layer is not None:
        sure &= _silent_shares(factors.space, factors.layer, q, batch, sign * factor) <= MAX_HIDDEN_ROW
    caveats = _caveats(factors, data_range, fits, fits & middle, allowed.misses)
    freedom = np.where(sure, freedom, math.inf)
    return Scaling(sign * factor, freedom, int(np.sum(allowed.misses > 0)), caveats)


def _allowed(
    factors: Factors,
    q: Array,
    batch: Reconstruction,
    noise: HostArray,
    data_range: DataRange | None,
    sign: float,
) -> _Allowed:
    """Magnitudes of factors of one `sign` that activation patterns and range of the data allow; `noise` (k,) finite."""
    k = q.shape[0]
    low, high, fills = np.zeros(k), np.full(k, math.inf), np.full(k, math.inf)
    misses = np.zeros(k, dtype=np.int64)
    if factors.layer is not None:
        low, high, misses = _by_pattern(factors.space, factors.layer, q, batch, noise, sign)
    if data_range is not None:
        ends = np.stack([to_host(batch.input_high), -to_host(batch.input_low)])
        largest = ends if sign > 0 else ends[::-1]
        limit = np.array([data_range[1], -data_range[0]])[:, None]
        inner = largest - noise
        from_range, to_range = _half_line(-inner, limit)
        with np.errstate(divide="ignore", invalid="ignore"):
            fills = np.min(np.where(inner > 0, limit / largest, math.inf), axis=0)
        within = misses == 0
        low = np.maximum(np.where(within, low, 0.0), from_range.max(axis=0))
        high = np.minimum(np.where(within, high, math.inf), to_range.min(axis=0))
    return _Allowed(low, high, fills, misses)


def _by_pattern(
    space: RowSpace, layer: Layer, q: Array, batch: Reconstruction, noise: HostArray, sign: float
) -> tuple[HostArray, HostArray, HostArray]:
    """Lowest and highest magnitude with which most units are as the gradient says, (k,) each, and how many are not."""
    live, units = to_host(space.live), to_host(space.noise_units(q))
    bias = to_host(layer.bias)
    slope = sign * (to_host(batch.preactivation) - bias[:, None])[live].T
    bias, ceiling = bias[live], layer.ceiling
    doubt = to_host(preactivation_doubt(space, layer, batch, noise))[live].T
    ends = []
    for row in range(len(units)):
        known = states_known(units[row], ceiling=layer.has_ceiling)
        z, slack, start = slope[row][known], doubt[row][known], bias[known]
        on = surely_nonzero(units[row][known])
        below = _half_line(np.where(on, z, -z) + slack, np.where(on, start, -start))
        above = _half_line(slack - z, np.where(on, ceiling - start, math.inf))
        ends.append(_most_agreed(np.maximum(below[0], above[0]), np.minimum(below[1], above[1])))
    low, high, misses = (np.asarray(column) for column in zip(*ends, strict=True))
    return low, high, misses


def _silent_shares(
    space: RowSpace, layer: Layer, q: Array, batch: Reconstruction, factor: HostArray
) -> HostArray:
    """(k,): share of the units that the inputs turn on, scaled by `factor` (k,), which have no gradient."""
    bias = layer.bias[:, None]
    z = (batch.preactivation - bias) * space.device.float64(factor)[None, :] + bias
    on = to_host(space.live_of(layer.states(z)[0])).T
    silent = is_zero(to_host(space.noise_units(q)))
    shares: HostArray = np.sum(on & silent, axis=1) / np.maximum(np.sum(on, axis=1), 1)
    return shares


def _half_line(slope: HostArray, start: HostArray) -> tuple[HostArray, HostArray]:
    """Ends of the numbers s > 0 with ``slope s + start >= 0``; the upper one is zero or the lower infinite for none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = -start / slope
    low = np.where((start < 0) & (slope > 0), zero, np.where((start < 0) & (slope <= 0), math.inf, 0.0))
    high = np.where((slope < 0) & (start > 0), zero, np.where((slope < 0), 0.0, math.inf))
    return low, high


def _middle(low: HostArray, high: HostArray) -> HostArray:
    """Geometric mean of the ends of intervals of factors; half of the upper end where the lower one is zero."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(low > 0, np.sqrt(low) * np.sqrt(high), high / 2))


def _most_agreed(low: HostArray, high: HostArray) -> tuple[float, float, int]:
    """Ends of where most of the intervals of positive numbers overlap, and how many do not take part."""
    some = low < high
    starts, stops = np.sort(low[some]), np.sort(high[some])
    ends = np.unique(np.concatenate([[0.0], starts, stops]))
    ends = ends[np.isfinite(ends)]
    count = np.searchsorted(starts, ends, side="right") - np.searchsorted(stops, ends, side="right")
    best = np.flatnonzero(count == count.max())
    following = np.append(ends[1:], math.inf)
    return float(ends[best[0]]), float(following[best[-1]]), len(low) - int(count.max())


def _chosen_sign(positive: _Allowed, negative: _Allowed) -> HostArray:
    """(k,) ±1: the sign that fewer units contradict, else that with which the input fits and fills more of the range."""
    fewer = np.sign(negative.misses - positive.misses)
    fit = np.sign((positive.low < positive.high).astype(int) - (negative.low < negative.high))
    with np.errstate(invalid="ignore"):
        fuller = np.sign(np.nan_to_num(positive.fills - negative.fills))
    decided = np.where(fewer != 0, fewer, np.where(fit != 0, fit, fuller))
    return np.where(decided < 0, -1.0, 1.0)


def _by_row(sign: HostArray, positive: _Allowed, negative: _Allowed) -> _Allowed:
    """Return for each input what belongs to its `sign` (k,)."""
    names = ("low", "high", "fills", "misses")
    return _Allowed(*(np.where(sign > 0, getattr(positive, name), getattr(negative, name)) for name in names))


def _caveats(
    factors: Factors, data_range: DataRange | None, fits: HostArray, middle: HostArray, misses: HostArray
) -> tuple[str, ...]:
    """Say how the factors were chosen: where one `fits` (k,), is the `middle` (k,) of what is allowed, contradicts units."""
    k = len(fits)
    open_to = "error bounds allow for every scale that is possible"
    if data_range is None:
        caveats = [
            f"no check tells the scale of the inputs: it is the middle of what their activation patterns allow; {open_to}"
        ]
    else:
        low, high = data_range
        caveats = [
            (
                f"no check tells the scale of the inputs: it is the largest that the data range {low:g} to {high:g} "
                f"allows, right if an input reaches an end of that range, too large if not; {open_to}, if the range "
                "is right"
            )
        ]
        if np.any(middle):
            caveats.append(
                f"{int(np.sum(middle))} of {k} inputs cannot reach an end of the data range, by their activation "
                "patterns: their scale is the middle of what these allow"
            )
        if factors.layer is None:
            caveats.append(
                "without weight the sign of an input is taken to be that with which it fills more of the data range"
            )
    if np.any(misses):
        caveats.append(
            f"the activation patterns of {int(np.sum(misses > 0))} of {k} inputs contradict every scale: a direction may be "
            "wrong, or weight and bias are not those of the gradient, and nothing bounds any error"
        )
    if not np.all(fits):
        why = "no scale fits" if data_range is not None else "the activation pattern bounds no scale of"
        caveats.append(
            f"{why} {int(np.sum(~fits))} of {k} inputs: their columns of ∂L/∂Z keep unit length, and nothing bounds "
            "their errors"
        )
    return tuple(caveats)
