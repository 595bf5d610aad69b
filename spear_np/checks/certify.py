"""What `exact` means: every check of a recovered batch, and the status they allow.

The argument, for one direction q and the output units Z on which gradient and layer agree that its input is off:

- *Unique.* The rows of U in Z have rank b - 1, so q is the only direction without gradient there. A combination of
  t inputs' directions annuls the rows on which all t are off, which have rank b - t at most, and t - 1 further rows
  by a choice of its coefficients. Each of those rows is indispensable to the rank. So a direction whose zero rows
  keep their rank after any one of them is removed is no combination, unless two numbers agree by chance
  within the noise.
- *Consistent.* No output unit has a gradient that stands out of its noise where the recovered input leaves the unit
  off, and hardly any lacks one where it is on.
- *Complete.* weight_grad and bias_grad are reproduced to their noise, and there is no further singular value above
  it.
- *Accurate.* The noise of the zero rows, carried through to the inputs, moves no entry by more than
  `EXACT_TOLERANCE` of the data range, at six standard deviations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..answer.certificate import Certificate, Check
from ..answer.result import Status
from ..backend import to_host
from ..directions.chance import MAX_CHANCE, chances
from ..directions.disaggregate import MAX_BIAS_RESIDUAL, Disaggregation
from ..directions.uniqueness import Uniqueness, uniqueness
from ..factors.factorize import Factors
from ..factors.row_space import RowSpace
from ..factors.zero import is_nonzero, is_zero, surely_nonzero, zeros_tell
from ..inputs.bounds import MAX_HIDDEN_ROW, noise_bound, preactivation_doubt
from ..inputs.reconstruct import Reconstruction
from .dependence import dependent_columns

Array = Any
HostArray = np.ndarray[Any, Any]

EXACT_TOLERANCE = 1e-4
"""Largest error of an `exact` input, as a share of the data range: below one grey level of 8-bit images."""
ROW_TOLERANCE = 0.3
"""Largest error bound, as a share of the data range, with which an input still counts as recovered."""
MAX_HIDDEN = 0.01
"""Largest share of a column's active units whose gradient may drown in noise."""
MIN_DECIDED = 0.8
"""Least share of a column's units whose activation sign must be beyond doubt."""
NEAR_AGREEMENT = 0.98
"""λ of an input from which a few contradictions are no evidence against it."""
ROUGH_AGREEMENT = 0.9
"""λ of an input from which signs count as those of the layer, if nothing but chance could make its direction wrong."""
MIN_DECIDED_ROW = 0.3
"""Least share of decided units with which an input is handed out."""
MIN_GAP = 3.0
MAX_RESIDUAL = 1.5
ENTANGLED = (
    "columns of ∂L/∂Z depend on each other on the units that their inputs share, as behind few outputs: where no activation "
    "signs confirm them, rows may be combinations of inputs, and nothing bounds their errors"
)


@dataclass(frozen=True)
class Verdict:
    """Certificate, the status it allows, and which rows are vouched for."""

    certificate: Certificate
    status: Status
    reason: str
    sound: HostArray
    """(k,) bool: inputs that every check of their own supports."""
    checked_signs: bool
    """Whether activation signs took part."""

    @property
    def complete(self) -> bool:
        """Whether all inputs are vouched for: what is missing then is precision or data, not search."""
        return bool(np.all(self.sound))


@dataclass(frozen=True)
class _Signs:
    """Gradient and layer, entry by entry, summed up for each of k columns."""

    off: Array
    """(m, k) bool: live units without gradient that the layer leaves off (or, without W, without gradient)."""
    silent: Array
    """(m, k) bool: live units without gradient."""
    agreement: HostArray
    """(k,) λ over decided units; NaN without W."""
    contradictions: HostArray
    """(k,) int: units with a gradient that the layer leaves off."""
    blatant: HostArray
    """(k,) int: those of them where the gradient is there for sure."""
    hidden: HostArray
    """(k,): share of the active units without visible gradient; 0 without W."""
    decided: HostArray
    """(k,): share of the live units whose activation sign is beyond doubt."""
    gap: HostArray
    """(k,): 1 % quantile of the non-zero entries over the largest zero, in noise units."""


