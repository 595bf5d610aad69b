"""What the default search is likely to take, by what it took in the measurements of docs/reach.md."""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np

UNITS = (50, 200, 400, 1000, 2000)
WITHIN_A_MINUTE = (12, 65, 110, 200, 250)
"""Largest batches of which 95 % came back whole within a minute on two cores, by the units of a ReLU layer: docs/reach.md;
below 200 units the share of the smallest width measured, less a quarter."""
SECONDS_UP_TO = 0.6
"""Share of such a batch up to which the search took some seconds."""


class Outlook(StrEnum):
    """What to expect of `spear-np invert` with its defaults."""

    SECONDS = "seconds"
    MINUTE = "about a minute"
    UNLIKELY = "unlikely"
    """Beyond what the search reached in measurements: some inputs may still come back."""


def outlook(units: int, batch: int, *, chain_reach: int | None = None) -> Outlook:
    """Return what to expect for a batch behind a ReLU layer, or behind a chain that decides up to `chain_reach` inputs.

    Parameters
    ----------
    units : int
        m; 0 where the layer cannot be inverted by itself.
    batch : int
        b, the rank of weight_grad.
    chain_reach : int, optional
        Largest batch that the layers behind decide, by counting equations.
    """
    alone = units / 4
    if units >= UNITS[0]:
        alone = float(np.interp(math.log(units), np.log(UNITS), WITHIN_A_MINUTE))
    reach = max(alone, chain_reach or 0)
    if batch <= SECONDS_UP_TO * reach:
        return Outlook.SECONDS
    return Outlook.MINUTE if batch <= reach else Outlook.UNLIKELY
