"""The certificate of inputs that somebody claims: are they the ones behind this gradient?"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .adopt import adopted
from .answer.certificate import Check
from .answer.result import Inversion, Status, with_decay_said
from .arrays import Array, HostArray
from .backend.devices import Device, device_for
from .backend.host import to_host
from .checks.certify import certify
from .checks.specification import EXACT_TOLERANCE
from .directions.disaggregate import disaggregate
from .directions.polish import polish
from .directions.pool import Pool
from .errors import InputError
from .factors.decay import without_decay
from .factors.factorize import Factors
from .factors.gradients import LayerGradients
from .factors.row_space import RowSpace
from .factors.singular import SVD_ERROR, singular_values
from .inputs.reconstruct import reconstruct
from .layer.assemble import Ending, assemble_result, inversion, no_rank_reason
from .loop.options import DataRange, Options

SNAPPED = 0.99
"""Cosine from which a polished direction is the one that it was polished from.

Heuristic: rounding of the claimed inputs turns their directions by far less, another input's is nearly orthogonal.
"""


def check(
    gradients: LayerGradients,
    inputs: npt.ArrayLike,
    *,
    data_range: DataRange | None = None,
    device: str | None = None,
) -> Inversion:
    """Hold claimed `inputs` against the gradient of a ReLU layer, by the checks that `spear_np.invert` makes of its own.

    The claims only say where to look: each is replaced by the input that its zeros determine, and must be that input.

    Parameters
    ----------
    gradients : LayerGradients
        What the layer shares.
    inputs : (b, n) array
        One claimed input a row, in any order; as many as weight_grad shows.
    data_range : (low, high), optional
        As in `spear_np.invert`.
    device : {"cpu", "gpu", "gpu:N"}, optional
        Where to compute; by default where `weight_grad` is.

    Returns
    -------
    Inversion
        With the further check `claims` in its certificate. If every row is vouched for, row i belongs to claim i.

    Raises
    ------
    InputError
        If `inputs` does not fit the gradient, holds NaN or infinity, or are more or fewer than weight_grad shows; and as
        `spear_np.invert`.
    DeviceError
        If the device asked for does not answer.
    """
    started = time.perf_counter()
    data_range = Options(data_range=data_range).data_range
    gradients.require_zeros()
    where = device_for(device, gradients.weight_grad)
    with where.activate():
        claims = _checked_claims(_numbers(inputs, where), gradients)
        decayed = without_decay(gradients, where)
        factors, left = decayed.factors, decayed.gradients
        if not isinstance(factors, Factors):
            reason = no_rank_reason(factors, left, where)
            return with_decay_said(
                inversion(left, where, Status.FAILED, reason, 0, data_range, method="check")
            )
        k, b = claims.shape[0], factors.space.batch_size
        if k != b:
            msg = f"`inputs` has {k} rows, but weight_grad shows {b} inputs: claim all of them"
            raise InputError(msg)
        q = _directions(factors, claims)
        if q is None:
            reason = "the claims depend on each other, or on what weight_grad does not show: no direction belongs to each"
            return with_decay_said(
                inversion(factors.gradients, where, Status.FAILED, reason, b, data_range, method="check")
            )
        with np.errstate(over="ignore", invalid="ignore"):
            choice = disaggregate(factors, q)
            verdict = certify(factors, choice, reconstruct(factors, choice))
        nothing = Pool.empty(b, factors.space.U.shape[0])
        answer = assemble_result(factors, Ending(choice, verdict, nothing, None), data_range)
        return replace(
            with_decay_said(_compared(answer, claims, verdict.accepted_rows)),
            method="check",
            seconds=time.perf_counter() - started,
        )


def _numbers(inputs: npt.ArrayLike, device: Device) -> Array:
    """Return what was claimed as float64 on `device`."""
    values, _ = adopted("inputs", inputs)
    try:
        return device.float64(values)
    except (TypeError, ValueError) as error:
        msg = (
            f"`inputs` is a {type(inputs).__name__} that holds no numbers: expected an array, one input a row"
        )
        raise InputError(msg) from error


def _checked_claims(claims: Array, gradients: LayerGradients) -> Array:
    """Refuse claims that cannot be inputs of the layer."""
    n = gradients.shape[1]
    if claims.ndim != 2 or claims.shape[1] != n:
        msg = f"`inputs` has shape {tuple(claims.shape)}: expected one row of {n} numbers for each input"
        raise InputError(msg)
    if not np.all(np.isfinite(to_host(claims))):
        msg = "`inputs` holds NaN or infinity"
        raise InputError(msg)
    return claims


def _directions(factors: Factors, claims: Array) -> Array | None:
    """(b, b): directions that see one claim each, on their zero rows where these determine one near it; None without any."""
    space, xp = factors.space, factors.space.xp
    coordinates = space.device.zeros((claims.shape[0], space.batch_size))
    for columns, (block,) in factors.gradients.blocks("weight_grad", device=space.device):
        coordinates = coordinates + claims[:, columns] @ (xp.matrix_transpose(block) @ space.to_basis)
    values = to_host(singular_values(xp, coordinates))
    if not values[-1] > SVD_ERROR * values[0]:
        return None
    return _snapped(space, xp.matrix_transpose(xp.linalg.inv(coordinates)) * space.S)


def _snapped(space: RowSpace, q: Array) -> Array:
    """`q` (b, b) with those rows replaced that the polish turns into a direction close to them."""
    found = polish(space, q, Pool.empty(space.batch_size, space.U.shape[0]), np.random.default_rng(0)).q
    host = to_host(q).copy()
    if len(found):
        length = np.linalg.norm(host, axis=1, keepdims=True)
        cosine = np.abs((host / np.where(length > 0, length, 1.0)) @ found.T)
        nearest = np.argmax(cosine, axis=1)
        close = cosine[np.arange(len(host)), nearest] > SNAPPED
        host[close] = found[nearest[close]]
    return space.device.float64(host)


def _compared(answer: Inversion, claims: Array, accepted: HostArray) -> Inversion:
    """The answer with the check of its rows against the `claims` (b, n) behind them, `accepted` (b,) bool."""
    if not answer.found:
        return answer
    device = answer.where
    rows = claims if answer.found == claims.shape[0] else None
    if rows is None and int(np.sum(accepted)) == answer.found:
        rows = device.xp.take(claims, device.integers(np.flatnonzero(accepted)), axis=0)
    if rows is None:
        return answer
    recovered, own = to_host(answer.inputs), to_host(rows)
    spread = float(np.ptp(recovered)) or 1.0
    difference = float(np.max(np.abs(recovered - own))) / spread
    claimed = Check(
        "claims",
        difference,
        "<=",
        EXACT_TOLERANCE,
        "largest difference between a claim and the input that the gradient holds, share of the data range",
    )
    certificate = replace(answer.certificate, checks=(*answer.certificate.checks, claimed))
    if claimed.passed:
        return replace(answer, certificate=certificate)
    status = Status.APPROXIMATE if answer.status is Status.EXACT else answer.status
    reason = f"{answer.reason}; but the claims are off by up to {difference:.2g} of the data range"
    return replace(answer, certificate=certificate, status=status, reason=reason)
