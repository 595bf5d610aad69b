"""Sparser combinations of two known directions: takes apart the mixtures that a search brings home.

If v = α y_i + β y_k mixes two inputs' directions and w = y_k is known, then v + ρ w annuls every row on which
input i is off for one and the same ratio ρ = -(U v)_j / (U w)_j: the rows vote, and no sampling is needed.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import TINIEST
from ..backend.host import to_host
from ..backend.work import blocks, one_by_one
from ..factors.row_space import RowSpace
from ..factors.zero import WELL_ABOVE_ZERO, ZERO_SIGMAS
from .pool import SMALL_BATCH, Pool

MIN_VOTES = 4
"""Rows that must agree on a ratio.

Derived: four of ℓ evenly spread ratios agree to ε by chance with a probability of about ℓ^4 ε³ / 24, 7e-8 at ℓ = 200, ε = 1e-5.
"""
NEARLY_FEASIBLE = 0.9
"""Fit of a pattern from which a direction of a large batch may combine as few as two inputs.

Measured: half of the sums of two directions are fitted to .83 to .89, of three to .76 to .81
(`python -m benchmarks.thresholds --fits`).
"""


def reduce_pairs(space: RowSpace, pool: Pool, fresh: HostArray) -> Array:
    """Return combinations (k, b) of two directions of the basis on whose ratio many rows agree.

    Parameters
    ----------
    fresh : (f,) int array
        Positions in ``pool.basis`` to try against the whole basis; the others were tried before. In a large batch
        only those that may rest on a single row, or whose pattern the layer can nearly produce but not quite.
    """
    xp, device = space.xp, space.device
    basis = np.asarray(pool.basis, dtype=np.int64)
    if len(basis) > SMALL_BATCH:
        # Without W nothing is known of patterns; a combination of many inputs has none that comes near a possible one.
        solid = np.isin(basis[fresh], pool.trusted)
        unknown = ~np.any(pool.coordinates[basis[fresh]], axis=1)
        fresh = fresh[unknown | (~solid & (pool.pattern_fit[basis[fresh]] > NEARLY_FEASIBLE))]
    if len(basis) < 2 or not len(fresh):
        return device.zeros((0, space.batch_size))
    vectors = pool.q[basis] / to_host(space.noise_norm(device.float64(pool.q[basis])))[:, None]
    q = device.float64(vectors)
    products = q @ space.U.T  # in noise units
    live = products.shape[1]

    def combined(part: slice) -> Array:
        first = device.integers(fresh[part])
        ratio, votes = _best_ratio(xp, xp.take(products, first, axis=0)[:, None, :], products[None, :, :])
        others = device.integers(np.arange(len(basis)))
        pick = xp.nonzero((votes >= MIN_VOTES) & (first[:, None] != others[None, :]))
        chosen = xp.take(q, xp.take(first, pick[0]), axis=0)
        partner = xp.take(q, pick[1], axis=0)
        flat = pick[0] * len(basis) + pick[1]
        return chosen + xp.take(xp.reshape(ratio, (-1,)), flat)[:, None] * partner

    parts = blocks(device, len(fresh), len(basis) * live)
    return xp.concat(one_by_one(device, combined, parts), axis=0)


def _best_ratio(xp: Namespace, v: Array, w: Array) -> tuple[Array, Array]:
    """Return the ratio ρ (..., ) for which most entries of v + ρ w (…, ℓ) vanish, and how many do.

    `v` and `w` broadcast against each other, in noise units. Only rows on which both stand out vote: where one of
    them is zero the ratio says nothing.
    """
    level = WELL_ABOVE_ZERO * ZERO_SIGMAS
    both = (xp.abs(v) > level) & (xp.abs(w) > level)
    one = xp.ones_like(v * w)
    far = 1 / TINIEST
    ratios = xp.sort(xp.where(both, -v / xp.where(xp.abs(w) > level, w, one), one * far), axis=-1)
    # `MIN_VOTES` neighbours in sorted order that agree: the centre of the closest such group.
    low, high = ratios[..., : 1 - MIN_VOTES], ratios[..., MIN_VOTES - 1 :]
    agreement = (high - low) / (xp.abs(high) + xp.abs(low) + TINIEST)
    spread = xp.where(high < far, agreement, xp.full_like(agreement, 2.0))
    place = xp.argmin(spread, axis=-1, keepdims=True)
    ratio = (xp.take_along_axis(low, place, axis=-1) + xp.take_along_axis(high, place, axis=-1)) / 2
    finite = ratio < far / 2
    ratio = xp.where(finite, ratio, xp.zeros_like(ratio))
    # v + ρ w carries noise √(1 + ρ²) where v and w carry one.
    zero = xp.abs(v + ratio * w) < ZERO_SIGMAS * xp.sqrt(1 + ratio**2)
    votes = xp.sum(xp.astype(zero & both & finite, xp.int64), axis=-1)
    return ratio[..., 0], votes
