"""One ReLU layer as the loop sees it: a round proposes directions, polishes and pools them, chooses and certifies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from ..answer.labels import labels_from
from ..answer.result import Inversion, Status, on_device
from ..arrays import Array, HostArray
from ..backend.devices import Device
from ..backend.host import to_host
from ..backend.work import suitable_threads
from ..checks.certify import ROUGH_AGREEMENT, Verdict
from ..directions.disaggregate import Disaggregation
from ..directions.pool import Pool
from ..directions.repair import repair_candidates, units_off_last
from ..factors.behind import Behind, passed_by, with_layer_behind
from ..factors.decay import Decayed, without_decay
from ..factors.factorize import Factors, factorize
from ..factors.gradients import LayerGradients
from ..factors.rank import Spectrum
from ..factors.signs import SignModel, sign_model
from ..factors.suspects import holds_signs, other_causes
from ..loop.options import DataRange, Options, SearchFactory
from ..loop.problem import Reading
from ..placement import algebra_device
from ..search import Search
from ..search.columns import Columns
from ..search.completion import Completion
from ..search.descent import Descent
from ..search.elsewhere import Elsewhere
from ..search.sampling import Sampling
from ..search.schedule import Schedule
from ..search.together import Seat
from .assemble import CROWDED, Ending, assemble_result, inversion, no_rank_reason, no_zeros_reason
from .choose import add_candidates, demote_failed, select_directions

REDRAWN = 20
"""How often each submatrix of a small layer is drawn on average before the search gives up.

Derived: one of them is then missed with a probability of e^-20.
"""
GIVE_UP_AFTER = 100
"""Rounds after which a complete choice that is not certified will not be bettered: the zeros do not determine it.

Heuristic: far more rounds than batches take that are found.
"""
FORGET_AFTER = 6
"""Complete choices that failed, after which all directions that contradict the layer are forgotten.

Heuristic: blame of single directions must have had its turns.
"""
STALE_ROUNDS = 10
"""Rounds that a basis must have withstood where no activation signs tell when it is right.

Heuristic: a direction that a round finds with a probability of 1 / 2 is missed by ten with 1 / 1000.
"""
BARREN_ROUNDS = 6
"""Rounds without a single direction after which none will come.

Measured: in all of 285 random and altered layers and 20 at the edge of reach that ended with inputs, the first direction came in
the first or the second round.
"""
BARREN_CROWDED = 3
"""The same for batches beyond `CROWDED`.

