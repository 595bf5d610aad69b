"""The scale of inputs where only bias_grad tells it: what the outputs say under cross-entropy.

Without biases and with activations that scale with their argument, inputs that are all multiplied by one factor give outputs
multiplied by it, and fit gradients whose bias_grad is divided by it. But the gradient at the output is softmax minus one at the
label, up to the weight of the input, and softmax knows the size of the outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..answer.labels import CROSS_ENTROPY, labels_from
from ..arrays import Array, HostArray
from ..backend.algebra import OWN_ROUNDING
from ..backend.host import to_host
from ..chain.equations import forward, top_of
from ..chain.layers import Chain
from ..factors.activation import NO_ACTIVATION

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Factors from which the fit starts.

Heuristic: learning rates of biases and clipping by layer differ by less than ten.
"""
FIT_TOLERANCE = 1e-15
"""Relative change at which the fit ends.

Derived: a few roundings of float64.
"""
LIKE_SOFTMAX = 0.03
"""Root mean square of what softmax leaves of the gradients at the output, in units of the entry of the label, for which they are of
cross-entropy.

Heuristic: noise leaves 1e-5, another loss or smoothed labels a tenth.
"""


@dataclass(frozen=True)
class OutputScale:
    """The factor by which all inputs must be multiplied for softmax to explain the gradients at the output."""

    factor: float
    deviation: float
    """Standard deviation of the factor."""


def output_scale(chain: Chain, c: Array, q: Array, loss: str | None) -> OutputScale | None:
    """Return what the gradients at the output, `q` (k, t), say of the scale of the inputs at `c` (k, b).

    For a chain that scales with its inputs. None where they are not those of cross-entropy at an output layer.
    """
    if top_of(chain)[1] or chain.layers[-1].sigma.name != NO_ACTIVATION[0]:
        return None
    if loss not in (None, CROSS_ENTROPY):
        return None
    rows = to_host(q)
    labels = labels_from(rows, loss)
    known = labels >= 0
    if not np.any(known):
        return None
    last = len(chain.layers) - 1
    outputs = to_host(forward(chain, c, last, derivatives=False).z[-1])
    bias = to_host(chain.layers[-1].bias)
    # Only what comes from the inputs is scaled.
    return _fit(outputs[known] - bias, bias, rows[known], labels[known])


def _fit(scaled: HostArray, bias: HostArray, rows: HostArray, labels: HostArray) -> OutputScale | None:
    """The factor of `scaled` (k, t) with which softmax fits `rows` (k, t), one negative entry each at `labels` (k,).

    Smoothed labels take an equal share ε / t from the entries of all classes: the share is fitted too.
    """
    from scipy.optimize import least_squares  # slow to import, needed for networks without biases

    (k, t), at = rows.shape, np.arange(len(labels))
    shares = rows / -rows[at, labels][:, None]
    target = np.eye(t)[labels]

    def left(parameters: HostArray) -> HostArray:
        factor, smoothing = np.exp(parameters[0]), parameters[1]
        z = factor * scaled + bias
        p = np.exp(z - np.max(z, axis=1, keepdims=True))
        p = p / np.sum(p, axis=1, keepdims=True)
        grad = p - (1 - smoothing) * target - smoothing / t
        return np.asarray((grad / -grad[at, labels][:, None] - shares).ravel())

    fits = [
        least_squares(left, [np.log(factor), 0.0], xtol=FIT_TOLERANCE, ftol=FIT_TOLERANCE, gtol=FIT_TOLERANCE)
        for factor in FACTORS
    ]
    best = min(fits, key=lambda fit: float(fit.cost))
    freedom = max(k * (t - 1) - len(best.x), 1)
    variance = 2 * float(best.cost) / freedom
    # The entry of the label is one by construction, and the entries of a row sum to zero.
    information = best.jac.T @ best.jac
    if math.sqrt(variance) > LIKE_SOFTMAX or np.linalg.cond(information) > 1 / OWN_ROUNDING:
        return None
    deviation = math.sqrt(variance * float(np.linalg.inv(information)[0, 0]))
    factor = float(np.exp(best.x[0]))
    return OutputScale(factor, factor * deviation)
