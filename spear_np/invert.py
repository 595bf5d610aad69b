"""The story: one function that reads like the paper, from gradients to inputs with a certificate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import polytope
from .backend import Device, device_for, suitable_threads, to_host
from .certificate import Certificate
from .certify import MAX_CHANCE, Verdict, certify, chances
from .disaggregate import Disaggregation, contradicting, disaggregate, doubtful, improve
from .errors import InputError
from .factorize import NOISY_FROM, Factors, expand, expected_hidden, factorize
from .gradients import LayerGradients
from .partial import partial_inputs
from .polish import Directions, polish
from .pool import Candidates, Pool
from .rank import Spectrum
from .reconstruct import reconstruct
from .refine import refined
from .result import Inversion, Progress, Round, Status
from .scale import DataRange, checked_range, choose_scale
from .search import Search
from .search.completion import Completion
from .search.descent import Descent
from .search.reduction import reduce_pairs
from .search.repair import realigned, repair_candidates, units_off_last
from .search.sampling import Sampling
from .search.schedule import Schedule
from .search.signs import SignModel, fit_signs, sign_model
from .uniqueness import lone_rows, uniqueness

Array = Any
SearchFactory = Callable[[Factors, SignModel | None], Search]
HostArray = np.ndarray[Any, Any]

METHODS = ("auto", "descent", "sampling")
"""Searches `invert` knows."""
REDUCTIONS = 3
"""Passes of pairwise reduction after one block of proposals."""
STALE_ROUNDS = 10
"""Without activation signs nothing tells when the basis is right: it must have withstood this many rounds."""
REDRAWN = 20
"""How often each submatrix of a small layer is drawn on average before the search gives up."""
GIVE_UP_AFTER = 100
"""Rounds after which a complete choice that is not certified will not be bettered: the zeros do not determine it."""
MAX_HIDDEN = 0.05
"""Share of the units on which a direction may disagree with the layer because noise hides its gradients there."""
FORGET_AFTER = 6
"""Complete choices that failed, after which all directions that contradict the layer are forgotten."""


@dataclass(frozen=True)
class Budget:
    """When to stop a search that has not succeeded."""

    time_limit: float
    """Seconds since the start."""
    max_proposals: int | None
    stop: Callable[[], bool]
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    def exhausted(self, proposals: int) -> str | None:
        """Return why the search must end now, or None."""
        if self.stop():
            return "stopped on request"
        if self.seconds > self.time_limit:
            return f"the time limit of {self.time_limit:g} s is spent"
        if self.max_proposals is not None and proposals >= self.max_proposals:
            return f"the limit of {self.max_proposals} proposals is spent"
        return None


def invert(
    weight_grad: Any,
    bias_grad: Any = None,
    *,
    weight: Any = None,
    bias: Any = None,
    activation: str = "relu",
    precision: str | None = None,
    batch_size: int | None = None,
    data_range: DataRange | None = None,
    method: str | SearchFactory = "auto",
    seed: int = 0,
    device: str | None = None,
    time_limit: float = 600.0,
    max_proposals: int | None = None,
    callback: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Inversion:
    """Recover the batch behind the gradient of a fully connected ReLU layer.

    Parameters
    ----------
    weight_grad : (m, n) array or sliceable, float16, float32 or float64
        ∂L/∂W, summed or averaged over the batch; row j belongs to output unit j. An h5py dataset is read by blocks.
    bias_grad : (m,) array, optional
        ∂L/∂b. Without it each input is found up to its scale.
    weight : (m, n) array or sliceable, optional
        W. Without it activation signs cannot be checked and the status is `approximate` at best.
    bias : (m,) array, optional
        b; zero if missing.
    activation : str
        What follows the layer: "relu" or "relu6"; others leave no zeros to rest on.
    precision : {"float64", "float32", "float16", "bfloat16"}, optional
        What the numbers were rounded to, if narrower than their dtype.
    batch_size : int, optional
        Overrides the rank read off the singular values.
    data_range : (low, high), optional
        Range of the entries of the inputs as the layer sees them, as (0, 1) for pixels. Used only where the scale of the
        inputs is otherwise unknown, because `bias_grad` is missing: each input is then handed out at the largest scale
        that the range allows, see `spear_np.scale`. Where `bias_grad` gives the scale it changes nothing.
    method : {"auto", "descent", "sampling"} or callable
        Where candidate directions come from; "sampling" is the published search. A callable receives the factors of
        the layer and its `SignModel` (None without W) and returns a `spear_np.search.Search` of your own.
    seed : int
        Same seed, same backend, same answer.
    device : {"cpu", "gpu", "gpu:N"}, optional
        Where to compute; by default where the arrays are.
    time_limit : float
        Seconds after which the search ends with what it has.
    max_proposals : int, optional
        Number of candidates after which the search ends.
    callback : callable, optional
        Receives a `Progress` now and then.
    stop : callable, optional
        Asked between rounds; True ends the search with what it has.

    Returns
    -------
    Inversion
        Always, whatever was found: see `Inversion.status`.

    Raises
    ------
    InputError
        If the arrays do not fit together, hold NaN or infinity, or an option is out of range.
    DeviceError
        If the device asked for does not answer.

    References
    ----------
    .. [1] Dimitrov, Baader, Müller, Vechev, "SPEAR: Exact Gradient Inversion of Batches in Federated Learning",
       NeurIPS 2024, arXiv:2403.03945.
    """
    gradients = LayerGradients(weight_grad, bias_grad, weight, bias, activation, precision)
    return invert_layer(
        gradients,
        batch_size=batch_size,
        data_range=data_range,
        method=method,
        seed=seed,
        device=device,
        time_limit=time_limit,
        max_proposals=max_proposals,
        callback=callback,
        stop=stop,
    )


def invert_layer(
    gradients: LayerGradients,
    *,
    batch_size: int | None = None,
    data_range: DataRange | None = None,
    method: str | SearchFactory = "auto",
    seed: int = 0,
    device: str | None = None,
    time_limit: float = 600.0,
    max_proposals: int | None = None,
    callback: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Inversion:
    """Recover the batch behind `gradients`; options, answer and errors as in `invert`."""
    if isinstance(method, str) and method not in METHODS:
        msg = f"unknown method {method!r}: expected one of {', '.join(METHODS)}"
        raise InputError(msg)
    budget = Budget(time_limit, max_proposals, stop or (lambda: False))
    where = device_for(device, gradients.weight_grad)
    run = _Run(
        gradients, where, method, seed, budget, callback or (lambda _: None), checked_range(data_range)
    )
    with where.activate():
        best, left = _read(run, batch_size, reading=0)
        for reading in range(1, left + 1):
            if best.status in (Status.EXACT, Status.APPROXIMATE) or budget.exhausted(0):
                break
            best = max(best, _read(run, batch_size, reading=reading)[0], key=_worth)
        return best


def _worth(result: Inversion) -> tuple[int, int]:
    """What an answer is worth beside one at another reading of the singular values."""
    return [Status.FAILED, Status.PARTIAL, Status.APPROXIMATE, Status.EXACT].index(
        result.status
    ), result.found


def _read(run: _Run, batch_size: int | None, *, reading: int) -> tuple[Inversion, int]:
    """Invert at one reading of the singular values; returns the answer and how many readings are left.

    A reading that leaves others has half of the time that is left.
    """
    m, _ = run.gradients.shape
    run.report("factorize")
    with suitable_threads(run.device, m * m):
        factors = factorize(run.gradients, run.device, batch_size, reading=reading)
    if isinstance(factors, Spectrum):
        return run.inversion(Status.FAILED, no_rank_reason(factors, run.gradients), 0), 0
    left = factors.spectrum.alternatives if batch_size is None else 0
    if left:
        deadline = (run.budget.seconds + run.budget.time_limit) / 2
        run = replace(run, budget=replace(run.budget, time_limit=deadline))
    with suitable_threads(run.device, m * factors.batch_size):
        return _search(factors, run.method, np.random.default_rng(run.seed), run), left


@dataclass(frozen=True)
class _State:
    """What the search knows after a round."""

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
    proposals: int = 0
    history: tuple[Round, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether nothing better can be expected: exact, limited by noise alone, or unopposed for long."""
        if self.verdict is None:
            return False
        if self.verdict.complete:
            return self.verdict.checked_signs or self.pool.stale >= STALE_ROUNDS
        return False


