"""From weight_grad to its factors: rank, noise floor and coordinates, read once by blocks of columns.

The notation is that of `row_space`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import array_api_compat
import numpy as np

from ..arrays import Array, Namespace
from ..backend.algebra import TINIEST, triangular_factor
from ..backend.devices import Device
from ..backend.host import to_host
from ..backend.work import narrowing
from ..errors import InputError
from .decompose import sharp_row_space, sharp_svd
from .gradients import LayerGradients, fits_precision, narrower_precisions, spacing_of
from .layer import Layer
from .memory import check_memory
from .multiple import Multiple, multiple_of_weight
from .rank import (
    RANK_GAP,
    Spectrum,
    additive_rank,
    excess_over_noise,
    gap_rank,
    in_all_rows,
    noise_edge,
    plausible_ranks,
    rounding_rank,
    spectrum_at,
)
from .row_space import RowSpace
from .singular import singular_values, thin_svd
from .zero import ZERO_SIGMAS

SUBNORMALS_SHOW = "float16"
"""The precision whose smallest numbers are no smaller than gradients are: below 6e-5 they are 6e-8 apart, before any scale."""
ROUNDING_SAFETY = 3.0
"""Factor on the noise of rounding: it follows the size of the entries, so a direction that sees the large ones sees more than
the average residual tells.

Measured: factors stay below 3 on images.
"""
LARGEST = 1e100
"""Magnitude that no array may reach, nor its inverse.

Derived: products of three such numbers stay in the range of float64.
"""
BEYOND_DOUBT = 100.0
"""Drop in the singular values that leaves hardly another rank to consider.

Heuristic: far above any drop that noise shows; it only saves time, see `LARGE_LAYER`.
"""
LARGE_LAYER = 1000
"""Units from which a second decomposition takes so long that it is not tried for the sake of another rank beside one
that is beyond doubt.

Heuristic: an SVD of that size takes about a second.
"""
STANDS_OUT = 2.0
"""Multiple of what independent noise shows at most from which a singular value may be that of an input.

Heuristic: half-way between noise that is not quite independent and an input that would be noticed.
"""
ARITHMETIC = 6 * float(np.finfo(np.float64).eps)
"""Relative error of our own float64 products, the lowest noise a row can have.

Derived: six standard deviations of one rounding.
"""
LIVE_SIGMAS = 8.0
"""Standard deviations, in each of b coordinates, by which the norm of a live row exceeds its noise.

Heuristic: above `ZERO_SIGMAS`, so that a live row is likely to have a gradient in some column.
"""
PRIOR_WEIGHT = 10.0
"""Times that the median ratio to the noise model counts as seen in the noise of a row.

Heuristic: rows with few degrees of freedom lean on it, those with hundreds hardly notice.
"""
LEAST_VALUE = 1e-15
"""Share of the largest singular value that replaces those of zero.

