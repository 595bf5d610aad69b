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
from ..backend.devices import Device
from ..backend.host import to_host
from ..errors import InputError
from .accumulate import Accumulated, accumulate, check_size
from .decompose import sharp_row_space, sharp_svd
from .gradients import LayerGradients
from .layer import Layer
from .multiple import Multiple, multiple_of_weight
from .rank import Spectrum, noise_edge
from .readings import RankReading, rank_readings
from .row_space import RowSpace
from .zero import ZERO_SIGMAS

ROUNDING_SAFETY = 3.0
"""Factor on the noise of rounding: it follows the size of the entries, so a direction that sees the large ones sees more than
the average residual tells.

Measured: factors stay below 3 on images.
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


def spectrum_of(gradients: LayerGradients, device: Device) -> Spectrum:
    """Singular values and rank of weight_grad alone: what `survey` needs."""
    accumulated = accumulate(gradients, device, with_weight=False)
    readings, _ = rank_readings(accumulated, replace(gradients, precision=accumulated.precision), device)
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
    accumulated = accumulate(gradients, device, with_weight=gradients.weight is not None)
    gradients = replace(gradients, precision=accumulated.precision)
    readings, doubted = rank_readings(accumulated, gradients, device)
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
    accumulated: Accumulated,
    gradients: LayerGradients,
    device: Device,
    chosen: RankReading,
    readings: list[RankReading],
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
    readings: list[RankReading], chosen: Spectrum, b: int, n: int, noise: Array, live: Array
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
    check_size(name, float(device.xp.max(device.xp.abs(vector))))
    return vector


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