@dataclass(frozen=True)
class _Run:
    """One call of `invert`: its options and how it reports."""

    gradients: LayerGradients
    device: Device
    method: str | SearchFactory
    seed: int
    budget: Budget
    callback: Callable[[Progress], None]
    data_range: DataRange | None = None

    def report(self, stage: str, **figures: Any) -> None:
        self.callback(Progress(stage, self.budget.seconds, self.budget.time_limit, **figures))

    def inversion(self, status: Status, reason: str, batch_size: int, **figures: Any) -> Inversion:
        m = self.gradients.shape[0]
        empty: dict[str, Any] = {
            "found": 0,
            "output_grad": self.device.zeros((m, 0)),
            "recovery": self.device.zeros((0, m)),
            "certificate": Certificate(),
            "proposals": 0,
            "history": (),
        }
        return Inversion(
            status=status,
            reason=reason,
            batch_size=batch_size,
            method=self.method if isinstance(self.method, str) else "custom",
            seed=self.seed,
            seconds=self.budget.seconds,
            device=self.device.name,
            scale_known=self.gradients.bias_grad is not None,
            gradients=self.gradients,
            where=self.device,
            data_range=self.data_range,
            **(empty | figures),
        )


def _search(factors: Factors, method: str | SearchFactory, rng: np.random.Generator, run: _Run) -> Inversion:
    """Repeat rounds until the batch is certified, nothing better can be expected or the budget is spent."""
    model = sign_model(factors)
    search = _search_for(method, factors, model)
    nothing = Pool.empty(factors.batch_size, factors.U.shape[0])
    state = _State(nothing, nothing)
    while True:
        state = _round(factors, search, model, state, rng, run)
        if state.settled:
            return _hand_out(factors, state, None, run)
        ended = run.budget.exhausted(state.proposals) or _exhausted(factors, state)
        if ended is not None:
            return _hand_out(factors, state, ended, run)


