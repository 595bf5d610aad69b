"""What a search that has ended hands out: a whole batch, the inputs that are vouched for, or bounded ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..answer.certificate import Certificate, Evidence
from ..answer.result import Inversion, Status
from ..arrays import HostArray
from ..backend.devices import Device
from ..backend.host import to_host
from ..checks.certify import Verdict, verdict_of
from ..checks.premises import LAYER_AS_GIVEN, with_premises
from ..directions.chance import MAX_CHANCE, chances
from ..directions.disaggregate import Disaggregation
from ..directions.pool import Pool
from ..directions.uniqueness import uniqueness
from ..factors.factorize import Factors
from ..factors.gradients import LayerGradients
from ..factors.rank import Spectrum
from ..factors.row_space import RowSpace
from ..factors.suspects import holds_signs, other_causes
from ..inputs import polytope
from ..inputs.partial import partial_inputs
from ..inputs.reconstruct import reconstruct
from ..inputs.scale import choose_scale
from ..loop.options import DataRange

CROWDED = 0.5
"""Share of the live units from which a batch has more inputs than a ReLU leaves zeros to tell them by.

Derived: a direction needs b − 1 units that its input leaves off, about half of them all.
"""
FEW_INPUTS = 0.25
"""Share of the live units up to which a batch is small enough that its zeros show at once.

