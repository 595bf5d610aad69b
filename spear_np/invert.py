"""The story: one function that reads like the paper, from gradients to inputs with a certificate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import polytope
from .backend import Device, device_for, to_host
from .certificate import Certificate
from .certify import Verdict, certify, uniqueness
from .disaggregate import Disaggregation, disaggregate, doubtful, improve
from .errors import InputError
from .factorize import Factors, Spectrum, expand, factorize
from .gradients import LayerGradients
from .polish import polish
from .pool import Pool
from .reconstruct import reconstruct
from .result import Inversion, Progress, Round, Status
from .search import Search
from .search.reduction import reduce_pairs
from .search.repair import repair_candidates
from .search.sampling import Sampling

Array = Any

METHODS = ("auto", "sampling")
"""Searches `invert` knows."""
REDUCTIONS = 3
"""Passes of pairwise reduction after one block of proposals."""
STALE_ROUNDS = 10
"""Without activation signs nothing tells when the basis is right: it must have withstood this many rounds."""
REDRAWN = 20
"""How often each submatrix of a small layer is drawn on average before the search gives up."""
PATIENCE = 4
"""Rounds without news after which directions that contradict the layer lose their rank."""


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
    method: str = "auto",
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
        What follows the layer; only "relu" can be inverted.
    precision : {"float64", "float32", "float16", "bfloat16"}, optional
        What the numbers were rounded to, if narrower than their dtype.
    batch_size : int, optional
        Overrides the rank read off the singular values.
    method : {"auto", "sampling"}
        Where candidate directions come from; "sampling" is the published search.
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
    method: str = "auto",
    seed: int = 0,
    device: str | None = None,
    time_limit: float = 600.0,
    max_proposals: int | None = None,
    callback: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Inversion:
    """Recover the batch behind `gradients`; options, answer and errors as in `invert`."""
    search = _search_for(method)
    budget = Budget(time_limit, max_proposals, stop or (lambda: False))
    where = device_for(device, gradients.weight_grad)
    run = _Run(gradients, where, method, seed, budget, callback or (lambda _: None))
    with where.activate():
        run.report("factorize")
        factors = factorize(gradients, where, batch_size)
        if isinstance(factors, Spectrum):
            return run.inversion(Status.FAILED, no_rank_reason(factors, gradients), 0)
        rng = np.random.default_rng(seed)
        state = _State(Pool.empty(factors.batch_size, factors.U.shape[0]))
        while True:
            state = _round(factors, search, state, rng, run)
            if state.settled:
                return _hand_out(factors, state, None, run)
            ended = budget.exhausted(state.proposals) or _exhausted(factors, state)
            if ended is not None:
                return _hand_out(factors, state, ended, run)


@dataclass(frozen=True)
class _State:
    """What the search knows after a round."""

    pool: Pool
    choice: Disaggregation | None = None
    """Best complete choice of directions so far."""
    verdict: Verdict | None = None
    """Its certificate."""
    proposals: int = 0
    stale: int = 0
    """Rounds in a row that did not change the basis."""
    history: tuple[Round, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether nothing better can be expected: exact, limited by noise alone, or unopposed for long."""
        if self.verdict is None:
            return False
        if self.verdict.complete:
            return self.verdict.checked_signs or self.stale >= STALE_ROUNDS
        return False


@dataclass(frozen=True)
class _Run:
    """One call of `invert`: its options and how it reports."""

    gradients: LayerGradients
    device: Device
    method: str
    seed: int
    budget: Budget
    callback: Callable[[Progress], None]

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
            method=self.method,
            seed=self.seed,
            seconds=self.budget.seconds,
            device=self.device.name,
            scale_known=self.gradients.bias_grad is not None,
            gradients=self.gradients,
            where=self.device,
            **(empty | figures),
        )


def _round(factors: Factors, search: Search, state: _State, rng: np.random.Generator, run: _Run) -> _State:
    """Propose, polish, pool; once b directions are known: choose by λ, scale, check."""
    pool, choice, verdict = state.pool, state.choice, state.verdict
    if choice is not None and state.stale and state.stale % PATIENCE == 0:
        pool = pool.blame(doubtful(factors, choice, pool))
    repairs = repair_candidates(factors, pool, choice)
    proposals = search.propose(factors, pool, rng)
    candidates = factors.xp.concat([repairs, proposals.candidates], axis=0)
    grown = _absorb(factors, pool, candidates, rng)
    news = not np.array_equal(grown.basis_vectors, state.pool.basis_vectors)
    pool = grown
    if pool.complete and (news or choice is None):
        fresh, pool = improve(
            factors, pool, disaggregate(factors, factors.device.float64(pool.basis_vectors))
        )
        if choice is None or _beats(fresh, choice):
            choice = fresh
            verdict = certify(factors, choice, reconstruct(factors, choice))
    examined = state.proposals + proposals.examined
    run.report(
        "search",
        batch_size=factors.batch_size,
        found=len(pool.basis),
        proposals=examined,
        expected=search.forecast(factors),
    )
    agreement = None if choice is None else choice.mean_agreement()
    entry = Round(search.name, proposals.examined, len(pool.basis), agreement, run.budget.seconds)
    return _State(pool, choice, verdict, examined, 0 if news else state.stale + 1, (*state.history, entry))