def _round(
    factors: Factors,
    search: Search,
    model: SignModel | None,
    state: _State,
    rng: np.random.Generator,
    run: _Run,
) -> _State:
    """Propose, polish, pool; once b directions are known: choose by λ, scale, check."""
    choice, verdict, latest, failures = state.choice, state.verdict, state.latest, state.failures
    repairs = repair_candidates(factors, state.pool, latest)
    proposals = search.propose(factors, state.pool, rng)
    candidates = factors.xp.concat([repairs, proposals.candidates], axis=0)
    pool = _absorb(factors, model, state.pool, candidates, rng)
    pool = pool.after_round(news=len(pool.fresh_positions(state.pool.basis_vectors)))
    evaluated = state.evaluated
    if pool.complete:
        if latest is None or evaluated is None or not np.array_equal(pool.basis_vectors, evaluated):
            evaluated = pool.basis_vectors
            latest, pool, choice, verdict = _chosen(factors, pool, choice, verdict)
        if verdict is None or not verdict.complete:
            failures += 1
            assert latest is not None  # a pool that is complete was chosen from
            pool = _reconsider(factors, pool, latest, rng, forget=failures % FORGET_AFTER == 0)
    else:
        latest = None
    since_better = 0 if choice is None or choice is not state.choice else state.since_better + 1
    examined = state.proposals + proposals.examined
    run.report(
        "search",
        batch_size=factors.batch_size,
        found=len(pool.basis),
        proposals=examined,
        expected=search.forecast(factors),
    )
    agreement = None if choice is None else choice.mean_agreement()
    entry = Round(proposals.search, proposals.examined, len(pool.basis), agreement, run.budget.seconds)
    fullest = pool if len(pool.solid) > len(state.fullest.solid) else state.fullest
    return _State(
        pool,
        fullest,
        choice,
        verdict,
        latest,
        evaluated,
        failures,
        since_better,
        examined,
        (*state.history, entry),
    )


