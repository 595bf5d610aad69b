"""Labels: under cross-entropy the gradient at the output is negative for the class of an input and for no other."""

from __future__ import annotations

import numpy as np

from ..backend import Array, HostArray, to_host
from ..chain.equations import top_of
from ..chain.layers import Chain

CROSS_ENTROPY = "cross_entropy"
"""The loss whose gradient at the output is softmax minus one at the label."""
CLEARLY = 1e-2
"""Share of the negative entry that another may be below zero, or the sum be off.

Heuristic: the entries of `exact` inputs are good to 1e-4 of the largest; a mixture of two labels is off by a tenth and more.
"""


def labels_of(chain: Chain, q: Array, loss: str | None) -> HostArray | None:
    """(k,) int64: labels of inputs with the numbers `q` (k, t) at the top of the chain; -1 where they tell none.

    None if the chain does not end at an output layer. A loss that is not known is taken for cross-entropy where its
    gradient looks like it.
    """
    last = chain.layers[-1]
    if top_of(chain)[1] or last.sigma.name != "none":
        return None
    if loss not in (None, CROSS_ENTROPY):
        return np.full(q.shape[0], -1, dtype=np.int64)
    rows = to_host(q)
    label = np.argmin(rows, axis=1)
    lowest = np.min(rows, axis=1)
    others = np.where(np.arange(rows.shape[1])[None, :] == label[:, None], np.inf, rows)
    tolerance = CLEARLY * np.abs(lowest)
    clear = (lowest < 0) & (np.min(others, axis=1) >= -tolerance) & (np.abs(rows.sum(axis=1)) <= tolerance)
    return np.where(clear, label, -1).astype(np.int64)
