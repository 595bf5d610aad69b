"""What noise is worth as differential privacy: ε by the accountant of Opacus, where that is installed."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

MEANINGFUL = 10.0
"""Largest ε of a whole training that still counts as a promise.

Ponomareva et al. (2023), "How to DP-fy ML": up to 1 is strong, up to 10 reasonable, above 10 weak or none.
"""
LEAST_MULTIPLIER, LARGEST_MULTIPLIER = 1e-4, 1e4
"""Between which the noise multiplier of an ε is sought."""


@dataclass(frozen=True)
class Training:
    """What an accountant must know of a training beside the noise."""

    dataset_size: int = 0
    """Records that batches are drawn from; 0 where they are not known, and every step is taken to use all of them."""
    batch_size: int = 0
    """0: that of the update."""
    steps: int = 1
    delta: float = 1e-5

    @property
    def sample_rate(self) -> float:
        """Share of the records in one batch."""
        return min(1.0, self.batch_size / self.dataset_size) if self.dataset_size else 1.0

    @property
    def large_delta(self) -> bool:
        """Whether δ lets a mechanism through that publishes one record of the data whole: 1/N and above."""
        return self.delta * (self.dataset_size or self.batch_size) >= 1


def epsilon(multiplier: float, training: Training) -> float | None:
    """Return ε of DP-SGD at (ε, δ) for a noise `multiplier`, by Rényi differential privacy; None without Opacus.

    Mironov, Talwar, Zhang (2019), "Rényi Differential Privacy of the Sampled Gaussian Mechanism". Infinite where the
    accountant finds no bound, as for noise that is next to none.
    """
    try:
        from opacus.accountants import RDPAccountant
    except ImportError:
        return None
    if multiplier <= 0:
        return math.inf
    accountant = RDPAccountant()
    accountant.history = [(multiplier, training.sample_rate, training.steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of orders at which the bound is not the best
        try:
            found = float(accountant.get_epsilon(training.delta))
        except (ValueError, OverflowError, ZeroDivisionError):
            return math.inf
    # At a large δ the bound falls below zero, and zero is as good.
    return max(0.0, found) if math.isfinite(found) else math.inf


def multiplier_for(target: float, training: Training) -> float | None:
    """Return the least noise multiplier, to 1 %, whose ε is at most `target`; None without Opacus or where none was found."""
    low, high = LEAST_MULTIPLIER, LARGEST_MULTIPLIER
    most = epsilon(high, training)
    if most is None or most > target:
        return None
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        found = epsilon(middle, training)
        low, high = (middle, high) if found is None or found > target else (low, middle)
    return high
