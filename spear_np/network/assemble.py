"""What a search of a chain hands out: the inputs found, their certificate, their labels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ..answer.certificate import Certificate
from ..answer.result import Inversion, Status
from ..backend.host import to_host
from ..chain.examine import Examined
from ..chain.layers import Chain
from ..checks.certify import ROW_TOLERANCE
from ..checks.premises import FIRST_PLAIN, linked_premises, with_links
from .labels import labels_of
from .verify import data_range, verify


def answer_of(
    chain: Chain,
    known: tuple[Examined, ...],
    depth: int,
    ended: str | None,
    *,
    names: tuple[str, ...] = (),
    loss: str | None = None,
    cut: str | None = None,
) -> Inversion:
    """Return the inputs that are `known`, one each, with what can be claimed of them.

    `ended` says why the search ended early, `cut` why the chain does.
    """
    b = chain.batch_size
    if not known:
        return _inversion(
            chain, Status.FAILED, f"{ended or 'nothing was found'}: 0 of {b} inputs", names, found=0
        )
    verified = verify(chain, known, depth, cut, loss)
    keep = [
        row
        for row, bound in enumerate(verified.certificate.error_bound)
        if bound <= ROW_TOLERANCE * data_range(chain, verified.c)
    ]
    if verified.misscaled is not None:
        ended = (
            f"by the outputs, all bias_grad are {verified.misscaled:.4g} times what belongs to weight_grad"
        )
    xp, first = chain.xp, chain.layers[0]
    rows = chain.device.integers(keep)
    c, d = xp.take(verified.c, rows, axis=0), xp.take(verified.output_grad, rows, axis=0)
    recovery = c @ first.space.to_basis.T
    on = to_host(c @ first.to_units.T > 0)
    premises = linked_premises(first.gradients, on, chain.layers[-1].units)
    premises = (FIRST_PLAIN, *premises) if verified.by_duals else premises
    certificate = with_links(
        verified.certificate.only(keep), first.space, first.gradients, recovery, premises
    )
    if not certificate["rank"].passed:
        # What further inputs add is no noise, and nothing bounds what they change.
        certificate = replace(certificate, error_bound=(math.inf,) * len(keep))
    status, reason = _status(certificate, len(keep), b, ended)
    labels = labels_of(chain, xp.take(verified.q, rows, axis=0), loss)
    return _inversion(
        chain,
        status,
        reason,
        names,
        found=len(keep),
        output_grad=xp.matrix_transpose(d),
        recovery=recovery,
        certificate=certificate,
        labels=None if labels is None else chain.device.integers(labels),
    )


def _status(certificate: Certificate, kept: int, b: int, ended: str | None) -> tuple[Status, str]:
    failed = [check.name.replace("_", " ") for check in certificate.checks if not check.passed]
    if kept < b:
        status = Status.PARTIAL if kept else Status.FAILED
        return status, f"{ended or 'the search ended'}: {kept} of {b} inputs found"
    if not failed:
        return Status.EXACT, "every check of the certificate holds"
    return Status.APPROXIMATE, f"all inputs found, but these checks do not hold: {', '.join(failed)}"


def _inversion(
    chain: Chain, status: Status, reason: str, names: tuple[str, ...], *, found: int, **figures: Any
) -> Inversion:
    first, device = chain.layers[0], chain.device
    m = first.space.shape[0]
    nothing: dict[str, Any] = {
        "output_grad": device.zeros((m, 0)),
        "recovery": device.zeros((0, m)),
        "certificate": Certificate(),
        "labels": None,
    }
    return Inversion(
        status=status,
        reason=reason,
        batch_size=chain.batch_size,
        found=found,
        device=device.name,
        scale_known=True,
        gradients=first.gradients,
        where=device,
        chain=names or tuple(str(number) for number in range(len(chain.layers))),
        singular_values=first.space.spectrum.singular_values,
        relative_noise=first.space.relative_noise,
        **(nothing | figures),
    )
