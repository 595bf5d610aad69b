"""What the layers behind say of the answer of one layer alone: they see what its own zeros and signs cannot."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..answer.certificate import Check
from ..answer.result import Inversion, Status
from ..arrays import Array
from ..backend.host import to_host
from ..chain.examine import examine
from ..chain.layers import Chain
from ..chain.polish import CONSISTENT, membership_rms
from ..checks.premises import linked_premises, without_alone
from ..checks.specification import EXACT_TOLERANCE
from .read import Linked, NoChain
from .verify import Noise, data_range, error_bounds, largest_entries


def confirmed(answer: Inversion, linked: Linked | NoChain) -> Inversion:
    """Return the `answer` of the first layer of a chain, held against the layers behind it.

    Where its inputs fit them, and the layers behind alone would bound their errors as `exact` asks, it rests on the links between
    the layers in place of the plain gradient. Where they do not fit, nothing bounds the errors: either these are not the inputs, or
    the layers are no chain.
    """
    if isinstance(linked, NoChain) or not answer.found or not answer.scale_known:
        return answer
    chain = linked.chain
    shown = chain.layers[1].space.spectrum.rank_at_least
    if shown > answer.batch_size:
        return _contradicted(
            answer, f"the layer behind shows {shown} inputs at least, this one {answer.batch_size}", ()
        )
    if answer.batch_size != chain.batch_size:
        return answer
    residual = _residual(chain, answer)
    check = Check(
        "membership",
        residual,
        "<=",
        CONSISTENT,
        "distance of σ(z) from the inputs of the layers behind, in units of the noise, worst input",
    )
    if not check.passed:
        return _contradicted(answer, "they do not fit the gradient of the layer behind", (check,))
    if answer.status is not Status.EXACT or not _borne_out(chain, answer):
        return answer
    certificate = answer.certificate
    on = to_host(_coordinates(chain, answer) @ chain.layers[0].to_units.T > 0)
    premises = (
        *linked_premises(answer.gradients, on, chain.layers[-1].units),
        *without_alone(certificate.rests_on),
    )
    return replace(
        answer,
        certificate=replace(certificate, checks=(*certificate.checks, check), rests_on=premises),
    )


def _residual(chain: Chain, answer: Inversion) -> float:
    """Root mean square of the equations of membership, worst input."""
    c = _coordinates(chain, answer)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return float(np.max(membership_rms(chain, c, chain.depth)))


def _borne_out(chain: Chain, answer: Inversion) -> bool:
    """Whether the layers behind hold every input where it is, to within what `exact` allows.

    Noise may hide more from them than it does in the first layer.
    """
    c = _coordinates(chain, answer)
    size = data_range(chain, c)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        seen = [examine(chain, c[row : row + 1, :], chain.depth) for row in range(c.shape[0])]
    bounds = error_bounds(chain, seen, Noise.of(seen))
    moved = chain.xp.concat([one.c for one in seen], axis=0) - c
    accepted = all(bool(one.accepted[0]) for one in seen)
    return accepted and bool(np.all(bounds + largest_entries(chain, moved) <= EXACT_TOLERANCE * size))


def _coordinates(chain: Chain, answer: Inversion) -> Array:
    """(k, b): the inputs in the basis of the first layer."""
    return chain.device.float64(answer.recovery) @ chain.layers[0].space.coordinates


def _contradicted(answer: Inversion, why: str, checks: tuple[Check, ...]) -> Inversion:
    certificate = answer.certificate
    whole = answer.status in (Status.EXACT, Status.APPROXIMATE)
    status = Status.APPROXIMATE if whole else Status.FAILED
    return replace(
        answer,
        status=status,
        reason=f"{answer.reason}; but {why}: they are not the inputs, or the layers are no chain",
        certificate=replace(
            certificate,
            checks=(*certificate.checks, *checks),
            error_bound=(math.inf,) * len(certificate.error_bound),
        ),
    )
