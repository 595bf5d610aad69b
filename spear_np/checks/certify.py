"""What `exact` means: every check of a recovered batch, and the status they allow.

The argument, for one direction q and the output units Z on which gradient and layer agree that its input is off:

- *Unique.* The rows of U in Z have rank b - 1, so q is the only direction without gradient there. A combination of
  t inputs' directions annuls the rows on which all t are off, which have rank b - t at most, and t - 1 further rows
  by a choice of its coefficients. Each of those rows is indispensable to the rank. So a direction whose zero rows
  keep their rank after any one of them is removed is no combination, unless two numbers agree by chance
  within the noise. Where one is indispensable, every other batch that it allows is held against the layer
  (`alternatives`).
- *Consistent.* No output unit has a gradient that stands out of its noise where the recovered input leaves the unit
  off, and hardly any lacks one where it is on.
- *Complete.* weight_grad and bias_grad are reproduced to their noise, and there is no further singular value above
  it.
- *Accurate.* The noise of the zero rows, carried through to the inputs, moves no entry by more than
  `EXACT_TOLERANCE` of the data range, at six standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..answer.certificate import Certificate, Evidence
from ..answer.result import Status
from ..arrays import Array, HostArray
from ..backend.host import to_host
from ..directions.chance import MAX_CHANCE, chances
from ..directions.disaggregate import EXPLAINED, MAX_BIAS_RESIDUAL, Disaggregation
from ..directions.uniqueness import Uniqueness, uniqueness
from ..factors.factorize import Factors
from ..factors.row_space import RowSpace
from ..factors.zero import zeros_tell
from ..inputs.bounds import MAX_HIDDEN_ROW, noise_bound
from ..inputs.reconstruct import Reconstruction
from .agreement import Agreement, compare_signs
from .alternatives import refuted
from .dependence import dependent_columns
from .specification import CHECKS, EXACT_TOLERANCE, MAX_HIDDEN, Figures

ROW_TOLERANCE = 0.3
"""Largest error bound, as a share of the data range, with which an input still counts as recovered.

Definition: at six standard deviations of the noise.
"""
MORE_DOUBT = 2.0
"""Multiple of the error bounds by which signs are doubted where that is more than `exact` allows.

Heuristic: signs that are doubted more determine less, and bounds grow a little.
"""
NEAR_AGREEMENT = 0.98
"""λ of an input from which a few contradictions are no evidence against it.

Heuristic: patterns of wrong directions agree far less, see `SURE_FIT`.
"""
ROUGH_AGREEMENT = 0.9
"""λ of an input from which signs count as those of the layer, if nothing but chance could make its direction wrong.

Heuristic: updates of several steps and weights that are not quite those of the gradient keep 90 % of the signs.
"""
MIN_DECIDED_ROW = 0.3
"""Least share of decided units with which an input is handed out.

