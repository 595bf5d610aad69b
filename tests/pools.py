"""Pools of directions to test with."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, cast

import numpy as np

from spear_np.backend.host import to_host
from spear_np.directions.polish import polish
from spear_np.directions.pool import Candidates, Pool
from spear_np.factors.factorize import Factors
from tests.networks import Floats


def candidates_of(factors: Factors, q: Floats, agreement: Floats | None = None) -> Candidates:
    """Return directions `q` (k, b) with what the gradient says of them; `agreement` is 1 unless given."""
    unit = q / np.linalg.norm(q, axis=1, keepdims=True)
    on_device = factors.space.device.float64(unit)
    return Candidates(
        q=unit,
        zero_mask=to_host(factors.space.zeros(on_device)),
        angle=to_host(factors.space.angle_noise(on_device)),
        pattern_fit=np.ones(len(q)) if agreement is None else agreement,
        coordinates=np.zeros_like(unit),
        rests_on_one_row=np.zeros(len(q), dtype=bool),
    )


def pool_of(factors: Factors, q: Floats) -> Pool:
    """Return a pool that knows the directions `q` (k, b), in U-coordinates and of any length."""
    return Pool.empty(factors.space.batch_size, factors.space.U.shape[0]).merge(candidates_of(factors, q))


def frozen(pool: Pool) -> Pool:
    """Return the same pool with arrays that cannot be written to."""
    arrays = {}
    for field in fields(pool):
        value = getattr(pool, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value.copy()
            arrays[field.name].flags.writeable = False
    return replace(pool, **cast(dict[str, Any], arrays))


def reached(factors: Factors, candidates: Floats, truth: Floats) -> set[int]:
    """Return which of the true directions `truth` (b, b) the polish of `candidates` (k, b) leads to."""
    nothing = Pool.empty(factors.space.batch_size, factors.space.U.shape[0])
    found = polish(
        factors.space, factors.space.device.float64(candidates), nothing, np.random.default_rng(0)
    ).q
    unit = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    noise = to_host(factors.space.angle_noise(factors.space.device.float64(unit)))
    # The sine from the difference: small angles drown in the rounding of the cosine.
    cosine = found @ unit.T
    sine = np.linalg.norm(found[:, None, :] - cosine[:, :, None] * unit[None, :, :], axis=2)
    return {int(i) for i in np.flatnonzero(np.any(sine < noise, axis=0))}
