"""Which activation a call of a PyTorch function is: told by its name and arguments, believed by its values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from spear_np import Activation
from spear_np.errors import InputError

from ._torch_functions import FunctionCall
from ._torch_tensors import to_numpy

PLAIN = frozenset({"relu", "relu6", "selu", "silu", "mish", "tanh", "sigmoid", "hardswish"})
"""Activations without parameters, whose functions are called the same."""

SOFTPLUS_THRESHOLD = 20.0
"""From β·z above it on, PyTorch returns z for softplus by default: wrong by exp(-20)/20 = 1e-10 of z, below any rounding."""

SAMPLED = 2**16
"""So many numbers are compared with the definition of an activation: the name and arguments of the call are known."""

ROUNDINGS = 8
"""PyTorch's functions are right to a few units in the last place; four are measured for gelu in float32."""


def may_be_activation(call: FunctionCall) -> bool:
    """Whether a function of that name can be an activation."""
    return call.name in PLAIN or call.name in _READERS


def activation_of(call: FunctionCall) -> Activation | None:
    """Return the activation that a call, which PyTorch accepted, is by its name and arguments.

    None if a dump has no name for it.
    """
    if call.name in PLAIN:
        return Activation(call.name)
    reader = _READERS.get(call.name)
    if reader is None:
        return None
    try:
        return reader(call)
    except InputError:  # a parameter that the definition does not allow
        return None


class Sample:
    """Some rows of what goes into a function, to tell afterwards whether the function was a certain activation.

    Taken before the call, which may work in place.
    """

    def __init__(self, before: torch.Tensor) -> None:
        self._shape = before.shape
        self._before = self._rows(before)

    def confirms(self, activation: Activation, after: torch.Tensor) -> bool:
        """Whether `after` is `activation` of what was there before, to the rounding of its type."""
        if after.shape != self._shape:
            return False
        slopes = activation.parameters.get("slope", 0.0)
        if np.ndim(slopes) == 1 and len(slopes) != self._before.shape[-1]:
            return False
        expected, _ = activation.value_and_slope(self._before)
        sizes = [float(np.max(np.abs(value))) for value in activation.parameters.values()]
        scale = (1 + np.abs(self._before)) * max(1.0, *sizes) if sizes else 1 + np.abs(self._before)
        allowed = ROUNDINGS * torch.finfo(after.dtype).eps * scale
        # Not "<=": what is NaN before and after is no contradiction.
        return not np.any(np.abs(self._rows(after) - expected) > allowed)

    def _rows(self, tensor: torch.Tensor) -> Any:
        rows = tensor.detach().reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
        step = max(1, math.ceil(rows.numel() / SAMPLED))
        return np.array(to_numpy(rows[::step].cpu().double()))


def selects_as_relu(
    call: FunctionCall, tensor: torch.Tensor, before: torch.Tensor, after: torch.Tensor
) -> bool:
    """Whether a call is a ReLU written by hand: `maximum(z, 0)`, `where(z > 0, z, 0)`, `z * (z > 0)`, `masked_fill`.

    All of these hand on z or a number that has no gradient, entry by entry. So where the result is that of a ReLU to
    the last bit, the slopes are those of a ReLU too.

    Parameters
    ----------
    call : FunctionCall
        What was called.
    tensor : tensor
        The only differentiable argument.
    before, after : tensors
        Its numbers before the call, and the result.
    """
    operands: list[Any] = [*call.args, *call.kwargs.values()]
    numbers = [value for value in operands if value is not tensor and not isinstance(value, bool)]
    if call.name in ("maximum", "fmax", "max"):
        selects = len(numbers) == 1 and _only_in(numbers[0], (0,))
    elif call.name == "where":
        selects = len(numbers) == 2 and _only_in(numbers[1], (0,))
    elif call.name == "mul":
        selects = len(numbers) == 1 and _only_in(numbers[0], (0, 1))
    elif call.name == "masked_fill":
        selects = len(numbers) == 2 and _only_in(numbers[1], (0,))
    else:
        return False
    return selects and after.shape == before.shape and torch.equal(after, before.relu())


def _only_in(value: Any, allowed: tuple[int, ...]) -> bool:
    """Whether a number or a tensor holds nothing but the `allowed` numbers."""
    tensor = torch.as_tensor(value)
    matches = torch.zeros_like(tensor, dtype=torch.bool)
    for number in allowed:
        matches |= tensor == number
    return bool(matches.all())


def _number(value: Any) -> float | None:
    """Return a bound as a number; None for none, and NaN for one that differs from entry to entry."""
    if isinstance(value, torch.Tensor):
        return (
            float(value) if value.numel() == 1 else float(value.max()) if _only_in(value, (0,)) else math.nan
        )
    return None if value is None else float(value)


def _bounded(low: float | None, high: float | None) -> Activation | None:
    """Return the activation that keeps z between two bounds."""
    high = math.inf if high is None else high
    if low == 0 and high in (6, math.inf):
        return Activation("relu" if high == math.inf else "relu6")
    return None if low is None else Activation("hardtanh", {"low": low, "high": high})


def _softplus(call: FunctionCall) -> Activation | None:
    if call.argument(2, "threshold", SOFTPLUS_THRESHOLD) < SOFTPLUS_THRESHOLD:
        return None
    return Activation("softplus", {"beta": call.argument(1, "beta", 1.0)})


def _prelu(call: FunctionCall) -> Activation | None:
    slopes = call.argument(1, "weight").detach()
    # PyTorch has one slope for each index of the second axis: the units only if that is the last one.
    if slopes.numel() > 1 and call.argument(0, "input").ndim != 2:
        return None
    return Activation("prelu", {"slope": to_numpy(slopes.double())})


def _rrelu(call: FunctionCall) -> Activation | None:
    if call.argument(3, "training", False):
        return None  # random slopes
    mean = (call.argument(1, "lower", 1 / 8) + call.argument(2, "upper", 1 / 3)) / 2
    return Activation("leaky_relu", {"negative_slope": mean})


def _threshold(call: FunctionCall) -> Activation | None:
    is_relu = call.argument(1, "threshold") == 0 and call.argument(2, "value") == 0
    return Activation("relu") if is_relu else None


_READERS: dict[str, Callable[[FunctionCall], Activation | None]] = {
    "leaky_relu": lambda call: Activation(
        "leaky_relu", {"negative_slope": call.argument(1, "negative_slope", 0.01)}
    ),
    "prelu": _prelu,
    "rrelu": _rrelu,
    "elu": lambda call: Activation("elu", {"alpha": call.argument(1, "alpha", 1.0)}),
    "celu": lambda call: Activation("celu", {"alpha": call.argument(1, "alpha", 1.0)}),
    "gelu": lambda call: Activation(
        {"none": "gelu", "tanh": "gelu_tanh"}[call.argument(1, "approximate", "none")]
    ),
    "softplus": _softplus,
    "hardtanh": lambda call: _bounded(
        _number(call.argument(1, "min_val", -1.0)), _number(call.argument(2, "max_val", 1.0))
    ),
    "clamp": lambda call: _bounded(_number(call.argument(1, "min")), _number(call.argument(2, "max"))),
    "clamp_min": lambda call: _bounded(_number(call.argument(1, "min")), None),
    "threshold": _threshold,
}