Measured: the reach of a single layer is a good quarter of its units at 200 to 2000.
"""


@dataclass(frozen=True, eq=False)
class Ending:
    """What a search knew of the directions when it ended."""

    choice: Disaggregation | None
    """Best complete choice."""
    verdict: Verdict | None
    """Its certificate."""
    fullest: Pool
    """The pool that knew most directions to rely on."""
    reason: str | None
    """Why it ended before it was settled."""


def assemble_result(factors: Factors, ending: Ending, data_range: DataRange | None = None) -> Inversion:
    """Return the inputs that are vouched for, of a complete choice or of the directions found, whichever are more."""
    chosen = _accepted(factors, ending, data_range)
    b, rank = factors.space.batch_size, factors.space.spectrum.rank or 0
    if chosen is not None and chosen.found == b:
        return chosen
    if b < rank:
        reason = f"no complete batch of {b} was found, and weight_grad holds {rank} inputs: nothing bounds what the others add"
        return _nothing(factors, reason, data_range)
    partial = _partial(factors, ending, data_range)
    if chosen is not None and chosen.found >= partial.found:
        return chosen
    if not partial.found and ending.reason is None and ending.verdict is not None:
        return _nothing(factors, ending.verdict.reason, data_range)
    return partial


def inversion(
    gradients: LayerGradients,
    device: Device,
    status: Status,
    reason: str,
    batch_size: int,
    data_range: DataRange | None,
    **figures: Any,
) -> Inversion:
    """Return the answer; what is not among `figures` is that of nothing found."""
    m = gradients.shape[0]
    empty: dict[str, Any] = {
        "found": 0,
        "output_grad": device.zeros((m, 0)),
        "recovery": device.zeros((0, m)),
        "certificate": Certificate(),
    }
    return Inversion(
        status=status,
        reason=reason,
        batch_size=batch_size,
        device=device.name,
        scale_known=gradients.bias_grad is not None,
        gradients=gradients,
        where=device,
        data_range=data_range,
        **(empty | figures),
    )


def _answer(
    factors: Factors, status: Status, reason: str, data_range: DataRange | None, **figures: Any
) -> Inversion:
    space = factors.space
    figures |= {
        "singular_values": space.spectrum.singular_values,
        "relative_noise": space.relative_noise,
    }
    return inversion(factors.gradients, space.device, status, reason, space.batch_size, data_range, **figures)


def _nothing(factors: Factors, reason: str, data_range: DataRange | None) -> Inversion:
    return _answer(factors, Status.FAILED, reason, data_range)


def _accepted(factors: Factors, ending: Ending, data_range: DataRange | None) -> Inversion | None:
    """The inputs of the best complete choice that pass the checks of their own; None without any."""
    verdict, choice = ending.verdict, ending.choice
    if verdict is None or choice is None or not np.any(verdict.accepted_rows):
        return None
    space, xp = factors.space, factors.space.xp
    batch = reconstruct(factors, choice)
    keep = np.flatnonzero(verdict.accepted_rows)
    certificate = verdict.certificate
    if len(keep) < space.batch_size and factors.signs_known:
        keep, certificate = _rebounded(factors, choice, keep, certificate)
        if not len(keep):
            return None
    z = batch.preactivation if factors.signs_known else None
    certificate = with_premises(certificate, space, factors.gradients, factors.layer, batch.recovery, z)
    early = ending.reason is not None and not verdict.complete
    verdict = verdict_of(certificate, factors)
    reason = f"{ending.reason}: {verdict.reason}" if early else verdict.reason
    factor = space.device.float64(np.ones(space.batch_size))
    scaling = choose_scale(factors, choice.q, batch, certificate, data_range)
    if scaling is not None:
        factor = space.device.float64(scaling.factor)
        certificate = scaling.applied(certificate, to_host(batch.input_max))
        if scaling.contradicting:
            reason += f"; the activation patterns of {scaling.contradicting} of them contradict every scale"
    rows = space.device.integers(keep)
    return _answer(
        factors,
        verdict.status,
        reason,
        data_range,
        found=len(keep),
        output_grad=xp.take(batch.output_grad / factor[None, :], rows, axis=1),
        recovery=xp.take(batch.recovery * factor[:, None], rows, axis=0),
        certificate=certificate.only(keep.tolist()),
    )


def _rebounded(
    factors: Factors, choice: Disaggregation, keep: HostArray, certificate: Certificate
) -> tuple[HostArray, Certificate]:
    """Which of the rows `keep` the signs bound, and the certificate with those bounds.

    A direction that is wrong shifts the inputs of all others, each by a multiple of its own: as far as the signs of
    the layer let it.
    """
    q = factors.space.xp.take(choice.q, factors.space.device.integers(keep), axis=0)
    around = to_host(choice.input_coords)[keep]
    bounded = polytope.bound_inputs(factors, q, around, lenient=choice.lenient)
    bound = list(certificate.error_bound)
    for which, shift in zip(bounded.which, bounded.error_bound, strict=True):
        bound[keep[which]] += float(shift)
    return keep[bounded.which], replace(certificate, error_bound=tuple(bound))


def _partial(factors: Factors, ending: Ending, data_range: DataRange | None) -> Inversion:
    """Bound the inputs of the directions found so far by the signs of the layer, as far as that goes."""
    space, xp, b = factors.space, factors.space.xp, factors.space.batch_size
    q = space.device.float64(ending.fullest.q[ending.fullest.trusted])
    reason = f"{ending.reason or ''}: {q.shape[0]} of {b} directions found"
    if not 0 < q.shape[0] < b:
        return _nothing(factors, reason, data_range)
    off = space.expand(space.zeros(q))
    unique, false = chances(space, q, off, uniqueness(space, q, q, off), MAX_CHANCE)
    by_zeros = unique.unique & (unique.redundancy >= 1) & (false <= MAX_CHANCE)
    sound = np.flatnonzero(by_zeros | unique.with_layer_behind)
    q = xp.take(q, space.device.integers(sound), axis=0)
    bounded = partial_inputs(factors, q)
    if not len(bounded.which):
        return _nothing(factors, reason, data_range)
    coordinates = space.device.float64(bounded.coordinates)
    q = xp.take(q, space.device.integers(bounded.which), axis=0)
    # An input sees its own direction with weight one: that scales its column of ∂L/∂Z.
    q = q / xp.sum(coordinates * (q / space.S), axis=1)[:, None]
    zeros = to_host(xp.sum(xp.astype(space.zeros(q), xp.int64), axis=1))
    certificate = Certificate(
        zero_count=tuple(int(c) for c in zeros),
        redundancy=tuple(int(r) for r in unique.redundancy[sound][bounded.which]),
        sign_agreement=(1.0,) * len(bounded.which),
        false_probability=tuple(float(p) for p in false[sound][bounded.which]),
        error_bound=tuple(float(e) for e in bounded.error_bound),
        evidence=(Evidence(True, True, True, None, None, None),) * len(bounded.which),
        caveats=(
            "the batch is incomplete: bounds rest on the signs of the layer, or on the others being faint",
        ),
    )
    recovery = coordinates @ space.to_basis.T
    z = None if factors.layer is None else factors.layer.preactivations(coordinates)
    by_signs = (LAYER_AS_GIVEN,) if np.any(bounded.by_signs) else ()
    certificate = with_premises(certificate, space, factors.gradients, factors.layer, recovery, z, by_signs)
    if not all(math.isfinite(bound) for bound in certificate.error_bound):
        return _nothing(
            factors, f"{reason}, and weight_grad is not the plain gradient: nothing bounds them", data_range
        )
    return _answer(
        factors,
        Status.PARTIAL,
        f"{reason}; {len(bounded.which)} inputs are bounded",
        data_range,
        found=len(bounded.which),
        output_grad=space.columns(q),
        recovery=recovery,
        certificate=certificate,
    )


def no_rank_reason(spectrum: Spectrum, gradients: LayerGradients, device: Device) -> str:
    """Return why a layer without a usable rank cannot be inverted."""
    m, n = gradients.shape
    if spectrum.rank == 0:
        return "weight_grad is zero everywhere: it holds no trace of an input"
    return (
        f"weight_grad ({m} x {n}) has full rank {min(m, n)}: the batch has at least as many inputs as the layer has "
        f"{'output units' if m <= n else 'input features'}, or noise hides the rank; such a batch cannot be inverted "
        f"({other_causes(gradients, device)})"
    )


def no_zeros_reason(space: RowSpace, gradients: LayerGradients, proposals: int) -> str:
    """Return why a search ended that saw no direction with the zeros of a ReLU, and what that may come from."""
    b, live = space.batch_size, int(space.live.shape[0])
    seen = (
        f"none of {proposals} candidates has the zeros that a ReLU leaves in the gradient; "
        if proposals
        else ""
    )
    if holds_signs(gradients, space.device):
        return f"{seen}{other_causes(gradients, space.device)}"
    if b > CROWDED * live:
        cause = (
            f"a batch of {b} is too large for the zeros of {live} units, or it is no batch: an update of several steps on different "
            "batches, or of Adam and its like"
        )
    else:
        cause = (
            "probably something else than a ReLU follows this layer (another activation, none, a normalisation in between), "
            "or these are factors of an update, as of LoRA"
        )
        if b > FEW_INPUTS * live:
            cause += f", or a batch of {b} is too large for {live} units"
    return f"{seen}{cause}"