Derived: below the rounding of float64 nothing is known of them, and nothing may be divided by zero.
"""


@dataclass(frozen=True, eq=False)
class Factors:
    """What is known of one layer: what weight_grad tells, what the layer makes of inputs, and bias_grad."""

    gradients: LayerGradients
    space: RowSpace
    layer: Layer | None
    """None without W."""
    bias_grad: Array | None
    """(m,) float64 on the device; None if missing."""
    multiple: Multiple | None = None
    """How much of W lies outside the spaces of weight_grad, beyond the decay that was taken out; None without W."""

    @cached_property
    def silent_bias(self) -> float:
        """Norm of bias_grad on the rows of weight_grad that are not live, in units of the largest noise of those that are.

        What noise does not explain of it is the gradient of inputs that are zero: they leave no other trace.
        """
        if self.bias_grad is None:
            return 0.0
        space, xp = self.space, self.space.xp
        silent = self.bias_grad - space.whole(space.live_of(self.bias_grad)[:, None])[:, 0]
        return float(xp.linalg.vector_norm(silent) / xp.max(space.live_of(space.noise)))

    @property
    def signs_known(self) -> bool:
        """Whether activation signs can be computed: W is there, and so is the scale unless there is no bias."""
        return self.layer is not None and (self.bias_grad is not None or self.gradients.bias is None)


@dataclass(frozen=True, eq=False)
class _Reading:
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


@dataclass(frozen=True, eq=False)
class _Accumulated:
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


def _accumulate(gradients: LayerGradients, device: Device, *, with_weight: bool) -> _Accumulated:
    """Reduce weight_grad to its triangular factor by blocked QR, and multiply W into it on the way.

    Householder QR is backward stable column by column, here row by row of weight_grad: a row of small
    gradients keeps its full relative precision, which a Gram matrix in float64 would not give.
    """
    check_memory(gradients.shape, device, with_weight=with_weight)
    return narrowing(
        device, gradients.shape[0], lambda: _accumulated(gradients, device, with_weight=with_weight)
    )


def _accumulated(gradients: LayerGradients, device: Device, *, with_weight: bool) -> _Accumulated:
    """`_accumulate`, with blocks of one size."""
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
            _check_size(name, max(largest, 1.0))  # how small it is shows in the end
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
        _check_size(name, largest)
    assert R is not None  # a matrix has at least one block
    precision = (narrower or [gradients.precision_name])[0]
    spacing = spacing if precision == SUBNORMALS_SHOW and math.isfinite(spacing) else 0.0
    row_norm = xp.linalg.vector_norm(R, axis=0)
    rounded_norm = row_norm if rounded is None else xp.sqrt(rounded)
    return _Accumulated(R, cross, squares, used, precision, spacing, row_norm, rounded_norm)


def spectrum_of(gradients: LayerGradients, device: Device) -> Spectrum:
    """Singular values and rank of weight_grad alone: what `survey` needs."""
    accumulated = _accumulate(gradients, device, with_weight=False)
    readings, _ = _decompose(accumulated, replace(gradients, precision=accumulated.precision), device)
    return readings[0].spectrum


def factorize(
    gradients: LayerGradients,
    device: Device,
    batch_size: int | None = None,
    *,
    reading: int = 0,
    weight_gram: Array | None = None,
) -> Factors | Spectrum:
    """Return the factors of `gradients` at the detected rank, or at `batch_size` if given.

    Returns the bare spectrum when there is no rank to work with (full rank or all zero). `reading` 0 is the most
    plausible reading of the singular values; there are `Spectrum.alternatives` more. Any activation will do. `weight_gram` is
    W Wᵀ (m, m), where somebody has it, for `Factors.multiple`.

    Raises
    ------
    InputError
        If an array holds NaN or infinity, or `batch_size` is impossible for the shape.
    """
    xp = device.xp
    m, n = gradients.shape
    if batch_size is not None and not 1 <= batch_size <= min(m, n):
        msg = f"a batch size of {batch_size} is impossible: weight_grad is {m} x {n}, its rank at most {min(m, n)}"
        raise InputError(msg)
    vectors = {name: _finite_vector(gradients, name, device) for name in ("bias_grad", "bias")}
    accumulated = _accumulate(gradients, device, with_weight=gradients.weight is not None)
    gradients = replace(gradients, precision=accumulated.precision)
    readings, doubted = _decompose(accumulated, gradients, device)
    chosen = readings[min(reading, len(readings) - 1)]
    read = _row_space(accumulated, gradients, device, chosen, [*readings, *doubted], batch_size)
    if isinstance(read, Spectrum):
        return read
    space, residual = read
    layer = multiple = None
    if accumulated.cross is not None and accumulated.weight_squares is not None:
        layer = Layer(
            weight_in_basis=accumulated.cross @ space.to_basis,
            weight_norm=xp.sqrt(accumulated.weight_squares),
            bias=device.zeros(m) if vectors["bias"] is None else vectors["bias"],
            activation=gradients.sigma,
        )
        multiple = multiple_of_weight(
            space,
            residual,
            accumulated.cross,
            layer.weight_in_basis,
            accumulated.weight_squares,
            weight_gram,
        )
    return Factors(gradients, space, layer, vectors["bias_grad"], multiple)


def _row_space(
    accumulated: _Accumulated,
    gradients: LayerGradients,
    device: Device,
    chosen: _Reading,
    readings: list[_Reading],
    batch_size: int | None,
) -> tuple[RowSpace, Array] | Spectrum:
    """Row space at the rank of the `chosen` one of all `readings`, or at `batch_size`, and the norm (m,) of what it leaves
    of each row; its spectrum if it has none."""
    xp = device.xp
    n = gradients.shape[1]
    spectrum, model = chosen.spectrum, chosen.model
    b = batch_size if batch_size is not None else spectrum.rank
    if not b or spectrum.rank == 0:
        return spectrum
    b = min(b, int(xp.sum(xp.astype(chosen.values > 0, xp.int64))))
    to_right, right = sharp_row_space(xp, chosen.rows, chosen.left[:, :b], chosen.values[:b])
    whitened = chosen.rows @ right
    residual = xp.linalg.vector_norm(chosen.rows - whitened @ right.T, axis=1)
    row_norm = accumulated.row_norm
    noise = _row_noise(residual * model, model, accumulated.rounded_norm, n, b, spectrum)
    if gradients.decay.deviation and accumulated.weight_squares is not None:
        # What a decay that is not quite right leaves of W may lie along any direction.
        noise = xp.sqrt(noise**2 + gradients.decay.deviation**2 * accumulated.weight_squares)
    coordinates = whitened * model[:, None]
    to_basis = to_right / model[:, None]
    # The rows in units of their measured noise; those that hold nothing but noise are left out.
    rows = coordinates / noise[:, None]
    live = xp.nonzero(xp.linalg.vector_norm(rows, axis=1) > LIVE_SIGMAS * math.sqrt(b))[0]
    if live.shape[0] < b:
        return replace(spectrum, rank=None)
    U, S, rotation = sharp_svd(xp, xp.take(rows, live, axis=0))
    # A batch size beyond the numerical rank leaves singular values of zero: nothing may be divided by them.
    S = xp.maximum(S, LEAST_VALUE * S[0] * xp.ones_like(S))
    relative = xp.take(noise, live) / (xp.take(row_norm, live) / math.sqrt(n))
    space = RowSpace(
        device=device,
        shape=gradients.shape,
        unit_roundoff=gradients.unit_roundoff,
        spectrum=spectrum,
        batch_size=b,
        U=U,
        S=S,
        live=live,
        noise=noise,
        row_norm=row_norm,
        to_basis=to_basis @ rotation.T,
        coordinates=coordinates @ rotation.T,
        relative_noise=float(np.median(to_host(relative))),
        hidden_input_factor=_hidden_input_factor(readings, spectrum, b, n, noise, live),
    )
    return space, residual * model


def _hidden_input_factor(
    readings: list[_Reading], chosen: Spectrum, b: int, n: int, noise: Array, live: Array
) -> float:
    """Factor by which bounds grow, because an input that other readings show below b moves the others beyond `noise` (m,).

    At worst it lies along another input as a whole, where noise would have `ZERO_SIGMAS`.
    """
    xp: Namespace = array_api_compat.array_namespace(noise)
    factor = 1.0
    for reading in readings:
        spectrum, values = reading.spectrum, to_host(reading.values)
        if b >= (spectrum.rank or 0) or (chosen.rounding and not spectrum.rounding):
            continue  # coherent rounding looks like signal where all rows count alike
        if spectrum is not chosen and (spectrum.rank or 0) > 2 * b > 2:
            continue  # not a few more inputs: noise that this reading does not know
        value = float(values[b])
        if value > STANDS_OUT * noise_edge(values, b + 1, noise.shape[0], n):
            factor = max(
                factor, float(np.median(to_host(xp.take(reading.model / noise, live)))) * value / ZERO_SIGMAS
            )
    return factor


def _finite_vector(gradients: LayerGradients, name: str, device: Device) -> Array | None:
    if getattr(gradients, name) is None:
        return None
    vector = gradients.vector(name, device=device)
    if not bool(device.xp.all(device.xp.isfinite(vector))):
        msg = f"`{name}` holds NaN or infinity"
        raise InputError(msg)
    _check_size(name, float(device.xp.max(device.xp.abs(vector))))
    return vector


def _check_size(name: str, largest: float) -> None:
    """Refuse numbers whose squares leave the range of float64."""
    if largest != 0 and not 1 / LARGEST < largest < LARGEST:
        msg = (
            f"the largest entry of `{name}` has the magnitude {largest:.1e}, which leaves no room for arithmetic: multiply "
            "weight_grad and bias_grad by one factor, or weight and bias, so that they are nearer to one"
        )
        raise InputError(msg)


def _decompose(
    accumulated: _Accumulated, gradients: LayerGradients, device: Device
) -> tuple[list[_Reading], list[_Reading]]:
    """Whiten by a noise model, decompose, find the rank; returns the readings, the most plausible first, and doubted ones.

    Rounding (noise in proportion to each row) is doubted without a clear gap; equal additive noise, or a gap, come after it.
    """
    m, n = gradients.shape
    row_norm = accumulated.rounded_norm
    if float(device.xp.max(accumulated.row_norm)) == 0:
        nothing = Spectrum((0.0,) * min(m, n), 0, math.inf, rounding=True)
        return [_Reading(nothing, accumulated.R.T, device.xp.ones_like(row_norm), device.zeros(0))], []
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
    accumulated: _Accumulated, gradients: LayerGradients, device: Device, row_norm: Array
) -> _Reading:
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
    return _Reading(spectrum, rows, model, svd.S, svd.U)


def _read_noise(
    accumulated: _Accumulated, gradients: LayerGradients, device: Device, row_norm: Array
) -> list[_Reading]:
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
        readings.append(_Reading(spectrum, rows, model, singular))
    return readings


def _in_order(readings: list[_Reading]) -> list[_Reading]:
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


def _row_noise(residual: Array, model: Array, row_norm: Array, n: int, b: int, spectrum: Spectrum) -> Array:
    """Standard deviation of one entry of each row (m,), from what lies outside the row space.

    Rows with few degrees of freedom lean on the median ratio to the noise model, as if it had been seen ten
    times; nothing is taken for more precise than our own arithmetic or the rounding of its type.
    """
    xp: Namespace = array_api_compat.array_namespace(residual)
    dof = n - b
    measured = residual / math.sqrt(max(dof, 1))
    ratios = to_host(measured / model)
    typical = float(np.median(ratios[to_host(row_norm) > 0])) if dof > 0 else 1.0
    noise = xp.sqrt((dof * measured**2 + PRIOR_WEIGHT * (typical * model) ** 2) / (dof + PRIOR_WEIGHT))
    # Noise of no known kind may be as coherent as its largest singular value.
    noise = (ROUNDING_SAFETY if spectrum.rounding else spectrum.noise_excess) * noise
    # Rounding is a function of the entry: over constant regions of the inputs it does not average out but points
    # along the row space, where the residual cannot see it. At worst it is the rounding of all entries of the row.
    coherent = max(1.0, 2 * typical) * math.sqrt(n) / ZERO_SIGMAS if spectrum.rounding else 0.0
    floor = xp.maximum(ARITHMETIC * row_norm, coherent * model)
    tiny = float(np.finfo(np.float64).tiny)
    return xp.maximum(xp.maximum(noise, floor), xp.full_like(noise, tiny))
