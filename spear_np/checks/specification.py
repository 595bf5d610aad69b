"""The checks of a whole batch, as a table: what is measured, against which threshold, and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..answer.certificate import Check
from ..arrays import HostArray
from ..directions.disaggregate import MAX_BIAS_RESIDUAL, Disaggregation
from ..directions.uniqueness import Uniqueness
from ..factors.factorize import Factors
from ..factors.zero import NEAR_NOISE
from .agreement import Agreement

EXACT_TOLERANCE = 1e-4
"""Largest error of an `exact` input, as a share of the data range.

Definition: below a tenth of a grey level of 8-bit images.
"""
MAX_HIDDEN = 0.01
"""Largest share of a column's active units whose gradient may drown in noise.

Definition: `exact` demands that gradient and layer agree on 99 % of the decided units.
"""
MIN_MISSING_CHANCE = 1e-3
"""Least probability with which noise hides as many gradients of units that are on as are missing.

Definition: one batch in a thousand loses the word `exact` by chance. Features that were altered turn units on and off: what λ
passes over in a wide layer, this does not.
"""
NONE_SEEN = 0.5
"""Gradients that count as seen next to the zero test where none is.

Derived: half a count is the usual estimate of a rate of which nothing was observed (Jeffreys' prior of a Poisson rate).
"""
MIN_DECIDED = 0.8
"""Least share of a column's units whose activation sign must be beyond doubt.

Definition: `exact` demands most signs.
"""
MIN_GAP = 3.0
"""Least ratio of the smallest non-zero entries of a column to its largest zero.

Definition: `exact` demands that no entry could be either.
"""
MAX_RESIDUAL = 1.5
"""Largest residual of weight_grad, in units of its noise, that the batch may leave.

Derived: the mean square of thousands of entries of noise is one within a percent; rounding is overestimated, not under.
"""


@dataclass(frozen=True, eq=False)
class Figures:
    """What the checks of a batch of k inputs look at."""

    factors: Factors
    choice: Disaggregation
    unique: Uniqueness
    alternatives: int
    """Directions that single zero rows hold in place, other batches that these allow being not refuted."""
    signs: Agreement
    bound: HostArray
    """(k,): bound on the error of each input, in units of the input."""
    residual: float
    """What the batch leaves of weight_grad, in units of its noise."""
    data_range: float
    """Largest minus smallest entry of all inputs."""

    @property
    def relative_bound(self) -> float:
        """Largest bound, as a share of the data range."""
        return float(np.max(self.bound)) / self.data_range if self.data_range > 0 else math.inf


@dataclass(frozen=True)
class Specification:
    """One check: its figure is None where the data for it is missing."""

    name: str
    relation: Literal["<=", ">="]
    threshold: float
    meaning: str
    figure: Callable[[Figures], float | None]

    def check(self, figures: Figures) -> Check:
        """Measure it."""
        return Check(self.name, self.figure(figures), self.relation, self.threshold, self.meaning)


def _of_signs(figure: Callable[[Agreement], float]) -> Callable[[Figures], float | None]:
    """What needs the activation signs."""
    return lambda figures: figure(figures.signs) if figures.factors.signs_known else None


def missing_chance(signs: Agreement) -> float:
    """Probability that noise hides as many gradients of the batch as are missing, by those just above the zero test."""
    missing = int(np.sum(signs.missing))
    if not missing:
        return 1.0
    from scipy.special import pdtrc  # slow to import, seldom needed

    expected = float(np.sum(signs.expected_missing)) + NONE_SEEN / (NEAR_NOISE - 1)
    return float(pdtrc(missing - 1, expected))


CHECKS = (
    Specification(
        "sign_agreement",
        ">=",
        1.0 - MAX_HIDDEN,
        "λ of the worst input: units where gradient and activation agree",
        _of_signs(lambda signs: float(np.min(signs.agreement))),
    ),
    Specification(
        "contradictions",
        "<=",
        0.0,
        "units with a gradient that the recovered input leaves off",
        _of_signs(lambda signs: float(np.sum(signs.contradictions))),
    ),
    Specification(
        "missing_gradients",
        ">=",
        MIN_MISSING_CHANCE,
        "probability that noise hides as many gradients of units that are on as are missing",
        _of_signs(missing_chance),
    ),
    Specification(
        "decided_signs",
        ">=",
        MIN_DECIDED,
        "share of units whose activation sign is beyond doubt, worst input",
        _of_signs(lambda signs: float(np.min(signs.decided))),
    ),
    Specification(
        "unique_directions",
        ">=",
        1.0,
        "share of directions that their zero rows determine",
        lambda figures: float(np.mean(figures.unique.unique)),
    ),
    Specification(
        "alternatives",
        "<=",
        0.0,
        "directions that a single zero row holds, where signs do not refute all others",
        lambda figures: float(figures.alternatives),
    ),
    Specification(
        "gap",
        ">=",
        MIN_GAP,
        "smallest non-zero entries over the largest zero",
        lambda figures: float(np.min(figures.signs.gap)),
    ),
    Specification(
        "rank",
        ">=",
        0.0,
        "directions beyond the rank that the singular values show",
        lambda figures: float(
            figures.factors.space.batch_size - figures.factors.space.spectrum.rank_at_least
        ),
    ),
    Specification(
        "noise_known",
        ">=",
        1.0,
        "1 if what lies below the rank looks like rounding or independent noise",
        lambda figures: float(figures.factors.space.spectrum.noise_known),
    ),
    Specification(
        "weight_residual",
        "<=",
        MAX_RESIDUAL,
        "what the batch leaves of weight_grad, in units of its noise",
        lambda figures: figures.residual,
    ),
    Specification(
        "bias_residual",
        "<=",
        MAX_BIAS_RESIDUAL,
        "what the batch leaves of bias_grad, in units of the relative noise",
        lambda figures: figures.choice.bias_residual,
    ),
    Specification(
        "error_bound",
        "<=",
        EXACT_TOLERANCE,
        "largest possible error of an input, share of the data range",
        lambda figures: None if figures.choice.bias_residual is None else figures.relative_bound,
    ),
)
"""All of them, in the order in which they are shown; `exact` needs every one."""