def _exhausted(factors: Factors, state: _State) -> str | None:
    """Return a reason to stop early: the search has seen all there is, or nothing better for long."""
    if state.since_better >= GIVE_UP_AFTER:
        return f"the choice of directions withstood {GIVE_UP_AFTER} rounds of search"
    if state.pool.stale < STALE_ROUNDS:
        return None
    subsets = math.comb(int(factors.U.shape[0]), factors.batch_size - 1)
    if state.proposals > REDRAWN * subsets:
        return f"all {subsets} submatrices were drawn, about {REDRAWN} times each"
    off = units_off_last(factors, state.pool)
    if off is not None and off < factors.batch_size:
        return f"the last input leaves {off} units off, fewer than the {factors.batch_size} that tell its direction"
    return None


def _reconsider(
    factors: Factors, pool: Pool, latest: Disaggregation, rng: np.random.Generator, *, forget: bool
) -> Pool:
    """Lower the rank of the worst direction of a choice that failed; at times forget those that contradict the layer.

    Without it a search can hang on one wrong combination that outranks the directions it is made of. One wrong
    direction makes others contradict the layer: those that nothing else speaks against stay, unless there are no others.
    """
    if latest.agreement is None:
        return pool
    if not forget:
        return pool.blame(doubtful(factors, latest, pool))
    suspect = np.zeros(len(pool.q), dtype=bool)
    suspect[contradicting(latest, pool)] = True
    outside = np.ones_like(suspect)
    outside[list(pool.basis)] = False
    if np.any(suspect & ~pool.possible):
        return pool.without((suspect | outside) & ~pool.possible)
    return pool.without(outside | (suspect & (rng.random(len(suspect)) < 0.5)))


def _absorb(
    factors: Factors, model: SignModel | None, pool: Pool, candidates: Array, rng: np.random.Generator
) -> Pool:
    """Polish `candidates` (k, b) into the pool, then take mixtures of two basis directions apart."""
    before = pool.basis_vectors
    pool = pool.merge(_judge(factors, model, polish(factors, candidates, pool, rng)))
    for _ in range(REDUCTIONS):
        fresh = pool.fresh_positions(before)
        if not len(fresh):
            break
        before = pool.basis_vectors
        found = polish(factors, reduce_pairs(factors, pool, fresh), pool, rng)
        if not len(found.q):
            break
        pool = pool.merge(_judge(factors, model, found))
    return pool


def _judge(factors: Factors, model: SignModel | None, found: Directions) -> Candidates:
    """Add what the layer says of polished directions."""
    if model is None:
        agreement, coordinates = np.ones(len(found.q)), np.zeros_like(found.q)
    else:
        agreement, coordinates = fit_signs(factors, model, factors.device.booleans(~found.zero_mask))
        if factors.relative_noise > NOISY_FROM:
            agreement = np.minimum(1.0, agreement + _hidden_shares(factors, found.q))
    lone = lone_rows(factors, factors.device.float64(found.q), found.zero_mask)
    return Candidates(found.q, found.zero_mask, found.angle, agreement, coordinates, lone)


def _hidden_shares(factors: Factors, q: HostArray) -> HostArray:
    """(k,): share of the units on which noise is expected to hide a gradient of `q` (k, b), `MAX_HIDDEN` at most."""
    units = to_host(factors.noise_units(factors.device.float64(q)))
    hidden = np.asarray([expected_hidden(column) for column in units])
    shares: HostArray = np.minimum(hidden / factors.U.shape[0], MAX_HIDDEN)
    return shares