Measured: as `BARREN_ROUNDS`; rounds take long there.
"""


@dataclass(frozen=True, eq=False)
class LayerState:
    """What the search knows of the directions of one layer after a round."""

    pool: Pool
    fullest: Pool
    """The pool that knew most directions to rely on: what a partial answer is made of."""
    choice: Disaggregation | None = None
    """Best complete choice of directions so far."""
    verdict: Verdict | None = None
    """Its certificate."""
    latest: Disaggregation | None = None
    """The complete choice of the last round; None while directions are missing."""
    evaluated: HostArray | None = None
    """Basis (b, b) behind it."""
    failures: int = 0
    """Complete choices that did not hold."""
    since_better: int = 0
    """Rounds since the best complete choice was found."""
    barren: int | None = 0
    """Rounds so far, if none of them found a direction; None once one did."""
    proposals: int = 0
    """Candidates examined so far."""
    search: str = ""
    """Name of the search that proposed last."""

    @property
    def found(self) -> int:
        """Independent directions known."""
        return len(self.pool.basis)

    @property
    def agreement(self) -> float | None:
        """λ of the best complete choice so far."""
        return None if self.choice is None else self.choice.mean_agreement()

    @property
    def settled(self) -> bool:
        """Whether nothing better can be expected: exact, limited by noise alone, or unopposed for long."""
        if self.verdict is None:
            return False
        return self.verdict.complete if self.verdict.checked_signs else self.pool.stale >= STALE_ROUNDS


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """One layer with its factors, the search for it, and what the caller knows of the inputs."""

    factors: Factors
    model: SignModel | None
    search: Search
    data_range: DataRange | None = None
    behind: Behind | None = None
    """The layer that follows, if it is known."""
    where: Device | None = None
    """Where the answer is wanted, if not on the device of the factors."""

    @property
    def batch_size(self) -> int:
        """b, the rank used."""
        return self.factors.space.batch_size

    def threads(self) -> AbstractContextManager[Any]:
        """Return the limit that suits matrices of m rows and b columns."""
        space = self.factors.space
        return suitable_threads(space.device, space.shape[0] * space.batch_size)

    def start(self) -> LayerState:
        """Nothing is known."""
        nothing = Pool.empty(self.batch_size, self.factors.space.U.shape[0])
        return LayerState(nothing, nothing)

    def advance(self, state: LayerState, rng: np.random.Generator) -> LayerState:
        """Propose, polish, pool; once b directions are known: choose by λ, scale, check."""
        factors = self.factors
        repairs = repair_candidates(factors, state.pool, state.latest)
        proposals = self.search.propose(factors.space, state.pool, rng)
        sharp = proposals.candidates if proposals.sharp else proposals.candidates[:0, :]
        blunt = proposals.candidates[sharp.shape[0] :, :]
        candidates = factors.space.xp.concat([repairs, blunt], axis=0)
        pool = add_candidates(factors.space, self.model, state.pool, candidates, sharp, rng)
        pool = pool.after_round(news=len(pool.fresh_positions(state.pool.basis_vectors)))
        after = replace(
            state, pool=pool, proposals=state.proposals + proposals.examined, search=proposals.search
        )
        after = self._chosen(after, rng) if pool.complete else replace(after, latest=None)
        bettered = after.choice is None or after.choice is not state.choice
        fuller = len(after.pool.trusted) > len(state.fullest.trusted)
        return replace(
            after,
            fullest=after.pool if fuller else state.fullest,
            since_better=0 if bettered else state.since_better + 1,
            barren=None if after.found or state.barren is None else state.barren + 1,
        )

    def _chosen(self, state: LayerState, rng: np.random.Generator) -> LayerState:
        """Choose from a complete pool, if its basis is a new one, and doubt what does not hold."""
        factors, basis = self.factors, state.pool.basis_vectors
        if state.latest is None or state.evaluated is None or not np.array_equal(basis, state.evaluated):
            latest, pool, choice, verdict = select_directions(
                factors, state.pool, state.choice, state.verdict
            )
            state = replace(state, latest=latest, pool=pool, choice=choice, verdict=verdict, evaluated=basis)
        if state.verdict is not None and state.verdict.complete:
            return state
        assert state.latest is not None  # a pool that is complete was chosen from
        failures = state.failures + 1
        pool = demote_failed(state.pool, state.latest, rng, forget=failures % FORGET_AFTER == 0)
        return replace(state, pool=pool, failures=failures)

    def forecast(self) -> float | None:
        """Forecast of the search."""
        return self.search.forecast(self.factors.space)

    def exhausted(self, state: LayerState) -> str | None:
        """Return a reason to stop early: the search has seen all there is, nothing better for long, or nothing at all."""
        if self._barren(state):
            return no_zeros_reason(self.factors.space, self.factors.gradients, state.proposals)
        patience = GIVE_UP_AFTER if self.batch_size > 1 else STALE_ROUNDS
        if state.since_better >= patience:
            return (
                f"the choice of directions withstood {patience} rounds of search{self._contradiction(state)}"
            )
        if state.pool.stale < STALE_ROUNDS:
            return None
        b = self.batch_size
        subsets = math.comb(int(self.factors.space.U.shape[0]), b - 1)
        if state.proposals > REDRAWN * subsets:
            return f"all {subsets} submatrices were drawn, about {REDRAWN} times each"
        off = units_off_last(self.factors, state.pool)
        if off is not None and off < b:
            return f"the last input leaves {off} units off, fewer than the {b} that tell its direction"
        return None

    def _contradiction(self, state: LayerState) -> str:
        """What it means that the signs of the layer contradict the best choice, if they do, and what was found with it."""
        explained = state.found and not state.pool.unexplained
        if state.agreement is None or state.agreement >= ROUGH_AGREEMENT or explained:
            return ""
        return (
            f", but its activation signs contradict the layer (λ = {state.agreement:.2g}): something else than a ReLU follows it, or "
            "the weights are not those of the gradient"
        )

    def first_direction(self, seconds: float) -> tuple[str | None, bool | None]:
        """Search until one direction is known.

        Returns why there is none, and whether there is one: None, without a reason, where `seconds` passed before a search
        that sees none was over.
        """
        started, rng, state = time.perf_counter(), np.random.default_rng(0), self.start()
        with self.threads():
            while not state.found:
                if self._barren(state):
                    return no_zeros_reason(self.factors.space, self.factors.gradients, state.proposals), False
                if time.perf_counter() - started > seconds:
                    return None, None
                state = self.advance(state, rng)
        return None, True

    def _barren(self, state: LayerState) -> bool:
        """Whether a search that finds a direction at once, where there are any, has found none."""
        search = self.search.search if isinstance(self.search, Elsewhere) else self.search
        if state.barren is None or not isinstance(search, Schedule | Descent):
            return False
        crowded = self.batch_size > CROWDED * self.factors.space.live.shape[0]
        return state.barren >= (BARREN_CROWDED if crowded else BARREN_ROUNDS)

    def answer(self, state: LayerState, ended: str | None) -> Inversion:
        """Return the inputs that are vouched for."""
        ending = Ending(state.choice, state.verdict, state.fullest, ended)
        answer = assemble_result(self.factors, ending, self.data_range)
        answer = replace(answer, labels=self._labels(answer))
        return answer if self.where is None else on_device(answer, self.where)

    def _labels(self, answer: Inversion) -> Array | None:
        """(k,): labels of the inputs of an `answer`, where the layer behind is the output layer."""
        if self.behind is None or not self.behind.output or not answer.found:
            return None
        space = self.factors.space
        columns = space.live_of(answer.output_grad) / space.live_of(space.noise)[:, None]
        passed = passed_by(space, columns.T @ space.U)
        return (
            None if passed is None else space.device.integers(labels_from(to_host(passed), self.behind.loss))
        )


def layer_readings(
    gradients: LayerGradients,
    device: Device,
    options: Options,
    behind: Behind | None = None,
    seat: Seat | None = None,
) -> Callable[[int], Reading]:
    """Return what reads `gradients`, without weight decay, at one reading of their singular values.

    `behind` is the layer that follows, if it is known. Of a small layer on a card only the search is there, and with a
    `seat` only its launches, together with those of other layers.
    """
    algebra = algebra_device(device, gradients.shape[0])

    @cache
    def decayed() -> Decayed:
        with _threads(gradients, algebra):
            return without_decay(gradients, algebra, options.batch_size)

    return lambda reading: read_layer(decayed(), device, options, reading, behind, seat)


def _threads(gradients: LayerGradients, device: Device) -> AbstractContextManager[Any]:
    m, _ = gradients.shape
    return suitable_threads(device, m * m)


def read_layer(
    decayed: Decayed,
    device: Device,
    options: Options,
    reading: int = 0,
    behind: Behind | None = None,
    seat: Seat | None = None,
) -> Reading:
    """Factorise a layer at one reading of the singular values and pose the problem of inverting it, with its search on `device`."""
    gradients, factors = decayed.gradients, decayed.factors
    algebra = algebra_device(device, gradients.shape[0])
    if reading > 0:
        with _threads(gradients, algebra):
            factors = factorize(gradients, algebra, options.batch_size, reading=reading)
    spectrum = factors if isinstance(factors, Spectrum) else factors.space.spectrum
    left = spectrum.alternatives if options.batch_size is None else 0

    def refused(reason: str) -> Reading:
        values = spectrum.singular_values
        return Reading(
            inversion(
                gradients, device, Status.FAILED, reason, 0, options.data_range, singular_values=values
            ),
            left,
        )

    if isinstance(factors, Spectrum):
        return refused(no_rank_reason(factors, gradients, algebra))
    crowded = factors.space.batch_size > CROWDED * factors.space.live.shape[0]
    if crowded and holds_signs(gradients, algebra):
        return refused(other_causes(gradients, algebra))
    factors = replace(factors, space=with_layer_behind(factors.space, behind))
    with suitable_threads(algebra, gradients.shape[0] * factors.space.batch_size):
        model = sign_model(factors)
        search = search_for(options.method, factors, model, behind, device if seat is None else algebra, seat)
    where = None if algebra is device else device
    return Reading(LayerProblem(factors, model, search, options.data_range, behind, where), left)


def search_for(
    method: str | SearchFactory,
    factors: Factors,
    model: SignModel | None,
    behind: Behind | None = None,
    device: Device | None = None,
    seat: Seat | None = None,
) -> Search:
    """Return the search of that name, or the caller's own.

    `behind` is the layer that follows, if it is known. Searches that follow thousands of starts or subsets run on `device`, by
    default that of the factors, as the others do; with a `seat` they leave their launches to it.
    """
    space = factors.space

    def there(search: Search) -> Search:
        return search if device is None or device == space.device else Elsewhere.on(device, search, space)

    if method == "sampling" or space.batch_size == 1:
        return there(Sampling(seat=seat))
    if not isinstance(method, str):
        return method(factors, model)
    descent = there(Descent.prepare(space, model, seat=seat))
    if method == "descent":
        return descent
    return Schedule(
        descent,
        there(Sampling(seat=seat)),
        Completion.prepare(factors, model),
        Columns.prepare(factors, model, behind),
    )
