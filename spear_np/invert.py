"""The story: one function that reads like the paper, from gradients to inputs with a certificate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .answer.result import Inversion, Progress, Round, Status
from .backend import device_for, suitable_threads
from .directions.pool import Pool
from .directions.repair import repair_candidates, units_off_last
from .errors import InputError
from .factors.activation import Activation
from .factors.factorize import Factors, factorize
from .factors.gradients import LayerGradients
from .factors.rank import Spectrum
from .factors.signs import SignModel, sign_model
from .inputs.scale import DataRange, checked_range
from .loop.choose import absorb, chosen_from, reconsider
from .loop.hand_out import hand_out, no_rank_reason
from .loop.run import STALE_ROUNDS, Budget, Run, SearchFactory, State
from .search import Search
from .search.completion import Completion
from .search.descent import Descent
from .search.sampling import Sampling
from .search.schedule import Schedule

METHODS = ("auto", "descent", "sampling")
"""Searches `invert` knows."""
REDRAWN = 20
"""How often each submatrix of a small layer is drawn on average before the search gives up."""
GIVE_UP_AFTER = 100
"""Rounds after which a complete choice that is not certified will not be bettered: the zeros do not determine it."""
FORGET_AFTER = 6
"""Complete choices that failed, after which all directions that contradict the layer are forgotten."""


def invert(
    weight_grad: Any,
    bias_grad: Any = None,
    *,
    weight: Any = None,
    bias: Any = None,
    activation: str | Activation = "relu",
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
    activation : str or Activation
        What follows the layer: "relu" or "relu6"; others leave no zeros to rest on.
    precision : {"float64", "float32", "float16", "bfloat16"}, optional
        What the numbers were rounded to, if narrower than their dtype.
    batch_size : int, optional
        Overrides the rank read off the singular values.
    data_range : (low, high), optional
        Range of the entries of the inputs as the layer sees them, as (0, 1) for pixels. Used only where the scale of the
        inputs is otherwise unknown, because `bias_grad` is missing: each input is then handed out at the largest scale
        that the range allows, see `spear_np.inputs.scale`. Where `bias_grad` gives the scale it changes nothing.
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
        Number of candidates after which the search ends; for each reading of the singular values, if there are several.
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
        If the arrays do not fit together, hold NaN or infinity, the activation leaves no zeros, or an option is out of
        range.
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
    gradients.require_zeros()
    budget = Budget(time_limit, max_proposals, stop or (lambda: False))
    where = device_for(device, gradients.weight_grad)
    run = Run(gradients, where, method, seed, budget, callback or (lambda _: None), checked_range(data_range))
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


def _read(run: Run, batch_size: int | None, *, reading: int) -> tuple[Inversion, int]:
    """Invert at one reading of the singular values; returns the answer and how many readings are left.

    A reading that leaves others has half of the time that is left.
    """
    m, _ = run.gradients.shape
    run.report("factorize")
    with suitable_threads(run.device, m * m):
        factors = factorize(run.gradients, run.device, batch_size, reading=reading)
    if isinstance(factors, Spectrum):
        left = factors.alternatives if batch_size is None else 0
        return run.inversion(Status.FAILED, no_rank_reason(factors, run.gradients), 0), left
    left = factors.spectrum.alternatives if batch_size is None else 0
    if left:
        deadline = (run.budget.seconds + run.budget.time_limit) / 2
        run = replace(run, budget=replace(run.budget, deadline=deadline))
    with suitable_threads(run.device, m * factors.batch_size):
        return _search(factors, np.random.default_rng(run.seed), run), left


def _search(factors: Factors, rng: np.random.Generator, run: Run) -> Inversion:
    """Repeat rounds until the batch is certified, nothing better can be expected or the budget is spent."""
    model = sign_model(factors)
    search = _search_for(run.method, factors, model)
    nothing = Pool.empty(factors.batch_size, factors.U.shape[0])
    state = State(nothing, nothing)
    while True:
        state = _round(factors, search, model, state, rng, run)
        if state.settled:
            return hand_out(factors, state, None, run)
        ended = run.budget.exhausted(state.proposals) or _exhausted(factors, state)
        if ended is not None:
            return hand_out(factors, state, ended, run)


def _round(
    factors: Factors,
    search: Search,
    model: SignModel | None,
    state: State,
    rng: np.random.Generator,
    run: Run,
) -> State:
    """Propose, polish, pool; once b directions are known: choose by λ, scale, check."""
    choice, verdict, latest, failures = state.choice, state.verdict, state.latest, state.failures
    repairs = repair_candidates(factors, state.pool, latest)
    proposals = search.propose(factors, state.pool, rng)
    candidates = factors.xp.concat([repairs, proposals.candidates], axis=0)
    pool = absorb(factors, model, state.pool, candidates, rng)
    pool = pool.after_round(news=len(pool.fresh_positions(state.pool.basis_vectors)))
    evaluated = state.evaluated
    if pool.complete:
        if latest is None or evaluated is None or not np.array_equal(pool.basis_vectors, evaluated):
            evaluated = pool.basis_vectors
            latest, pool, choice, verdict = chosen_from(factors, pool, choice, verdict)
        if verdict is None or not verdict.complete:
            failures += 1
            assert latest is not None  # a pool that is complete was chosen from
            pool = reconsider(factors, pool, latest, rng, forget=failures % FORGET_AFTER == 0)
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
    return State(
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


def _exhausted(factors: Factors, state: State) -> str | None:
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


def _search_for(method: str | SearchFactory, factors: Factors, model: SignModel | None) -> Search:
    if method == "sampling" or factors.batch_size == 1:
        return Sampling()
    if not isinstance(method, str):
        return method(factors, model)
    descent = Descent.prepare(factors, model)
    if method == "descent":
        return descent
    return Schedule(descent, Sampling(), Completion.prepare(factors, model))