def certify(factors: Factors, choice: Disaggregation, batch: Reconstruction) -> Verdict:
    """Check a completely recovered batch and say what may be claimed of it."""
    space = factors.space
    tolerance = EXACT_TOLERANCE * batch.data_range
    k = batch.recovery.shape[0]
    off = _determining(space, choice, batch, _signs(factors, batch, np.full(k, tolerance)))
    # The dual vectors of the directions, in U-coordinates, are the inputs.
    unique = uniqueness(space, batch.directions, batch.dual / space.S, off)
    residual = _residual(space, batch)
    bound = noise_bound(
        space,
        batch.recovery,
        to_host(batch.input_max),
        to_host(choice.scale_variance),
        unique,
        largest=to_host(batch.largest_residual),
    ) * max(1.0, residual)  # what is left of weight_grad is noise too, whatever it comes from
    signs = _signs(factors, batch, np.clip(bound, tolerance, ROW_TOLERANCE * batch.data_range))
    with_weight = factors.signs_known
    entangled = (choice.lenient or not with_weight) and dependent_columns(space, batch.directions)
    if entangled:
        # Only signs tell which combinations are inputs.
        bound = np.where(with_weight & (signs.agreement >= 1.0 - MAX_HIDDEN), bound, math.inf)
    in_detail = (signs.blatant == 0) & (signs.hidden <= MAX_HIDDEN_ROW)
    in_outline = (signs.agreement >= NEAR_AGREEMENT) & (unique.redundancy >= 1)
    told = in_detail | in_outline if with_weight else np.ones(k, dtype=bool)
    scale_told = factors.bias_grad is not None  # else the scale is bounded only where chance is excluded
    doubtful = ~told if scale_told else np.ones(k, dtype=bool)
    unique, false = chances(space, batch.directions, off, unique, MAX_CHANCE, doubtful=doubtful)
    sound = unique.unique & (bound <= ROW_TOLERANCE * batch.data_range)
    if with_weight:
        # Dropout hides gradients of units that are on; several steps in one update, or weights that are not quite
        # those of the gradient, disturb some signs. None of it makes a direction wrong that chance cannot.
        told |= ((signs.blatant == 0) | (signs.agreement >= ROUGH_AGREEMENT)) & (false <= MAX_CHANCE)
        sound &= (signs.decided >= MIN_DECIDED_ROW) & told
    if space.spectrum.plausible is not None and space.batch_size < space.spectrum.plausible[0]:
        # What the inputs beyond the batch size add is no noise, and nothing bounds what they change.
        sound &= False
        bound = np.full(k, math.inf)
    certificate = Certificate(
        checks=_checks(factors, choice, batch, unique, signs, bound, residual),
        zero_count=tuple(int(c) for c in to_host(space.xp.sum(space.xp.astype(off, space.xp.int64), axis=0))),
        redundancy=tuple(int(r) for r in unique.redundancy),
        sign_agreement=tuple(float(a) for a in signs.agreement),
        false_probability=tuple(float(p) for p in false),
        error_bound=tuple(float(e) for e in bound),
        caveats=(*_caveats(factors), *((ENTANGLED,) if entangled else ())),
    )
    return _verdict(certificate, sound, factors, with_weight=with_weight)


