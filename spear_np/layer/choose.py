"""From candidates to a complete choice of directions: judged, pooled, chosen by λ, refined, and doubted if it fails."""

from __future__ import annotations

import numpy as np

from ..arrays import Array, HostArray
from ..backend.host import to_host
from ..checks.certify import Verdict, certify
from ..directions.disaggregate import Disaggregation, contradicting, disaggregate, doubtful
from ..directions.exchange import exchange_directions
from ..directions.polish import Directions, collect, polish
from ..directions.pool import Candidates, Pool
from ..directions.reduction import reduce_pairs
from ..directions.refine import refined
from ..directions.repair import realigned
from ..directions.uniqueness import single_row_support
from ..factors.factorize import Factors
from ..factors.row_space import RowSpace
from ..factors.signs import SignModel, fit_signs
from ..factors.zero import expected_hidden
from ..inputs.reconstruct import reconstruct

REDUCTIONS = 3
"""Passes of pairwise reduction after one block of proposals.

Heuristic: mixtures of more than four inputs are rare.
"""
MOST_HIDDEN = 0.05
"""Share of the units on which a direction may disagree with the layer because noise hides its gradients there.

Heuristic: more would let mixtures pass, see `SURE_FIT`.
"""
FORGOTTEN = 0.5
"""Probability with which a direction that contradicts the layer is forgotten, where no others are left.

Heuristic: some must go, and not the same ones each time.
"""


def add_candidates(
    space: RowSpace,
    model: SignModel | None,
    pool: Pool,
    candidates: Array,
    sharp: Array,
    rng: np.random.Generator,
) -> Pool:
    """Polish `candidates` (k, b) into the pool, beside `sharp` ones, then take mixtures of two basis directions apart."""
    before = pool.basis_vectors
    pool = pool.merge(_judge(space, model, collect(space, sharp)))
    pool = pool.merge(_judge(space, model, polish(space, candidates, pool, rng)))
    for _ in range(REDUCTIONS):
        fresh = pool.fresh_positions(before)
        if not len(fresh):
            break
        before = pool.basis_vectors
        found = polish(space, reduce_pairs(space, pool, fresh), pool, rng)
        if not len(found.q):
            break
        pool = pool.merge(_judge(space, model, found))
    return pool


def _judge(space: RowSpace, model: SignModel | None, found: Directions) -> Candidates:
    """Add what the layer says of polished directions."""
    if model is None:
        agreement, coordinates = np.ones(len(found.q)), np.zeros_like(found.q)
    else:
        agreement, coordinates = fit_signs(space, model, space.device.booleans(~found.zero_mask))
        if space.noisy:
            agreement = np.minimum(1.0, agreement + _hidden_shares(space, found.q))
    lone = single_row_support(space, space.device.float64(found.q), found.zero_mask)
    return Candidates(found.q, found.zero_mask, found.angle, agreement, coordinates, lone)


def _hidden_shares(space: RowSpace, q: HostArray) -> HostArray:
    """(k,): share of the units on which noise is expected to hide a gradient of `q` (k, b), `MOST_HIDDEN` at most."""
    units = to_host(space.noise_units(space.device.float64(q)))
    hidden = np.asarray([expected_hidden(column) for column in units])
    shares: HostArray = np.minimum(hidden / space.U.shape[0], MOST_HIDDEN)
    return shares


def select_directions(
    factors: Factors, pool: Pool, choice: Disaggregation | None, verdict: Verdict | None
) -> tuple[Disaggregation, Pool, Disaggregation, Verdict]:
    """Choose directions from a complete `pool`: (choice, its pool, best choice so far, its certificate).

    First by λ. If that fails and the layer does not explain the zeros, by the lenient λ, which ignores missing
    gradients: it does not give up true directions for denser ones that happen to agree more.
    """
    latest, improved = _by_agreement(factors, pool, lenient=False)
    choice, verdict = _better(factors, latest, choice, verdict)
    if pool.unexplained and factors.signs_known and not verdict.complete:
        latest, improved = _by_agreement(factors, pool, lenient=True)
        choice, verdict = _better(factors, latest, choice, verdict)
    return latest, improved, choice, verdict


def _by_agreement(factors: Factors, pool: Pool, *, lenient: bool) -> tuple[Disaggregation, Pool]:
    """Choice of the highest λ that the second stage reaches from the basis of `pool`, refined, and the pool with its basis."""
    q = factors.space.device.float64(pool.basis_vectors)
    choice, improved = exchange_directions(factors, pool, disaggregate(factors, q, lenient=lenient))
    return refined(factors, realigned(factors, choice)), improved


def _better(
    factors: Factors, challenger: Disaggregation, champion: Disaggregation | None, verdict: Verdict | None
) -> tuple[Disaggregation, Verdict]:
    """Return the better of two complete choices and its certificate; the champion comes with its `verdict`.

    More agreement wins, or simply the newer where none is known. Of two whose λ count different things, it is the one
    of which more inputs pass their checks.
    """
    alike = champion is None or challenger.lenient == champion.lenient
    if champion is not None and verdict is not None and alike and not _beats(challenger, champion):
        return champion, verdict
    # Directions that hardly differ, as of a wrong rank, have inputs that overflow: no check holds then.
    with np.errstate(over="ignore", invalid="ignore"):
        new = certify(factors, challenger, reconstruct(factors, challenger))
    if (
        champion is None
        or verdict is None
        or alike
        or np.sum(new.accepted_rows) > np.sum(verdict.accepted_rows)
    ):
        return challenger, new
    return champion, verdict


def _beats(challenger: Disaggregation, champion: Disaggregation) -> bool:
    """Whether a new complete choice replaces the old: more agreement, or simply newer where none is known."""
    new, old = challenger.mean_agreement(), champion.mean_agreement()
    return new is None or old is None or new > old


def demote_failed(pool: Pool, latest: Disaggregation, rng: np.random.Generator, *, forget: bool) -> Pool:
    """Lower the rank of the worst direction of a choice that failed; at times forget those that contradict the layer.

    Without it a search can hang on one wrong combination that outranks the directions it is made of. One wrong
    direction makes others contradict the layer: those that nothing else speaks against stay, unless there are no others.
    """
    if latest.sign_agreement is None:
        return pool
    if not forget:
        return pool.blame(doubtful(latest, pool))
    suspect = np.zeros(len(pool.q), dtype=bool)
    suspect[contradicting(latest, pool)] = True
    outside = np.ones_like(suspect)
    outside[list(pool.basis)] = False
    if np.any(suspect & ~pool.pattern_feasible):
        return pool.without((suspect | outside) & ~pool.pattern_feasible)
    return pool.without(outside | (suspect & (rng.random(len(suspect)) < FORGOTTEN)))
