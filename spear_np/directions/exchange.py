"""The second stage of the published algorithm: which b of the directions found fit the layer together.

Hundreds of choices differ from each other in one direction. Their λ are computed side by side, from what every direction says
alone and one inverse a choice; what is chosen is computed anew, with care, by `disaggregate`.
"""

from __future__ import annotations

import numpy as np

from ..arrays import HostArray
from ..backend.algebra import TINIEST, inverse_or_pseudoinverse, least_squares
from ..backend.host import to_host
from ..backend.work import block_length, block_numbers, one_by_one
from ..factors.factorize import Factors
from .disaggregate import Disaggregation, agreeing, disaggregate, has_gradient, signs_asked
from .pool import Pool

SWAP_WORK = 2_000_000
"""Alternatives tried, times the m·b entries each of them costs.

Heuristic: it bounds the time of the stage to about a second.
"""
LEAST_SWAPS = 4
"""Alternatives tried whatever they cost.

Heuristic: as `SWAP_WORK`.
"""
TRIED_FIRST = 16
"""Alternatives whose λ are computed together; twice as many whenever none of them is better.

Heuristic: what lies behind one that is better was computed in vain; it changes no answer.
"""


def exchange_directions(factors: Factors, pool: Pool, start: Disaggregation) -> tuple[Disaggregation, Pool]:
    """Exchange directions for others of the pool while λ grows.

    The columns with the lowest λ are exchanged first. Returns the best choice and the pool with that basis.
    """
    best, basis = start, list(pool.basis)
    if best.sign_agreement is None or best.mean_agreement() == 1.0 or len(pool.q) == len(basis):
        return best, pool
    limit = max(LEAST_SWAPS, SWAP_WORK // (factors.space.shape[0] * len(basis)))
    trials = _Trials(factors, pool, lenient=start.lenient)
    tried, improving = 0, True
    while improving and tried < limit and best.mean_agreement() != 1.0:
        improving = False
        outside = sorted(set(range(len(pool.q))) - set(basis))
        while outside and tried < limit and best.mean_agreement() != 1.0:
            swaps = trials.swaps(best, basis, outside)[: limit - tried]
            seen, better = trials.first_better(best, basis, swaps)
            tried += seen
            if better is None:
                break
            best, improving = better, True
            index, place = swaps[seen - 1]
            basis[place] = index
            outside = outside[outside.index(index) + 1 :]
    return best, pool.with_basis(tuple(basis)) if best is not start else pool


class _Trials:
    """Choices of directions of one pool, compared by their λ."""

    def __init__(self, factors: Factors, pool: Pool, *, lenient: bool) -> None:
        space, xp = factors.space, factors.space.xp
        assert factors.layer is not None  # there is no λ without it
        self._factors, self._lenient = factors, lenient
        self._directions = space.device.float64(pool.q)
        self._angle = pool.angle
        self._passing = xp.matrix_transpose(has_gradient(space, self._directions))
        self._length = xp.linalg.vector_norm(space.columns(self._directions), axis=0)
        self._weight = space.live_of(factors.layer.weight_in_basis)
        self._bias = space.live_of(factors.layer.bias)
        self._along = None
        if factors.bias_grad is not None:
            self._along = space.U.T @ space.live_of(factors.bias_grad / space.noise)

    def swaps(self, choice: Disaggregation, basis: list[int], outside: list[int]) -> list[tuple[int, int]]:
        """[(direction, place)]: what may come into the basis in turn, and where, columns of the lowest λ first.

        A wrong direction spoils the λ of its own column and of those it mixes in: a direction may take the place of each that it
        could replace.
        """
        space, xp = self._factors.space, self._factors.space.xp
        inside, others = (
            xp.take(self._directions, space.device.integers(which), axis=0).T for which in (basis, outside)
        )
        # An exchange may have left directions that are hardly independent: no plain solve.
        shares = np.abs(to_host(least_squares(xp, inside, others)))
        agreement = to_host(choice.sign_agreement)
        order = np.argsort(agreement, kind="stable")
        possible = (shares > self._angle[outside]) & (agreement < 1)[:, None]
        which, place = np.nonzero(possible[order].T)
        return list(zip(np.asarray(outside)[which].tolist(), order[place].tolist(), strict=True))

    def first_better(
        self, best: Disaggregation, basis: list[int], swaps: list[tuple[int, int]]
    ) -> tuple[int, Disaggregation | None]:
        """Return how many of the `swaps` in `basis` were tried, and the choice by the last of them if its λ exceeds that of `best`."""
        space = self._factors.space
        least = best.mean_agreement() or 0.0
        most = block_length(self._passing.shape[1] * len(basis), block_numbers(space.device))
        first, count = 0, TRIED_FIRST
        while first < len(swaps):
            part = swaps[first : first + min(count, most)]
            choices = np.tile(np.asarray(basis), (len(part), 1))
            for choice, (index, place) in zip(choices, part, strict=True):
                choice[place] = index
            for row in np.flatnonzero(self._agreement(choices) > least).tolist():
                chosen = space.xp.take(self._directions, space.device.integers(choices[row]), axis=0)
                candidate = disaggregate(self._factors, chosen, lenient=self._lenient)
                if (candidate.mean_agreement() or 0.0) > least:
                    return first + row + 1, candidate
            first, count = first + len(part), 2 * count
        return len(swaps), None

    def _agreement(self, choices: HostArray) -> HostArray:
        """(k,): λ of each of the `choices` (k, b) of directions, see `disaggregate`."""
        device, every = self._factors.space.device, [slice(0, len(choices))]
        return np.concatenate(one_by_one(device, lambda part: self._agreement_of(choices[part]), every))

    def _agreement_of(self, choices: HostArray) -> HostArray:
        """The same for as many as are computed at once."""
        space, layer = self._factors.space, self._factors.layer
        assert layer is not None
        xp, device = space.xp, space.device
        k, b = choices.shape
        members = device.integers(choices.reshape(-1))
        inverse = inverse_or_pseudoinverse(
            xp, xp.reshape(xp.take(self._directions, members, axis=0), (k, b, b))
        )
        if self._along is None:
            scale = 1 / xp.reshape(xp.take(self._length, members), (k, b))
        else:
            # Rows of weight_grad over their noise are U diag(S): with U orthonormal, least squares on them are a solve.
            scale = self._along @ inverse
            scale = xp.where(xp.abs(scale) < TINIEST, xp.ones_like(scale), scale)
        z = self._weight @ (space.S[None, :, None] * inverse / scale[:, None, :])  # (k, ℓ, b)
        passing = xp.reshape(xp.take(self._passing, members, axis=0), (k, b, -1))
        passing = xp.matrix_transpose(passing)
        if self._along is None:
            z = z * signs_asked(xp, passing, z)[:, None, :]
        on = layer.states(z + self._bias[:, None])[0]
        agree = agreeing(on, passing, lenient=self._lenient)
        return to_host(xp.mean(xp.astype(agree, xp.float64), axis=(1, 2)))