def _chosen(
    factors: Factors, pool: Pool, choice: Disaggregation | None, verdict: Verdict | None
) -> tuple[Disaggregation, Pool, Disaggregation, Verdict]:
    """Choose directions from a complete `pool`: (choice, its pool, best choice so far, its certificate).

    By λ; and if that leads to nothing and the layer does not explain the zeros of all directions, by a λ that passes
    over such zeros: it does not give up true directions for denser ones that happen to agree more.
    """
    latest, improved = _by_agreement(factors, pool, lenient=False)
    choice, verdict = _better(factors, latest, choice, verdict)
    if pool.unexplained and factors.signs_known and not verdict.complete:
        latest, improved = _by_agreement(factors, pool, lenient=True)
        choice, verdict = _better(factors, latest, choice, verdict)
    return latest, improved, choice, verdict


def _by_agreement(factors: Factors, pool: Pool, *, lenient: bool) -> tuple[Disaggregation, Pool]:
    """Choice of the highest λ that the second stage reaches from the basis of `pool`, refined, and the pool with its basis."""
    q = factors.device.float64(pool.basis_vectors)
    choice, improved = improve(factors, pool, disaggregate(factors, q, lenient=lenient))
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
    new = certify(factors, challenger, reconstruct(factors, challenger))
    if champion is None or verdict is None or alike or np.sum(new.sound) > np.sum(verdict.sound):
        return challenger, new
    return champion, verdict


def _beats(challenger: Disaggregation, champion: Disaggregation) -> bool:
    """Whether a new complete choice replaces the old: more agreement, or simply newer where none is known."""
    new, old = challenger.mean_agreement(), champion.mean_agreement()
    return new is None or old is None or new > old


def _hand_out(factors: Factors, state: _State, ended: str | None, run: _Run) -> Inversion:
    """Return the inputs that are vouched for, of a complete choice or of the directions found, whichever are more."""
    run.report(
        "verify", batch_size=factors.batch_size, found=len(state.pool.basis), proposals=state.proposals
    )
    chosen = _sound(factors, state, ended, run)
    if chosen is not None and chosen.found == factors.batch_size:
        return chosen
    if factors.batch_size < (factors.spectrum.rank or 0):
        reason = (
            f"no complete batch of {factors.batch_size} was found, and weight_grad holds {factors.spectrum.rank} inputs: "
            "nothing bounds what the others add"
        )
        return run.inversion(Status.FAILED, reason, factors.batch_size, **_search_figures(state))
    partial = _partial(factors, state, ended or "", run)
    return partial if chosen is None or partial.found > chosen.found else chosen


def _sound(factors: Factors, state: _State, ended: str | None, run: _Run) -> Inversion | None:
    """The inputs of the best complete choice that pass the checks of their own; None without any."""
    verdict, choice = state.verdict, state.choice
    if verdict is None or choice is None or not np.any(verdict.sound):
        return None
    batch = reconstruct(factors, choice)
    keep = np.flatnonzero(verdict.sound)
    certificate = verdict.certificate
    if len(keep) < factors.batch_size and factors.signs_known:
        keep, certificate = _rebounded(factors, choice, keep, certificate)
        if not len(keep):
            return None
    xp, device = factors.xp, run.device
    reason = verdict.reason if ended is None or verdict.complete else f"{ended}: {verdict.reason}"
    factor = device.float64(np.ones(factors.batch_size))
    scaling = choose_scale(factors, choice.q, batch, certificate, run.data_range)
    if scaling is not None:
        factor = device.float64(scaling.factor)
        certificate = scaling.applied(certificate, to_host(batch.input_max))
        if scaling.contradicting:
            reason += f"; the activation patterns of {scaling.contradicting} of them contradict every scale"
    rows = device.integers(keep)
    return run.inversion(
        verdict.status,
        reason,
        factors.batch_size,
        found=len(keep),
        output_grad=xp.take(batch.output_grad / factor[None, :], rows, axis=1),
        recovery=xp.take(batch.recovery * factor[:, None], rows, axis=0),
        certificate=certificate.only(keep.tolist()),
        **_search_figures(state),
    )


