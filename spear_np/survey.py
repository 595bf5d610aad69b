"""What can be told of a layer before inverting it: rank, noise, and what the published search would cost."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from . import theory
from .answer.result import Inversion
from .backend.devices import Device, device_for
from .directions.null_vectors import null_vectors
from .errors import InputError
from .factors.decay import Decayed, without_decay
from .factors.factorize import Factors
from .factors.gradients import NO_DECAY, LayerGradients, WeightDecay
from .layer.assemble import CROWDED, FEW_INPUTS, no_rank_reason, no_zeros_reason
from .layer.problem import LayerProblem, read_layer
from .loop.options import Options

CALIBRATION = 2000
"""Submatrices solved to learn the speed of this machine.

Heuristic: some milliseconds.
"""
TRIAL_SECONDS = 60.0
"""Longest search for a first direction; one that is cut short says nothing.

Heuristic: it takes a tenth of a second where there is one, and up to five to see that there is none: a busy machine is no
reason for another answer.
"""
TRIED_ENTRIES = 50_000
"""Entries of ∂L/∂Z up to which a first direction is searched for.

Heuristic: m = 200 and b = 65, or 500 and 100; whoever only looks waits no longer.
"""
CALIBRATION_NUMBERS = 2_000_000
"""Numbers of them, at most.

Heuristic: as `CALIBRATION`.
"""


@dataclass(frozen=True)
class Survey:
    """Figures of one layer's gradient."""

    shape: tuple[int, int]
    """(m, n)."""
    precision: str
    """What the numbers were rounded to, by their digits."""
    batch_size: int | None
    """Rank of weight_grad; None if it cannot be told."""
    plausible_batch_sizes: tuple[int, int] | None
    """Smallest and largest batch size that the singular values allow; None without any."""
    full_rank: bool
    relative_noise: float
    """Noise of one entry over the root mean square of its row, median over rows; NaN without a rank."""
    singular_values: tuple[float, ...]
    """Of weight_grad with every row divided by its noise; largest first."""
    gap: float
    """Last singular value above the noise over the first below."""
    expected_submatrices: float | None
    """For the published uniform draw, half of the units off; None without a rank or without a ReLU."""
    seconds_per_million: float | None
    """Measured here, for null vectors by LU; None where nothing is drawn."""
    forecast_seconds: float | None
    """Their product: an upper estimate, since weighted draws and known directions shorten the search."""
    problem: str | None
    """Why this layer cannot be inverted by itself; None if nothing speaks against it."""
    decay: WeightDecay = NO_DECAY
    """What the update holds of the weights besides the gradient; all other figures are of what is left."""
    zeros_seen: bool | None = None
    """Whether a short search found a direction with the zeros of a ReLU; None where none was made, since the layer is
    wide, or it had no time to end."""

    @property
    def crowds_zeros(self) -> bool:
        """Whether the batch has so many inputs that zeros may fail to tell them, where other layers do not."""
        return self.batch_size is not None and self.batch_size > FEW_INPUTS * self.shape[0]


def survey(
    gradients: LayerGradients,
    *,
    device: str | None = None,
    batch_size: int | None = None,
    elsewhere: WeightDecay = NO_DECAY,
) -> Survey:
    """Read the rank and noise of `gradients`, whatever the activation, and forecast the published search behind a ReLU.

    `elsewhere` is the weight decay of another layer of the same update, for a layer that cannot tell its own.

    Raises
    ------
    InputError
        If an array holds NaN or infinity.
    DeviceError
        If the device asked for does not answer.
    """
    where = device_for(device, gradients.weight_grad)
    with where.activate():
        decayed = without_decay(gradients, where, batch_size, elsewhere=elsewhere)
        factors, decay = decayed.factors, decayed.gradients.decay
        if not isinstance(factors, Factors):
            return Survey(
                shape=gradients.shape,
                precision=gradients.precision_name,
                batch_size=None,
                plausible_batch_sizes=factors.plausible,
                full_rank=factors.rank is None,
                relative_noise=float("nan"),
                singular_values=factors.singular_values,
                gap=factors.gap,
                expected_submatrices=None,
                seconds_per_million=None,
                forecast_seconds=None,
                problem=no_rank_reason(factors, decayed.gradients, where),
                decay=decay,
            )
        space = factors.space
        b = space.batch_size
        no_zeros = _no_zeros_reason(gradients)
        expected = pace = zeros_seen = None
        if no_zeros is None:
            no_zeros, zeros_seen = _trial(decayed, where, batch_size)
            expected = theory.expected_submatrices(space.U.shape[0], b)
            pace = _seconds_per_million(where, b)
        return Survey(
            shape=gradients.shape,
            precision=factors.gradients.precision_name,
            batch_size=b,
            plausible_batch_sizes=space.spectrum.plausible,
            full_rank=False,
            relative_noise=space.relative_noise,
            singular_values=space.spectrum.singular_values,
            gap=space.spectrum.gap,
            expected_submatrices=expected,
            seconds_per_million=pace,
            forecast_seconds=None if expected is None or pace is None else expected * pace / 1e6,
            problem=no_zeros,
            decay=decay,
            zeros_seen=zeros_seen,
        )


def _trial(decayed: Decayed, device: Device, batch_size: int | None) -> tuple[str | None, bool | None]:
    """Why the zeros of a ReLU layer tell no direction, and whether any do; None where that was not tried, or not to the end."""
    assert isinstance(decayed.factors, Factors)
    space = decayed.factors.space
    live, b = space.U.shape
    if b > 1 and space.shape[0] * b <= TRIED_ENTRIES:
        posed = read_layer(decayed, device, Options(batch_size)).posed
        if isinstance(posed, Inversion):
            return posed.reason, False
        assert isinstance(posed, LayerProblem)
        return posed.first_direction(TRIAL_SECONDS)
    if b > CROWDED * live:
        return no_zeros_reason(space, decayed.gradients, 0), False
    return None, None


def weight_decay(gradients: LayerGradients, *, device: str | None = None) -> WeightDecay:
    """Return the multiple of W, and of the bias, that an update holds besides the gradient; zero without evidence.

    What `gradients.decay` says is part of it. The update of SGD with weight decay λ is ∂L/∂W + λ W: see
    `spear_np.factors.decay` for how λ shows.

    Raises
    ------
    InputError, DeviceError
        As `survey`.
    """
    where = device_for(device, gradients.weight_grad)
    with where.activate():
        return without_decay(gradients, where).gradients.decay


def _no_zeros_reason(gradients: LayerGradients) -> str | None:
    """Return why the search has no zeros to rest on; None behind a ReLU."""
    try:
        gradients.require_zeros()
    except InputError as error:
        return str(error)
    return None


def _seconds_per_million(device: Device, b: int) -> float:
    """Time a block of null vectors of (b-1, b) matrices, twice: the first call warms up."""
    xp = device.xp
    count = max(16, min(CALIBRATION, CALIBRATION_NUMBERS // (b * b)))
    stack = device.normal(np.random.default_rng(b), (count, b - 1, b))
    elapsed = 0.0
    for _ in range(2):
        started = time.perf_counter()
        # Reading one number waits for the device.
        float(xp.sum(null_vectors(xp, stack)))
        elapsed = time.perf_counter() - started
    return elapsed / count * 1e6
