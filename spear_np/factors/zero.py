"""What counts as zero: the one place that decides it, for gradients of units in noise units (see `RowSpace.noise_units`)."""

from __future__ import annotations

import numpy as np

from ..arrays import Array, HostArray

ZERO_SIGMAS = 6.0
"""An entry is zero if it is below this many standard deviations of its noise: the one definition of zero.

Derived: Gaussian noise exceeds it once in 5e8 entries, so that no true zero of a batch is lost; a gradient of the size of the
typical one is taken for zero with the probability of a few thousandths at a relative noise of 1e-3.
"""
SURELY_NONZERO = 2.0
"""Multiple of the zero threshold above which an entry is certainly non-zero, even if the direction is slightly wrong.

Derived: a direction that misses no zero row moves an entry by less than the threshold, and noise by less again.
"""
HIDES_NONE = 0.2
"""Expected number of gradients that noise hides in a column up to which its zeros are taken for zeros, one and all.

Heuristic: one column in five then has one unit wrong, which an error bound may rest on; less would leave noisy batches without
bounds.
"""
NEAR_NOISE = 10.0
"""Multiple of the zero test below which gradients tell how many more are hidden in the noise.

Derived: nine times as many are counted as are estimated, a relative error of a third for one hidden gradient.
"""
WELL_ABOVE_ZERO = 5.0
"""Multiple of the zero test from which an entry is large enough for its ratio to another to tell something.

Derived: noise then moves the ratio by less than a thirtieth (1 / 5 of 6 standard deviations).
"""


def is_zero(units: Array) -> Array:
    """Whether entries, `units` in noise units, are zero."""
    return units < ZERO_SIGMAS


def is_nonzero(units: Array) -> Array:
    """Whether entries, `units` in noise units, stand out of their noise; neither is said of NaN."""
    return units >= ZERO_SIGMAS


def surely_nonzero(units: Array) -> Array:
    """Whether entries, `units` in noise units, are non-zero even if their direction is slightly wrong."""
    return units > SURELY_NONZERO * ZERO_SIGMAS


def zeros_tell(units: HostArray) -> bool:
    """Whether a unit without gradient in a column, `units` (ℓ,) in noise units, has none: noise is expected to hide none."""
    return expected_hidden(units) <= HIDES_NONE


def expected_hidden(units: HostArray) -> float:
    """How many non-zero gradients of a column, `units` (ℓ,) in noise units, the zero test is expected to hide.

    Near zero their density is even: as many in each interval as are seen, on average, in those just above the test.
    """
    seen = np.sum((units > ZERO_SIGMAS) & (units < NEAR_NOISE * ZERO_SIGMAS))
    return float(seen) / (NEAR_NOISE - 1)