def _verdict(certificate: Certificate, sound: HostArray, factors: Factors, *, with_weight: bool) -> Verdict:
    """Status from the checks: `exact` only if every one could be made and holds."""
    missing = [name for name in ("weight", "bias_grad") if getattr(factors.gradients, name) is None]
    failed = [check for check in certificate.checks if check.passed is False]
    if certificate.holds and bool(np.all(sound)):
        return Verdict(certificate, Status.EXACT, "every check of the certificate holds", sound, with_weight)
    names = ", ".join(check.name.replace("_", " ") for check in failed)
    if missing and not failed:
        without = f"without {' and '.join(missing)}"
        reason = f"all inputs found, but {without} exactness cannot be certified"
        if not np.all(sound):
            wrong = int(np.sum(~sound))
            reason = f"directions for all inputs were found, but {without} nothing tells whether {wrong} of them are right"
        return Verdict(certificate, Status.APPROXIMATE, reason, np.ones_like(sound), with_weight)
    if bool(np.all(sound)):
        reason = f"all inputs found, but these checks do not hold: {names}"
        return Verdict(certificate, Status.APPROXIMATE, reason, sound, with_weight)
    if not with_weight:
        reason = f"directions for all inputs were found, but these checks do not hold: {names}"
        return Verdict(certificate, Status.APPROXIMATE, reason, np.ones_like(sound), with_weight)
    count = int(np.sum(sound))
    status = Status.PARTIAL if count else Status.FAILED
    reason = f"{count} of {len(sound)} inputs pass the checks of their own; for the batch these fail: {names}"
    return Verdict(certificate, status, reason, sound, with_weight)


def _checks(
    factors: Factors,
    choice: Disaggregation,
    batch: Reconstruction,
    unique: Uniqueness,
    signs: _Signs,
    bound: HostArray,
    residual: float,
) -> tuple[Check, ...]:
    with_weight = factors.signs_known
    scale_known = choice.bias_residual is not None
    relative = float(np.max(bound)) / batch.data_range if batch.data_range > 0 else math.inf
    return (
        Check(
            "sign_agreement",
            float(np.min(signs.agreement)) if with_weight else None,
            ">=",
            1.0 - MAX_HIDDEN,
            "λ of the worst input: units where gradient and activation agree",
        ),
        Check(
            "contradictions",
            float(np.sum(signs.contradictions)) if with_weight else None,
            "<=",
            0.0,
            "units with a gradient that the recovered input leaves off",
        ),
        Check(
            "decided_signs",
            float(np.min(signs.decided)) if with_weight else None,
            ">=",
            MIN_DECIDED,
            "share of units whose activation sign is beyond doubt, worst input",
        ),
        Check(
            "unique_directions",
            float(np.mean(unique.unique)),
            ">=",
            1.0,
            "share of directions that their zero rows determine",
        ),
        Check(
            "redundancy",
            float(np.min(unique.redundancy)),
            ">=",
            1.0,
            "zero rows that any direction could lose",
        ),
        Check(
            "gap", float(np.min(signs.gap)), ">=", MIN_GAP, "smallest non-zero entries over the largest zero"
        ),
        Check(
            "rank",
            float(factors.space.batch_size - factors.space.spectrum.shown),
            ">=",
            0.0,
            "directions beyond the rank that the singular values show",
        ),
        Check(
            "noise_known",
            float(factors.space.spectrum.noise_known),
            ">=",
            1.0,
            "1 if what lies below the rank looks like rounding or independent noise",
        ),
        Check(
            "weight_residual",
            residual,
            "<=",
            MAX_RESIDUAL,
            "what the batch leaves of weight_grad, in units of its noise",
        ),
        Check(
            "bias_residual",
            choice.bias_residual,
            "<=",
            MAX_BIAS_RESIDUAL,
            "what the batch leaves of bias_grad, in units of the relative noise",
        ),
        Check(
            "error_bound",
            relative if scale_known else None,
            "<=",
            EXACT_TOLERANCE,
            "largest possible error of an input, share of the data range",
        ),
    )


def _residual(space: RowSpace, batch: Reconstruction) -> float:
    """Root mean square, over the live rows, of what the batch leaves of weight_grad, in units of its noise."""
    live = to_host(space.live_of(batch.residual))
    return math.sqrt(float(np.mean(live**2)))


