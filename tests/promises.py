"""What an answer promises, held against the truth: the judge of all end-to-end tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import spear_np
from spear_np.backend.host import to_host
from tests.networks import Floats, LayerData

TOLERANCE = 1e-4
"""Largest error of an `exact` input, as a share of the data range."""
BARELY = 2.0
"""Multiple of what cannot be told apart from which an input surely leaves a trace."""
HIDDEN = 2.0
"""A part of weight_grad below this multiple of what its rounding may add up to leaves no trace."""


@dataclass(frozen=True)
class Truth:
    """The batch behind a gradient, and which of its inputs the gradient can tell apart."""

    inputs: Floats
    """(b, n) float64: distinct inputs that leave a trace."""
    groups: tuple[tuple[int, ...], ...]
    """Inputs that look like one, a mean of them, at the noise of the data."""
    faint: Floats
    """(f, n) float64: inputs whose own trace is lost in the noise, but not what they add to the others."""

    @property
    def range(self) -> float:
        """Largest minus smallest entry of all inputs."""
        return float(np.ptp(self.inputs)) or 1.0

    def distance(self, row: Floats) -> tuple[float, int]:
        """Largest entry by which `row` differs from the nearest input or mean, and the number of its group."""
        return min((self._distance(row, list(group)), g) for g, group in enumerate(self.groups))

    def certain(self, group: int) -> bool:
        """Whether a group is a single input that nothing invisible can have changed."""
        return len(self.groups[group]) == 1 and not len(self.faint)

    def _distance(self, row: Floats, group: list[int]) -> float:
        """Largest entry by which `row` differs from a combination of a group whose shares add up to one.

        Inputs whose columns of ∂L/∂Z are multiples of each other look like one such combination.
        """
        corner = self.inputs[group[0]]
        rest, sides = row - corner, self.inputs[group[1:]] - corner
        if len(self.faint):
            sides = np.concatenate([sides, self.faint, corner[None, :]])
        if len(sides):
            rest = rest - sides.T @ np.linalg.lstsq(sides.T, rest, rcond=None)[0]
        return float(np.max(np.abs(rest)))


def truth_of(data: LayerData, noise: Floats | float, *, rounding: bool = True) -> Truth:
    """Return the distinct inputs of a batch that leave a trace in its gradient.

    Parameters
    ----------
    noise : (m,) array or float
        Standard deviation of one entry of each row of weight_grad. What lies below it cannot be told apart: two
        inputs of nearly equal gradients count as one.
    rounding : bool
        Whether that noise is rounding, which may be the same in many entries and then adds up.
    """
    m, n = data.weight_grad.shape
    level = HIDDEN * (np.sqrt(m) + np.sqrt(n))
    if rounding:
        level = max(8 * level, HIDDEN * np.sqrt(m * n))
    rows = np.broadcast_to(np.asarray(noise, dtype=np.float64), (m,))
    sigma = np.where(rows > 0, rows, np.inf)[:, None]
    distinct, number = np.unique(data.inputs.astype(np.float64), axis=0, return_inverse=True)
    columns = np.zeros((m, len(distinct)))
    np.add.at(columns.T, np.ravel(number), data.output_grad.T.astype(np.float64))
    trace = np.linalg.norm(columns / sigma, axis=0) * np.linalg.norm(distinct, axis=1)
    # An input that barely stands out would count as one with any other, and these as one with each other through it.
    barely = BARELY * level
    seen, faint = np.flatnonzero(trace > barely), (trace > 1e-3) & (trace <= barely)
    inputs, columns = distinct[seen], columns[:, seen] / sigma
    group = np.arange(len(seen))
    for i in range(len(seen)):
        for k in range(i):
            triangle = np.linalg.qr(columns[:, [i, k]])[1] @ np.linalg.qr(inputs[[i, k]].T)[1].T
            if np.linalg.norm(np.linalg.svd(triangle, compute_uv=False)[1:]) < level:
                group[group == group[i]] = group[k]
    # Columns of ∂L/∂Z that depend on each other: what they share cannot be told apart either.
    values, right = np.linalg.svd(columns * np.linalg.norm(inputs, axis=1))[1:]
    for vector in right[int(np.sum(values > level)) :]:
        involved = np.flatnonzero(np.abs(vector) > 1e-3)
        group[np.isin(group, group[involved])] = group[involved[0]]
    groups = tuple(tuple(int(i) for i in np.flatnonzero(group == g)) for g in np.unique(group))
    return Truth(inputs, groups, distinct[faint])


def broken_promises(result: spear_np.Inversion, truth: Truth, *, tampered: bool = False) -> list[str]:
    """Return what `result` claims and the truth denies; an empty list if it keeps its word.

    With data that was tampered with, only the status `exact` promises anything.
    """
    rows = to_host(result.inputs)
    bounds = result.certificate.error_bound
    broken = []
    if not (len(rows) == result.found == len(bounds) == to_host(result.output_grad).shape[1]):
        broken.append(f"{len(rows)} rows, {result.found} found, {len(bounds)} bounds")
    met = [truth.distance(row) for row in rows]
    exact = result.status is spear_np.Status.EXACT
    if exact:
        wrong = [error / truth.range for error, _ in met if error > TOLERANCE * truth.range]
        if wrong:
            broken.append(f"exact, but {len(wrong)} rows are off by up to {max(wrong):.1e} of the range")
        if len({group for _, group in met}) < len(met):
            broken.append("exact, but two rows are the same input")
        independent = np.linalg.matrix_rank(truth.inputs) == len(truth.inputs)
        if result.found < len(truth.groups) and independent and not tampered:
            broken.append(f"exact, but {len(truth.groups) - result.found} inputs are missing")
        if not result.certificate.holds:
            broken.append("exact, but the certificate does not hold")
    if (result.scale_known or _scaled(result)) and (exact or not tampered):
        for (error, group), bound in zip(met, bounds, strict=False):
            if error > bound and truth.certain(group):
                broken.append(f"{result.status}: an error of {error:.1e} with a bound of {bound:.1e}")
    return broken


def _scaled(result: spear_np.Inversion) -> bool:
    """Whether something else than bias_grad has given the inputs a scale, so that their bounds promise something."""
    gradients = result.gradients
    bias = None if gradients.weight is None or gradients.bias is None else to_host(gradients.bias[:])
    return result.data_range is not None or (bias is not None and bool(np.any(bias != 0)))


def rounding_noise(weight_grad: Any, unit_roundoff: float) -> Floats:
    """(m,): standard deviation of rounding errors in each row, as a share of its root mean square."""
    values = np.asarray(weight_grad, dtype=np.float64)
    noise: Floats = unit_roundoff * np.sqrt(np.mean(values**2, axis=1))
    return noise
