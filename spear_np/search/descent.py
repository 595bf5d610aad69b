"""Row-weighted ℓ1 descent on the sphere, many starts at once: a search that is polynomial in the batch size.

A direction of the batch leaves about half of the units without gradient, so it is a sharp local minimum of
``Σ_j w_j |u_j · q|`` over the unit sphere. Projected subgradient steps of geometrically decaying length find it
[1]_ [2]_. What is added to the literature makes large batches possible:

- *Row weights.* Zeros do not move when rows are scaled: scale by leverage^-α, which evens out the columns.
- *A concave norm.* The absolute value turns into a logarithm on the way, which cares less for rows that are on.
- *Signs inside the descent.* The layer must be able to produce the candidate's on/off pattern. Every few steps its
  pre-activations are predicted from the soft pattern by the smoother of `signs.smoother`, and rows predicted to be
  on lose weight.
- *Deflation through the layer.* A known direction y_i fixes its input's coordinates c_i (`signs.fit_known`). Unknown
  directions are orthogonal to every c_i: search their complement while steps are long, then release.
- *Short blocks.* A start commits to its column early: those that come together go on as one, and blocks grow longer
  only when short ones find little.

References
----------
.. [1] Bai, Jiang, Sun, "Subgradient Descent Learns Orthogonal Dictionaries", ICLR 2019.
.. [2] Zhu et al., "Dual Principal Component Pursuit: Improved Analysis and Efficient Algorithms", NeurIPS 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..arrays import Array, HostArray
from ..backend.algebra import OWN_ROUNDING, inverse_or_pseudoinverse, orthogonal_complement
from ..backend.host import to_host
from ..directions.null_vectors import distinct, nearest_rows
from ..directions.pool import Pool
from ..factors.row_space import RowSpace
from ..factors.signs import SignModel, fit_known, smoother
from ..kernels.width import starts_at_once
from . import Proposals
from .blocks import Block, Settings, Tempering, descend
from .together import Seat

CONVERGED_COSINE = 0.9995
"""Cosine from which two ends of a descent are the same.

Derived: an angle of .03, thirty times the last step.
"""
DESCENDED_CANDIDATES = 128
"""Candidates handed on from one block, those with the clearest zeros first.

Heuristic: it bounds the time of their polish.
"""
SHARP_END = 5.0
"""Mean product with the nearest rows, in last steps and in means of all rows, up to which an end is polished while much is found.

Measured: of those that led to a direction half lay at .5 and 99 in a hundred below 2 (m = 200, b = 40), 2.5 (400, 100), 4.7 (1000, 200)
and 5.6 (100, 25), of those that led nowhere half at 10, 11, 7 and 15.
"""


THIN_COSINE = 0.98
"""Cosine from which starts have come together while steps are long.

Heuristic: an angle of .2, the length of a few steps.
"""
DROWNED = 1e-3
"""Noise of all rows together, as a share of the smallest singular value of weight_grad, that drowns small columns.

Heuristic: zeros of the smallest column are then known to three digits.
"""
MAX_EFFORT = 4
"""Doublings of the steps of a block, at most.

Heuristic: blocks of 3200 steps.
"""
RANDOM_STARTS = 0.15
"""Share of the blocks that start from random directions instead of rows.

Heuristic: for columns that no row is near to.
"""
WITHOUT_DEFLATION = 0.15
"""Share of the blocks after rounds with little news in which no known direction is relied on.

Heuristic: so that none that is wrong does lasting harm.
"""
PARTIAL_DEFLATION = (0.5, 0.7)
"""Share of the blocks after stale rounds that rely on some known directions only, and the share of these.

Heuristic: as `WITHOUT_DEFLATION`.
"""
STALE = 2
"""Rounds without news after which `PARTIAL_DEFLATION` begins.

Heuristic: as `WITHOUT_DEFLATION`.
"""
STARTS_PER_MISSING = 4
"""Starts of a deflated block for each missing direction.

Heuristic: each start finds a direction in hard batches less often than that.
"""
FEWEST_STARTS = 64
"""Starts of a deflated block, at least.

Heuristic: fewer leave the processor idle.
"""
FEW_LEFT = (4, 0.1)
"""Missing directions, and share of the batch, below which the last few are sought with sharp signs.

Heuristic: the signs of what is known are then nearly all there is.
"""
SHARP_SIGNS = (3.0, 30.0)
"""First and last sharpness of sign weights for the last few columns.

Heuristic: drawn like the others they would starve.
"""
SIGN_SHARPNESS = ((0.0, 4.0), (0.0, 10.0), (0.0, 10.0), (1.0, 20.0))
"""First and last sharpness of sign weights, one pair drawn for each block.

Heuristic: no column is to starve for one choice.
"""
FIRST_STEPS = (0.15, 0.3, 0.3)
"""Lengths of the first steps (radians), one drawn for each block.

