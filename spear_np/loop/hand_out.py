"""What a search that has ended hands out: a whole batch, the inputs that are vouched for, or bounded ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..answer.certificate import Certificate
from ..answer.result import Inversion, Status
from ..backend import to_host
from ..directions.chance import MAX_CHANCE, chances
from ..directions.disaggregate import Disaggregation
from ..directions.uniqueness import uniqueness
from ..factors.factorize import Factors, expand
from ..factors.gradients import LayerGradients
from ..factors.rank import Spectrum
from ..inputs import polytope
from ..inputs.partial import partial_inputs
from ..inputs.reconstruct import reconstruct
from ..inputs.scale import choose_scale
from .run import Run, State

HostArray = np.ndarray[Any, Any]


def hand_out(factors: Factors, state: State, ended: str | None, run: Run) -> Inversion:
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


def _sound(factors: Factors, state: State, ended: str | None, run: Run) -> Inversion | None:
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


def _search_figures(state: State) -> dict[str, Any]:
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


def _partial(factors: Factors, state: State, ended: str, run: Run) -> Inversion:
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
