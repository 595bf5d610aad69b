"""Which activation a function is, told by its values at many pre-activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from spear_np import Activation, InputError

Values = np.ndarray[Any, np.dtype[np.float64]]

FAR = 80.0
"""Where exponentials have reached their limits in float32, and not overflowed."""

PROBES: Values = np.concatenate([[-FAR, -20.0, 20.0, FAR], np.linspace(-8, 8, 257)])
"""Pre-activations at which functions are compared; -1, 0 and 1 are among them."""

ROUNDINGS = 16
"""Roundings of float32, of the largest number that comes up, that a function may be off: a few operations each."""

EPSILON = float(np.finfo(np.float32).eps)

NARROW = 5
"""Probes of the second look: what is computed number by number does not depend on how many there are."""


def activation_of(function: Callable[[Values], Any]) -> Activation | None:
    """Return which activation `function` of arrays is; None if it is none that a dump can compute.

    Raises whatever `function` raises.
    """
    values = np.asarray(function(PROBES.astype(np.float32)), dtype=np.float64)
    if values.shape != PROBES.shape:
        return None
    few = np.asarray(function(PROBES[:NARROW].astype(np.float32)), dtype=np.float64)
    if few.shape != (NARROW,) or _distance(few, values[:NARROW], PROBES[:NARROW]) > ROUNDINGS * EPSILON:
        return None  # as a softmax
    return identify(values)


def identify(values: Values, rounding: float = 0.0) -> Activation | None:
    """Return the activation with `values` at `PROBES`; None if there is none.

    Parameters
    ----------
    values : (len(PROBES),) array
        Computed in float32.
    rounding : float
        Of the constants of the function, relative: half the machine epsilon of a narrower type. Activations that are
        as near to each other as that cannot be told apart; the nearest is returned.
    """
    best: tuple[float, Activation] | None = None
    for activation in _candidates(values):
        distance = _distance(values, np.asarray(activation.value_and_slope(PROBES)[0]), PROBES)
        if distance <= ROUNDINGS * EPSILON + rounding and (best is None or distance < best[0]):
            best = distance, activation
            if distance <= ROUNDINGS * EPSILON:
                break
    return best[1] if best else None


def _distance(values: Values, others: Values, probes: Values) -> float:
    """Largest difference, relative to the largest number that comes up."""
    distance = float(np.max(np.abs(values - others) / (1 + np.abs(probes))))
    return math.inf if math.isnan(distance) else distance


def _candidates(values: Values) -> Iterator[Activation]:
    """Yield the activations that it may be, their parameters read off where the function is simple."""
    at = dict(zip(PROBES.tolist(), values.tolist(), strict=True))
    for name in (
        "none",
        "relu",
        "relu6",
        "gelu",
        "gelu_tanh",
        "silu",
        "mish",
        "tanh",
        "sigmoid",
        "selu",
        "hardswish",
    ):
        yield Activation(name)
    fitted: list[tuple[str, dict[str, float]]] = [
        ("elu", {"alpha": -at[-FAR]}),
        ("celu", {"alpha": -at[-FAR]}),
        ("leaky_relu", {"negative_slope": -at[-1.0]}),
        ("softplus", {"beta": math.log(2) / at[0.0] if at[0.0] else math.nan}),
        ("hardtanh", {"low": at[-FAR], "high": at[FAR]}),
    ]
    for name, parameters in fitted:
        try:
            yield Activation(name, {key: _short(value) for key, value in parameters.items()})
        except InputError:
            continue


def _short(value: float) -> float:
    """Return the number with the fewest digits that float32 cannot tell from `value`: 0.2 for float32(0.2)."""
    for digits in range(1, 9):
        rounded = float(f"{value:.{digits}g}")
        if np.float32(rounded) == np.float32(value):
            return rounded
    return value