def _search_figures(state: _State) -> dict[str, Any]:
    return {"proposals": state.proposals, "history": state.history}


def _rebounded(
    factors: Factors, choice: Disaggregation, keep: HostArray, certificate: Certificate
) -> tuple[HostArray, Certificate]:
    """Which of the rows `keep` the signs bound, and the certificate with those bounds.

    A direction that is wrong shifts the inputs of all others, each by a multiple of its own: as far as the signs of
    the layer let it.
    """
    q = factors.xp.take(choice.q, factors.device.integers(keep), axis=0)
    around = to_host(choice.dual)[keep]
    bounded = polytope.bound_inputs(factors, q, around, lenient=choice.lenient)
    bound = list(certificate.error_bound)
    for which, shift in zip(bounded.which, bounded.error_bound, strict=True):
        bound[keep[which]] += float(shift)
    return keep[bounded.which], replace(certificate, error_bound=tuple(bound))


def _partial(factors: Factors, state: _State, ended: str, run: _Run) -> Inversion:
    """Bound the inputs of the directions found so far by the signs of the layer, as far as that goes."""
    xp, b = factors.xp, factors.batch_size
    figures = _search_figures(state)
    q = factors.device.float64(state.fullest.q[state.fullest.solid])
    reason = f"{ended}: {q.shape[0]} of {b} directions found"
    if 0 < q.shape[0] < b:
        off = expand(factors, factors.zeros(q))
        unique, false = chances(factors, q, off, uniqueness(factors, q, q, off), MAX_CHANCE)
        sound = np.flatnonzero(unique.unique & (unique.redundancy >= 1) & (false <= MAX_CHANCE))
        q = xp.take(q, factors.device.integers(sound), axis=0)
        bounded = partial_inputs(factors, q)
        if len(bounded.which):
            rows = factors.device.integers(bounded.which)
            coordinates = factors.device.float64(bounded.coordinates)
            q = xp.take(q, rows, axis=0)
            # An input sees its own direction with weight one: that scales its column of ∂L/∂Z.
            q = q / xp.sum(coordinates * (q / factors.S), axis=1)[:, None]
            zeros = to_host(xp.sum(xp.astype(factors.zeros(q), xp.int64), axis=1))
            certificate = Certificate(
                zero_count=tuple(int(c) for c in zeros),
                redundancy=tuple(int(r) for r in unique.redundancy[sound][bounded.which]),
                sign_agreement=(1.0,) * len(bounded.which),
                false_probability=tuple(float(p) for p in false[sound][bounded.which]),
                error_bound=tuple(float(e) for e in bounded.error_bound),
                caveats=(
                    "the batch is incomplete: bounds rest on the signs of the layer, or on the others being faint",
                ),
            )
            return run.inversion(
                Status.PARTIAL,
                f"{reason}; {len(bounded.which)} inputs are bounded",
                b,
                found=len(bounded.which),
                output_grad=factors.columns(q),
                recovery=coordinates @ factors.to_basis.T,
                certificate=certificate,
                **figures,
            )
    return run.inversion(Status.FAILED, reason, b, **figures)


def no_rank_reason(spectrum: Spectrum, gradients: LayerGradients) -> str:
    """Return why a layer without a usable rank cannot be inverted."""
    m, n = gradients.shape
    if spectrum.rank == 0:
        return "weight_grad is zero everywhere: it holds no trace of an input"
    return (
        f"weight_grad ({m} x {n}) has full rank {min(m, n)}: the batch has at least as many inputs as the layer has "
        f"{'output units' if m <= n else 'input features'}, or noise hides the rank; such a batch cannot be inverted"
    )


def _search_for(method: str | SearchFactory, factors: Factors, model: SignModel | None) -> Search:
    if method == "sampling" or factors.batch_size == 1:
        return Sampling()
    if not isinstance(method, str):
        return method(factors, model)
    descent = Descent.prepare(factors, model)
    if method == "descent":
        return descent
    return Schedule(descent, Sampling(), Completion.prepare(factors, model))