Heuristic: as `SIGN_SHARPNESS`.
"""
PATTERN_THRESHOLDS = (0.4, 0.5, 0.6, 0.8)
"""Products, in means of |U q|, above which a unit counts as on; one drawn for each block.

Heuristic: as `SIGN_SHARPNESS`.
"""
CONFINED_SHARES = (0.2, 0.35, 0.5)
"""Shares of the steps spent in the complement of the known inputs, one drawn for each block.

Heuristic: as `SIGN_SHARPNESS`.
"""
DUAL_RIDGE = 1e-12
"""Added to the Gram matrix of unit vectors before it is solved.

Derived: rounding of float64, by some margin.
"""


@dataclass(frozen=True, eq=False)
class Weighting:
    """One row weighting: orthonormal weighted rows and the way back."""

    rows: Array
    """(ℓ, b) float32: U_α, orthonormal columns."""
    to_q: Array
    """(b, b): q = to_q · u for a direction u in weighted coordinates."""
    to_weighted: Array
    """(b, b): the inverse."""


@dataclass(frozen=True)
class Descent:
    """ℓ1 descent for one layer, with everything that does not change prepared."""

    weighting: Weighting
    model: SignModel | None
    settings: Settings
    name: str = "descent"
    seat: Seat | None = None
    """Where blocks of other layers go down beside its own; None where it is for itself."""

    @classmethod
    def prepare(
        cls,
        space: RowSpace,
        model: SignModel | None,
        settings: Settings | None = None,
        seat: Seat | None = None,
    ) -> Descent:
        """Compute the weighted rows."""
        settings = settings or Settings()
        return cls(_weighting(space, settings.alpha), model, settings, seat=seat)

    def propose(self, space: RowSpace, pool: Pool, rng: np.random.Generator) -> Proposals:
        """Descend from one block of starts; returns the distinct ends, sharpest first."""
        xp, device, b = space.xp, space.device, space.batch_size
        mistrusted = self._mistrusted(pool, rng)
        trusted = self._trusted(pool, rng, mistrusted=mistrusted)
        deflated = len(trusted) > 0
        complement, known = (None, None) if not deflated else self._deflation(space, pool, trusted)
        left = b - len(trusted)
        starts = self.starts(space)
        count = starts
        if deflated and starts == self.settings.starts:
            count = max(FEWEST_STARTS, min(starts, STARTS_PER_MISSING * left))
        tempering = _temper(
            rng, self.settings, effort=pool.effort, few=deflated and left < max(FEW_LEFT[0], FEW_LEFT[1] * b)
        )
        if rng.random() < RANDOM_STARTS:
            start = device.float32(rng.standard_normal((count, b)))
        else:
            picks = rng.integers(0, space.U.shape[0], count)
            start = xp.take(self.weighting.rows, device.integers(picks), axis=0)
        signs = None
        if self.model is not None and self.settings.sign_weights and not mistrusted:
            signs = smoother(space, self.model, complement, prior=self.settings.prior)

        block = Block.prepare(
            device, self.weighting.rows, start, tempering, self.settings, signs=signs, known=known
        )
        found = descend(device, [block])[0] if self.seat is None else self.seat.descend(block)
        # Where little is found, and where noise blurs the zeros, every end is worth a try.
        sharpest = math.inf if pool.effort or space.noisy else SHARP_END * self.settings.last_step
        ends = self._distinct(space, found, sharpest)
        return Proposals(ends @ self.weighting.to_q.T, count, self.name)

    def starts(self, space: RowSpace) -> int:
        """Starts of a block with nothing known: each takes two products with all rows a step."""
        operations = 4.0 * self.weighting.rows.shape[0] * space.batch_size
        return starts_at_once(space.device, operations, self.settings.starts)

    def forecast(self, space: RowSpace) -> float | None:
        """No forecast: a start either ends on a new direction or does not."""
        return None

    @staticmethod
    def _mistrusted(pool: Pool, rng: np.random.Generator) -> bool:
        """Whether to leave the signs of the layer aside: as often as it does not explain what was found."""
        share = pool.unexplained
        return share > 0 and bool(rng.random() < share)

    def _trusted(self, pool: Pool, rng: np.random.Generator, *, mistrusted: bool) -> HostArray:
        """Indices of directions to deflate by: the solid ones, at times not all of them, so that none does harm."""
        nothing = np.empty(0, dtype=np.int64)
        if self.model is None or not self.settings.deflation:
            return nothing
        if pool.effort > 1 and rng.random() < WITHOUT_DEFLATION:
            return nothing
        trusted = np.asarray(pool.trusted_without_signs if mistrusted else pool.trusted, dtype=np.int64)
        if pool.stale > STALE and rng.random() < PARTIAL_DEFLATION[0]:
            trusted = trusted[rng.random(len(trusted)) < PARTIAL_DEFLATION[1]]
        return trusted[: pool.q.shape[1] - 1]

    def _deflation(self, space: RowSpace, pool: Pool, trusted: HostArray) -> tuple[Array, Array]:
        """Return the complement N (b, b-f) of the known y in V and the known inputs (b, f) in weighted space."""
        xp, device = space.xp, space.device
        assert self.model is not None  # without it nothing is trusted
        y = device.float64(pool.q[trusted]) / space.S
        y = y / xp.linalg.vector_norm(y, axis=1, keepdims=True)
        f = y.shape[0]
        complement = orthogonal_complement(xp, y.T)
        dual = xp.linalg.solve(y @ y.T + DUAL_RIDGE * device.eye(f), y)
        active = device.booleans(~pool.zero_mask[trusted])
        c = fit_known(space, self.model, complement, dual, active)
        # q · p = y · c for every pair, so in weighted coordinates an input is to_qᵀ (c / S).
        inputs = self.weighting.to_q.T @ (c / space.S).T
        return complement, xp.linalg.qr(inputs / xp.linalg.vector_norm(inputs, axis=0)).Q

    def _distinct(self, space: RowSpace, ends: Array, sharpest: float) -> Array:
        """Ends (k, b) that differ, those with the clearest zeros first.

        Their nearest rows are nearer than the average row by a factor of `sharpest` at least.
        """
        xp, b = space.xp, space.batch_size
        rows = xp.astype(self.weighting.rows, xp.float64)
        good = xp.nonzero(xp.all(xp.isfinite(ends), axis=1))[0]
        ends = xp.astype(xp.take(ends, good, axis=0), xp.float64)
        values = xp.sort(xp.abs(ends @ rows.T), axis=1)
        few = min(nearest_rows(b), values.shape[1])
        sharpness = to_host(xp.mean(values[:, :few], axis=1) / xp.mean(values, axis=1))
        order = np.argsort(sharpness, kind="stable")
        order = order[sharpness[order] < sharpest]
        chosen = order[distinct(to_host(ends)[order], CONVERGED_COSINE, DESCENDED_CANDIDATES)]
        return xp.take(ends, space.device.integers(chosen), axis=0)


def _weighting(space: RowSpace, alpha: float) -> Weighting:
    """Orthonormalise the live rows of weight_grad, scaled by leverage^-α, keeping the map from U-coordinates.

    Leverage tells more in the rows as they are than in those that were divided by their noise, unless the noise of the
    large rows drowns the small columns.
    """
    xp = space.xp
    raw = xp.take(space.coordinates, space.live, axis=0)
    left, values, _ = xp.linalg.svd(raw / xp.max(xp.abs(raw)), full_matrices=False)
    noise = xp.linalg.vector_norm(xp.take(space.noise, space.live)) / xp.max(xp.abs(raw))
    if bool(noise > DROWNED * values[-1]):
        left, to_left = space.U, space.device.eye(space.batch_size)
    else:
        # D column = coordinates y = left · (leftᵀ coordinates) y, and y = q / S.
        to_left = left.T @ raw / space.S
    leverage = xp.linalg.vector_norm(left, axis=1)
    # A row that all others drown has no leverage at all, and no weight makes one of it.
    relative = xp.maximum(leverage / xp.max(leverage), xp.full_like(leverage, OWN_ROUNDING))
    Q, R = xp.linalg.qr(left * (relative**-alpha)[:, None])
    to_weighted = R @ to_left
    to_weighted = to_weighted / xp.linalg.vector_norm(to_weighted)
    return Weighting(space.device.float32(Q), inverse_or_pseudoinverse(xp, to_weighted), to_weighted)


def _temper(rng: np.random.Generator, settings: Settings, *, effort: int, few: bool) -> Tempering:
    """Draw how to descend; more steps after rounds with little news, sharp signs for the last few columns."""
    highest = min(effort, MAX_EFFORT)
    kappa = SIGN_SHARPNESS[rng.integers(len(SIGN_SHARPNESS))]
    return Tempering(
        steps=settings.steps * 2 ** int(rng.integers(highest // 2, highest + 1)),
        first_step=FIRST_STEPS[rng.integers(len(FIRST_STEPS))],
        kappa=SHARP_SIGNS if few else kappa,
        tau=PATTERN_THRESHOLDS[rng.integers(len(PATTERN_THRESHOLDS))],
        confined=CONFINED_SHARES[rng.integers(len(CONFINED_SHARES))],
        # Directions of inputs that resemble each other are close: after rounds without news only what has
        # converged is merged.
        thin_cosine=THIN_COSINE if effort < 2 else CONVERGED_COSINE,
    )