def _caveats(factors: Factors) -> tuple[str, ...]:
    b, rank = factors.space.batch_size, factors.space.spectrum.rank
    caveats = [
        (
            f"{b} is the rank of the gradient, the batch may be larger: identical inputs count once, inputs with "
            "proportional columns of ∂L/∂Z count once as their weighted mean, and inputs whose gradient lies below "
            "the noise leave no trace"
        )
    ]
    if factors.gradients.bias_grad is None:
        caveats.append("without bias_grad every input is known up to its scale only")
    else:
        caveats.append(
            "the inputs have the scale that bias_grad gives them: if it was scaled on its own, by clipping, quantisation "
            "or a learning rate of its own, all inputs are off by that factor"
        )
    if factors.gradients.weight is None:
        caveats.append("without weight the activation signs could not be checked")
    elif factors.gradients.bias is None:
        caveats.append("bias is missing and was taken for zero")
    if rank is not None and b != rank:
        caveats.append(f"the batch size {b} was given; the singular values say {rank}")
    return tuple(caveats)


def _signs(factors: Factors, batch: Reconstruction, input_error: HostArray) -> _Signs:
    """Compare gradient and layer on the live units; `input_error` (k,) bounds the errors of the inputs."""
    space, layer, xp = factors.space, factors.layer, factors.space.xp
    columns = space.columns(batch.directions)
    units = xp.abs(columns) / batch.deviation
    live = _mask(space)
    active = is_nonzero(units) & live[:, None]
    silent = is_zero(units) & live[:, None]
    count = int(space.live.shape[0])
    if batch.preactivation is None or layer is None or not factors.signs_known:
        zero = xp.where(silent, units, xp.zeros_like(units))
        gap = [_gap(units[:, i], active[:, i], zero[:, i]) for i in range(units.shape[1])]
        nothing = np.zeros(units.shape[1])
        return _Signs(
            off=silent,
            silent=silent,
            agreement=nothing * math.nan,
            contradictions=nothing.astype(np.int64),
            blatant=nothing.astype(np.int64),
            hidden=nothing,
            decided=nothing,
            gap=np.asarray(gap),
        )
    doubt = preactivation_doubt(space, layer, batch, input_error)
    on, closed = layer.states(batch.preactivation, doubt)
    contradiction = active & closed
    hidden = silent & on

    def total(mask: Array) -> HostArray:
        return to_host(xp.sum(xp.astype(mask, xp.int64), axis=0))

    decided = total((on | closed) & live[:, None])
    wrong = total(contradiction) + total(hidden)
    off = silent & closed
    zero = xp.where(off, units, xp.zeros_like(units))
    gap = [_gap(units[:, i], active[:, i] & on[:, i], zero[:, i]) for i in range(units.shape[1])]
    return _Signs(
        off=off,
        silent=silent,
        agreement=1 - wrong / np.maximum(decided, 1),
        contradictions=total(contradiction),
        blatant=total(contradiction & surely_nonzero(units)),
        hidden=total(hidden) / np.maximum(total(on & live[:, None]), 1),
        decided=decided / count,
        gap=np.asarray(gap),
    )


def _determining(space: RowSpace, choice: Disaggregation, batch: Reconstruction, signs: _Signs) -> Array:
    """(m, k) bool: the zero rows that have to determine each direction.

    Those on which gradient and layer agree. In a lenient choice, columns that fail the check of the signs are known to
    have other zeros, and what follows from them holds as it does without W: all that are no faint gradients count.
    """
    if not choice.lenient:
        return signs.off
    units = to_host(space.noise_units(batch.directions))
    clear = np.asarray([zeros_tell(column) for column in units])
    other = space.device.booleans(clear & (signs.agreement < 1.0 - MAX_HIDDEN))
    return space.xp.where(other[None, :], signs.silent, signs.off)


def _mask(space: RowSpace) -> Array:
    """(m,) bool: the live rows."""
    host = np.zeros(space.shape[0], dtype=bool)
    host[to_host(space.live)] = True
    return space.device.booleans(host)


def _gap(units: Array, active: Array, zero: Array) -> float:
    """1 % quantile of the active entries over the largest zero, in noise units; infinite if none is active."""
    values = to_host(units)[to_host(active)]
    if not len(values):
        return math.inf
    return float(np.quantile(values, 0.01)) / max(1.0, float(np.max(to_host(zero))))
