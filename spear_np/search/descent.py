"""Row-weighted ℓ1 descent on the sphere, many starts at once: a search that is polynomial in the batch size.

A direction of the batch leaves about half of the units without gradient, so it is a sharp local minimum of
``Σ_j w_j |u_j · q|`` over the unit sphere. Projected subgradient steps of geometrically decaying length find it
[1]_ [2]_. Three things beyond the literature make large batches possible:

- *Row weights.* Zeros do not move when rows are scaled: scale by leverage^-α, which evens out the columns.
- *Signs inside the descent.* The layer must be able to produce the candidate's on/off pattern. Every few steps its
  pre-activations are predicted from the soft pattern by the smoother of `signs.smoother`, and rows predicted to be
  on lose weight.
- *Deflation through the layer.* A known direction y_i fixes its input's coordinates c_i (`signs.fit_signs`). Unknown
  directions are orthogonal to every c_i: search their complement while steps are long, then release.

References
----------
.. [1] Bai, Jiang, Sun, "Subgradient Descent Learns Orthogonal Dictionaries", ICLR 2019.
.. [2] Zhu et al., "Dual Principal Component Pursuit: Improved Analysis and Efficient Algorithms", NeurIPS 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import inverse_or_pseudoinverse, to_host
from ..factorize import Factors
from ..pool import Pool
from . import Proposals
from .signs import SignModel, smoother

Array = Any
HostArray = np.ndarray[Any, Any]

ALPHAS = (0.75, 1.0, 1.5, 2.0, 2.5)
PLAIN_SHARES = (0.05, 0.2, 0.3, 0.25, 0.2)
DEFLATED_SHARES = (0.1, 0.3, 0.35, 0.2, 0.05)
STEPS = 500
SIGN_INTERVAL = 4
LAST_STEP = 5e-5
HOLD = 0.3
"""Share of the steps of constant length."""
TRUSTED = 0.97
"""Agreement with the layer from which a direction is used for deflation."""
DISTINCT = 0.9995
MAX_CANDIDATES = 64


@dataclass(frozen=True)
class Weighting:
    """One row weighting: orthonormal weighted rows and the way back."""

    rows: Array
    """(ℓ, b) float32: U_α, orthonormal columns."""
    to_q: Array
    """(b, b): q = to_q · u for a direction u in weighted coordinates."""
    to_weighted: Array
    """(b, b): the inverse."""


@dataclass(frozen=True)
class Tempering:
    """How one block descends; drawn anew for each, so that no column starves."""

    steps: int
    first_step: float
    kappa: tuple[float, float]
    """Sharpness of the sign weights, first and last."""
    tau: float
    """Threshold of the soft pattern, in means of |U q|."""
    confined: float
    """Share of the steps spent in the complement of the known inputs."""
    concave: bool
    """Whether the ℓ1 norm turns into a logarithm on the way."""


@dataclass(frozen=True)
class Descent:
    """ℓ1 descent for one layer, with everything that does not change prepared."""

    weightings: tuple[Weighting, ...]
    model: SignModel | None
    name: str = "descent"

    @classmethod
    def prepare(cls, factors: Factors, model: SignModel | None) -> Descent:
        """Compute the weighted rows for every exponent."""
        xp = factors.xp
        raw = xp.take(factors.coordinates, factors.live, axis=0)
        left = xp.linalg.svd(raw / xp.max(xp.abs(raw)), full_matrices=False)[0]
        leverage = xp.linalg.vector_norm(left, axis=1)
        leverage = leverage / xp.max(leverage)
        return cls(tuple(_weighting(factors, left, leverage**-alpha) for alpha in ALPHAS), model)

    def propose(self, factors: Factors, pool: Pool, rng: np.random.Generator) -> Proposals:
        """Descend from one block of starts; returns the distinct ends, sharpest first."""
        xp, b = factors.xp, factors.batch_size
        trusted = self._trusted(pool, rng)
        deflated = len(trusted) > 0
        alpha = rng.choice(len(ALPHAS), p=DEFLATED_SHARES if deflated else PLAIN_SHARES)
        weighting = self.weightings[2 if not len(pool.q) else int(alpha)]
        complement, known = (
            (None, None) if not deflated else self._deflation(factors, pool, trusted, weighting)
        )
        count = 128 if factors.U.shape[0] >= 1500 else 192
        left = b - len(trusted)
        if deflated:
            count = max(48, min(count, 3 * left))
        tempering = _temper(
            rng, first=not len(pool.q), few=deflated and left < max(4, 0.1 * b), stale=pool.stale
        )
        if rng.random() < 0.15:
            start = factors.device.float32(rng.standard_normal((count, b)))
        else:
            picks = rng.integers(0, factors.U.shape[0], count)
            start = xp.take(weighting.rows, factors.device.integers(picks), axis=0)
        signs = None if self.model is None else smoother(factors, self.model, complement)
        ends = descend(factors, weighting.rows, start, tempering, signs=signs, known=known)
        return Proposals(self._distinct(factors, weighting, ends) @ weighting.to_q.T, count, self.name)

    def forecast(self, factors: Factors) -> float | None:
        """No forecast: a start either ends on a new direction or does not."""
        return None

    def _trusted(self, pool: Pool, rng: np.random.Generator) -> HostArray:
        """Indices of directions to deflate by: those of the basis whose pattern the layer can produce."""
        nothing = np.empty(0, dtype=np.int64)
        if self.model is None or rng.random() < 0.1:
            return nothing
        basis = np.asarray(pool.basis, dtype=np.int64)
        trusted = basis[(pool.agreement[basis] >= TRUSTED) & (pool.penalty[basis] == 0)]
        if pool.stale > 2 and rng.random() < 0.5:
            trusted = trusted[rng.random(len(trusted)) < 0.7]
        chosen: HostArray = trusted[: pool.q.shape[1] - 1]
        return chosen

    def _deflation(
        self, factors: Factors, pool: Pool, trusted: HostArray, weighting: Weighting
    ) -> tuple[Array, Array]:
        """Return the complement N (b, b-f) of the known y in V and the known inputs (b, f) in weighted space."""
        xp, device = factors.xp, factors.device
        y = device.float64(pool.q[trusted]) / factors.S
        y = y / xp.linalg.vector_norm(y, axis=1, keepdims=True)
        f = y.shape[0]
        full = xp.linalg.qr(y.T, mode="complete").Q
        # Make every estimated c_i orthogonal to the other y_j, as the true ones are: keep its part outside their
        # span and, inside, only the dual of y_i itself.
        c = device.float64(pool.coordinates[trusted])
        dual = xp.linalg.solve(y @ y.T + 1e-12 * device.eye(f), y)
        own = xp.sum(c * dual, axis=1) / xp.sum(dual**2, axis=1)
        outside = c - (c @ y.T) @ dual + own[:, None] * dual
        # q · p = y · c for every pair, so in weighted coordinates an input is to_qᵀ (c / S).
        inputs = weighting.to_q.T @ (outside / factors.S).T
        return full[:, f:], xp.linalg.qr(inputs / xp.linalg.vector_norm(inputs, axis=0)).Q

    def _distinct(self, factors: Factors, weighting: Weighting, ends: Array) -> Array:
        """Ends (k, b) that differ, those with the clearest zeros first."""
        xp, b = factors.xp, factors.batch_size
        rows = xp.astype(weighting.rows, xp.float64)
        good = xp.nonzero(xp.all(xp.isfinite(ends), axis=1))[0]
        ends = xp.astype(xp.take(ends, good, axis=0), xp.float64)
        values = xp.sort(xp.abs(ends @ rows.T), axis=1)
        few = min(int(1.25 * b) + 2, values.shape[1])
        sharpness = to_host(xp.mean(values[:, :few], axis=1) / xp.mean(values, axis=1))
        order = np.argsort(sharpness, kind="stable")
        cosine = np.abs(to_host(ends @ ends.T))
        chosen: list[int] = []
        taken = np.zeros(len(order), dtype=bool)
        for index in order:
            if not taken[index]:
                chosen.append(int(index))
                taken |= cosine[index] >= DISTINCT
            if len(chosen) == MAX_CANDIDATES:
                break
        return xp.take(ends, factors.device.integers(chosen), axis=0)


def descend(
    factors: Factors,
    rows: Array,
    start: Array,
    tempering: Tempering,
    *,
    signs: tuple[Array, Array] | None,
    known: Array | None,
) -> Array:
    """Return where the starts (k, b) end after `tempering.steps` subgradient steps, float32.

    Parameters
    ----------
    rows : (ℓ, b) float32, orthonormal columns
    signs : (E (ℓ, r), w (r,)), optional
        Smoother of pre-activations; without it the ℓ1 norm is unweighted.
    known : (b, f), optional
        Orthonormal directions left out of the first steps.
    """
    xp, device = factors.xp, factors.device
    free = None
    q, current = start, rows
    if known is not None and known.shape[1] < rows.shape[1]:
        free = device.float32(xp.linalg.qr(known, mode="complete").Q[:, known.shape[1] :])
        q, current = q @ free, rows @ free
    transposed = current.T
    q = q / xp.linalg.vector_norm(q, axis=1, keepdims=True)
    if signs is not None:
        spread, shrink = device.float32(signs[0]), device.float32(signs[1])
        gather, scatter = spread * shrink, spread.T
    weights = None
    for step in range(tempering.steps):
        done = step / tempering.steps
        if free is not None and done >= tempering.confined:
            q, current, transposed, free = q @ free.T, rows, rows.T, None
        values = q @ transposed
        size = xp.abs(values)
        if signs is not None and done >= 0.12 and step % SIGN_INTERVAL == 0:
            mean = xp.mean(size, axis=1, keepdims=True)
            pattern = xp.clip(size / (tempering.tau * mean) - 1, -1.0, 1.0)
            z = (pattern @ gather) @ scatter
            kappa = tempering.kappa[0] + (tempering.kappa[1] - tempering.kappa[0]) * done
            z *= kappa / (xp.sqrt(xp.mean(z * z, axis=1, keepdims=True)) + 1e-30)
            weights = 1 / (1 + xp.exp(xp.clip(z, -60.0, 60.0)))
        pull = xp.sign(values)
        if tempering.concave and done > 0.2:
            width = 3 * 0.1 ** ((done - 0.2) / 0.8) * xp.mean(size, axis=1, keepdims=True)
            pull *= width / (size + width)
        if weights is not None:
            pull *= weights
        gradient = pull @ current
        gradient -= xp.sum(gradient * q, axis=1, keepdims=True) * q
        length = xp.sqrt(xp.sum(gradient * gradient, axis=1, keepdims=True)) + 1e-30
        q = q - gradient * (_step_length(tempering.first_step, done) / length)
        q = q / xp.sqrt(xp.sum(q * q, axis=1, keepdims=True))
    return q if free is None else q @ free.T


def _step_length(first: float, done: float) -> float:
    """Constant for the first `HOLD` of the steps, then geometric down to `LAST_STEP`."""
    return first if done < HOLD else first * (LAST_STEP / first) ** ((done - HOLD) / (1 - HOLD))


def _weighting(factors: Factors, left: Array, scale: Array) -> Weighting:
    """Orthonormalise the rows of `left` (ℓ, b) times `scale` (ℓ,), keeping the map to U-coordinates."""
    xp = factors.xp
    Q, R = xp.linalg.qr(left * scale[:, None])
    # D column = coordinates y = left · (leftᵀ coordinates) y, and y = q / S.
    raw = xp.take(factors.coordinates, factors.live, axis=0)
    to_weighted = R @ (left.T @ raw) / factors.S
    to_weighted = to_weighted / xp.linalg.vector_norm(to_weighted)
    return Weighting(factors.device.float32(Q), inverse_or_pseudoinverse(xp, to_weighted), to_weighted)


def _temper(rng: np.random.Generator, *, first: bool, few: bool, stale: int) -> Tempering:
    """Draw how to descend; more steps after rounds without news, sharp signs for the last few columns."""
    kappa = ((0.0, 4.0), (0.0, 10.0), (0.0, 10.0), (1.0, 20.0))[rng.integers(4)]
    first_step = (0.2, 0.3, 0.3, 0.4)[rng.integers(4)]
    if first:
        kappa, first_step = (0.0, 4.0), 0.3
    if few:
        kappa = (3.0, 30.0)
    slow = 1 if stale < 3 else 2 if stale < 12 else 4
    return Tempering(
        steps=STEPS * slow,
        first_step=first_step,
        kappa=kappa,
        tau=(0.4, 0.5, 0.6, 0.8)[rng.integers(4)],
        confined=(0.2, 0.3, 0.3, 0.4)[rng.integers(4)],
        concave=bool(rng.random() < 0.5),
    )
