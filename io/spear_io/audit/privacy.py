"""What noise is worth as differential privacy: ε by the accountant of Opacus, where that is installed."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """What an accountant must know of a training beside the noise."""

    dataset_size: int
    """Records that batches are drawn from."""
    batch_size: int
    steps: int = 1
    delta: float = 1e-5

    @property
    def sample_rate(self) -> float:
        """Share of the records in one batch."""
        return min(1.0, self.batch_size / self.dataset_size)


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
    return found if math.isfinite(found) else math.inf