def _exhausted(factors: Factors, state: _State) -> str | None:
    """Return a reason to stop once every submatrix of a small layer has been drawn many times over."""
    subsets = math.comb(int(factors.U.shape[0]), factors.batch_size - 1)
    if state.stale >= STALE_ROUNDS and state.proposals > REDRAWN * subsets:
        return f"all {subsets} submatrices were drawn, about {REDRAWN} times each"
    return None


def _absorb(factors: Factors, pool: Pool, candidates: Array, rng: np.random.Generator) -> Pool:
    """Polish `candidates` (k, b) into the pool, then take mixtures of two basis directions apart."""
    before = pool.basis_vectors
    found = polish(factors, candidates, pool, rng)
    pool = pool.merge(found.q, found.zero_mask, found.angle)
    for _ in range(REDUCTIONS):
        fresh = pool.fresh_positions(before)
        if not len(fresh):
            break
        before = pool.basis_vectors
        found = polish(factors, reduce_pairs(factors, pool, fresh), pool, rng)
        if not len(found.q):
            break
        pool = pool.merge(found.q, found.zero_mask, found.angle)
    return pool


def _beats(challenger: Disaggregation, champion: Disaggregation) -> bool:
    """Whether a new complete choice replaces the old: more agreement, or simply newer where none is known."""
    new, old = challenger.mean_agreement(), champion.mean_agreement()
    return new is None or old is None or new > old


def _hand_out(factors: Factors, state: _State, ended: str | None, run: _Run) -> Inversion:
    """Return the inputs that are vouched for, of a complete choice or of the directions found."""
    run.report(
        "verify", batch_size=factors.batch_size, found=len(state.pool.basis), proposals=state.proposals
    )
    figures: dict[str, Any] = {"proposals": state.proposals, "history": state.history}
    verdict, choice = state.verdict, state.choice
    if verdict is None or choice is None or not np.any(verdict.sound):
        return _partial(factors, state, ended or "", run, figures)
    batch = reconstruct(factors, choice)
    keep = np.flatnonzero(verdict.sound)
    rows = run.device.integers(keep)
    xp = factors.xp
    reason = verdict.reason if ended is None or verdict.complete else f"{ended}: {verdict.reason}"
    return run.inversion(
        verdict.status,
        reason,
        factors.batch_size,
        found=len(keep),
        output_grad=xp.take(batch.output_grad, rows, axis=1),
        recovery=xp.take(batch.recovery, rows, axis=0),
        certificate=verdict.certificate.only(keep.tolist()),
        **figures,
    )


def _partial(factors: Factors, state: _State, ended: str, run: _Run, figures: dict[str, Any]) -> Inversion:
    """Bound the inputs of the directions found so far by the signs of the layer, as far as that goes."""
    xp, b = factors.xp, factors.batch_size
    q = factors.device.float64(state.pool.basis_vectors)
    reason = f"{ended}: {q.shape[0]} of {b} directions found"
    if 0 < q.shape[0] < b:
        unique = uniqueness(factors, q, q, expand(factors, factors.zeros(q)))
        sound = np.flatnonzero(unique.unique & (unique.redundancy >= 1))
        q = xp.take(q, factors.device.integers(sound), axis=0)
        bounded = polytope.bound_inputs(factors, q)
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
                error_bound=tuple(float(e) for e in bounded.error_bound),
                caveats=(
                    "the batch is incomplete: these inputs are bounded by the signs of the layer alone",
                ),
            )
            return run.inversion(
                Status.PARTIAL,
                f"{reason}; {len(bounded.which)} inputs are bounded by the signs of the layer",
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


def _search_for(method: str) -> Search:
    if method not in METHODS:
        msg = f"unknown method {method!r}: expected one of {', '.join(METHODS)}"
        raise InputError(msg)
    return Sampling()