Heuristic: dozens of units at any width; fewer tell little.
"""
DEPENDENT = (
    "columns of ∂L/∂Z depend on each other on the units that their inputs share, as they do behind a layer with few outputs: "
    "where no activation signs confirm them, rows may be combinations of inputs, and nothing bounds their errors"
)


def _refuted(count: int) -> str:
    return (
        f"{count} column(s) of ∂L/∂Z have zeros that only single units tell from those of others: every other batch that fits "
        "the remaining zeros was written down, and has a gradient on a unit that its inputs leave off"
    )


def _tied(count: int) -> str:
    return (
        f"the zeros of {count} column(s) of ∂L/∂Z do not determine them, but with the weights of the layer behind they are: it is "
        "taken to follow with nothing in between"
    )


@dataclass(frozen=True, eq=False)
class Verdict:
    """Certificate and the status it allows."""

    certificate: Certificate
    status: Status
    reason: str
    checked_signs: bool
    """Whether activation signs took part."""

    @property
    def accepted_rows(self) -> HostArray:
        """(k,) bool: inputs that every check of their own supports."""
        return np.asarray([row.accepted for row in self.certificate.evidence], dtype=bool)

    @property
    def complete(self) -> bool:
        """Whether all inputs are vouched for: what is missing then is precision or data, not search."""
        return bool(np.all(self.accepted_rows))


def certify(factors: Factors, choice: Disaggregation, batch: Reconstruction) -> Verdict:
    """Check a completely recovered batch and say what may be claimed of it."""
    space, k = factors.space, batch.recovery.shape[0]
    tolerance = EXACT_TOLERANCE * batch.data_range
    signs = compare_signs(factors, batch, np.full(k, tolerance))
    off = _determining(space, choice, batch, signs)
    # The dual vectors of the directions, in U-coordinates, are the inputs.
    unique = uniqueness(space, batch.directions, batch.input_coords / space.S, off)
    residual = _residual(space, batch)

    def bounded(unique: Uniqueness) -> HostArray:
        """(k,): bounds on the errors of the inputs."""
        scale, largest = to_host(choice.scale_variance), to_host(batch.largest_residual)
        bound = noise_bound(space, batch.recovery, to_host(batch.input_max), scale, unique, largest=largest)
        # What is left of weight_grad is noise too, whatever it comes from.
        return bound * max(1.0, residual)

    bound = bounded(unique)
    alternatives, lone = int(np.sum(unique.redundancy < 1)), 0
    if alternatives and _explained(factors, choice, signs):
        settled = _settled(factors, choice, batch, bounded, tolerance)
        if settled is not None:
            off, unique, bound = settled
            alternatives, lone = 0, alternatives
    signs = compare_signs(factors, batch, np.clip(bound, tolerance, ROW_TOLERANCE * batch.data_range))
    dependent = (choice.lenient or not factors.signs_known) and dependent_columns(space, batch.directions)
    if dependent:
        # Only signs tell which combinations are inputs.
        bound = np.where(factors.signs_known & (signs.agreement >= 1.0 - MAX_HIDDEN), bound, math.inf)
    if space.spectrum.plausible is not None and space.batch_size < space.spectrum.plausible[0]:
        # What the inputs beyond the batch size add is no noise, and nothing bounds what they change.
        bound = np.full(k, math.inf)
    in_detail = (signs.blatant == 0) & (signs.hidden <= MAX_HIDDEN_ROW)
    in_outline = (signs.agreement >= NEAR_AGREEMENT) & (unique.redundancy >= 1)
    # Without bias_grad the scale is bounded only where chance is excluded.
    needs_chance = ~(in_detail | in_outline | (not factors.signs_known)) | (factors.bias_grad is None)
    unique, false = chances(space, batch.directions, off, unique, MAX_CHANCE, doubtful=needs_chance)
    # Dropout hides gradients of units that are on; several steps in one update, or weights that are not quite those of
    # the gradient, disturb some signs. None of it makes a direction wrong that chance cannot.
    roughly = ((signs.blatant == 0) | (signs.agreement >= ROUGH_AGREEMENT)) & (false <= MAX_CHANCE)
    within = bound <= ROW_TOLERANCE * batch.data_range
    evidence = tuple(
        Evidence(
            unique=bool(unique.unique[i] or unique.with_layer_behind[i]),
            spare_rows=bool(unique.redundancy[i] >= 1),
            beyond_chance=bool(false[i] <= MAX_CHANCE),
            within_bound=bool(within[i]),
            signs_decided=bool(signs.decided[i] >= MIN_DECIDED_ROW) if factors.signs_known else None,
            signs_agree=bool(in_detail[i] | in_outline[i] | roughly[i]) if factors.signs_known else None,
        )
        for i in range(k)
    )
    contradicted = (signs.contradictions > 0) & np.asarray([row.accepted for row in evidence])
    unscaled = choice.bias_residual is not None and choice.bias_residual > MAX_BIAS_RESIDUAL
    if unscaled or (factors.signs_known and np.any(contradicted)):
        # No input within its bound has the signs of the gradient: that is not the plain one, or W and b are not its layer's. Or
        # bias_grad is not that of these inputs, and gives them no scale.
        bound = np.full(k, math.inf)
    figures = Figures(factors, choice, unique, alternatives, signs, bound, residual, batch.data_range)
    certificate = Certificate(
        checks=tuple(specification.check(figures) for specification in CHECKS),
        zero_count=tuple(int(c) for c in to_host(space.xp.sum(space.xp.astype(off, space.xp.int64), axis=0))),
        redundancy=tuple(int(r) for r in unique.redundancy),
        sign_agreement=tuple(float(a) for a in signs.agreement),
        false_probability=tuple(float(p) for p in false),
        error_bound=tuple(float(e) for e in bound),
        evidence=evidence,
        caveats=(
            *_caveats(factors),
            *((DEPENDENT,) if dependent else ()),
            *((_refuted(lone),) if lone else ()),
            *((_tied(int(np.sum(unique.with_layer_behind))),) if np.any(unique.with_layer_behind) else ()),
        ),
    )
    return verdict_of(certificate, factors)


def verdict_of(certificate: Certificate, factors: Factors) -> Verdict:
    """Status from the checks: `exact` only if every one could be made and holds; no more inputs than pass their own."""
    accepted, k = sum(row.accepted for row in certificate.evidence), len(certificate.evidence)
    missing = [name for name in ("weight", "bias_grad") if getattr(factors.gradients, name) is None]
    without = f"without {' and '.join(missing)} exactness cannot be certified"
    failed = ", ".join(check.name.replace("_", " ") for check in certificate.checks if check.passed is False)
    if certificate.holds and accepted == k:
        status, reason = Status.EXACT, "every check of the certificate holds"
    elif accepted == k:
        status = Status.APPROXIMATE
        reason = f"but these checks do not hold: {failed}" if failed else f"but {without}"
        reason = f"all inputs found, {reason}"
    else:
        status = Status.PARTIAL if accepted else Status.FAILED
        batch = f"for the batch these fail: {failed}" if failed else without
        reason = f"{accepted} of {k} inputs pass the checks of their own; {batch}"
    return Verdict(certificate, status, reason, factors.signs_known)


def _explained(factors: Factors, choice: Disaggregation, signs: Agreement) -> bool:
    """Whether a batch is worth holding others against: it has the signs of its gradients, and bias_grad is their sum."""
    residual = choice.bias_residual
    if not factors.signs_known or choice.lenient or residual is None or residual > EXPLAINED:
        return False
    return bool(np.all(signs.agreement >= 1.0 - MAX_HIDDEN) and not np.any(signs.contradictions))


def _settled(
    factors: Factors,
    choice: Disaggregation,
    batch: Reconstruction,
    bounded: Callable[[Uniqueness], HostArray],
    tolerance: float,
) -> tuple[Array, Uniqueness, HostArray] | None:
    """Zero rows, what they determine and error bounds, once signs have refuted all alternatives; None if they do not.

    Signs are doubted by the errors that the inputs may have: first by `tolerance`, then, where bounds are wider, by these.
    """
    space, k = factors.space, batch.recovery.shape[0]
    dependent = dependent_columns(space, batch.directions)
    error = tolerance
    for _ in range(2):
        off = _determining(space, choice, batch, compare_signs(factors, batch, np.full(k, error)))
        unique = uniqueness(space, batch.directions, batch.input_coords / space.S, off)
        if dependent and np.sum(unique.redundancy < 1) > 1:
            break  # mixtures cancel on rows that could be spared, too; a single direction has none to mix with
        mixing = refuted(factors, batch, to_host(off), unique, error)
        if mixing is None:
            break
        unique = replace(unique, mixing=mixing)
        bound = bounded(unique)
        largest = float(np.max(bound))
        if largest <= error:
            return off, unique, bound
        error = MORE_DOUBT * largest
        if error > ROW_TOLERANCE * batch.data_range:
            break
    return None


def _residual(space: RowSpace, batch: Reconstruction) -> float:
    """Root mean square, over the live rows, of what the batch leaves of weight_grad, in units of its noise."""
    live = to_host(space.live_of(batch.residual))
    return math.sqrt(float(np.mean(live**2)))


def _caveats(factors: Factors) -> tuple[str, ...]:
    b, spectrum = factors.space.batch_size, factors.space.spectrum
    rank = spectrum.rank
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
    elif spectrum.spacing and spectrum.rank_without_spacing != rank:
        digits = spectrum.rank_without_spacing or "more than can be told"
        caveats.append(
            f"{b} inputs are all that stands out of the rounding to {factors.gradients.precision_name}, whose smallest numbers "
            f"here are {spectrum.spacing:.1e} apart; without that distance it would be {digits}"
        )
    return tuple(caveats)


def _determining(space: RowSpace, choice: Disaggregation, batch: Reconstruction, signs: Agreement) -> Array:
    """(m, k) bool: the zero rows that have to determine each direction.

    Those on which gradient and layer agree. In a lenient choice, columns that fail the check of the signs are known to
    have other zeros, and what follows from them holds as it does without W: all that are no faint gradients count.
    """
    if not choice.lenient:
        return signs.off
    units = to_host(space.noise_units(batch.directions))
    clear = np.asarray([zeros_tell(column) for column in units])
    other = space.device.booleans(clear & (signs.agreement < 1.0 - MAX_HIDDEN))
    return space.xp.where(other[None, :], signs.no_gradient, signs.off)
