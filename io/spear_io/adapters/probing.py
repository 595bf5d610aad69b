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
    if few.shape != (NARROW,) or not _same(few, values[:NARROW], PROBES[:NARROW]):
        return None  # as a softmax
    return identify(values)


def identify(values: Values) -> Activation | None:
    """Return the activation with `values` at `PROBES`; None if there is none."""
    for activation in _candidates(values):
        if _same(values, activation.value_and_slope(PROBES)[0], PROBES):
            return activation
    return None


def _same(values: Values, others: Values, probes: Values) -> bool:
    allowed = ROUNDINGS * np.finfo(np.float32).eps * (1 + np.abs(probes))
    return bool(np.all(np.abs(values - others) <= allowed))  # false for NaN


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
