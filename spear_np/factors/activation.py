"""Elementwise activations: their names, parameters, values and slopes.

The names are those of the dump format. A name that is not in the list is kept as it is: it can be shown, not inverted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import array_api_compat
import numpy as np

from ..adopt import adopted
from ..arrays import Array, HostArray, Namespace
from ..backend.algebra import between, erf
from ..backend.host import to_host
from ..errors import InputError

Function = Callable[[Namespace, Array, Mapping[str, Any]], tuple[Array, Array]]
"""(namespace, pre-activations, parameters) → values and slopes."""

NO_ACTIVATION = ("none", "linear", "identity")
"""Names of the activation that changes nothing."""
SELU_SCALE = 1.0507009873554805
"""λ of Klambauer, Unterthiner, Mayr, Hochreiter, "Self-Normalizing Neural Networks", NeurIPS 2017, equation 14."""
SELU_ALPHA = 1.6732632423543772
"""α of the same."""
CURVATURE_STEP = 1e-5
"""Step of differences: its square, and the rounding of slopes divided by it, are both near 1e-10."""
LARGEST_EXPONENT = 80.0
"""Beyond it exp, tanh and their slopes equal their limits in float32, and float32 does not overflow up to it."""


@dataclass(frozen=True)
class _Kind:
    """What one name means."""

    function: Function
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Parameters and their values where none are given."""
    kinks: Callable[[Mapping[str, Any]], tuple[float, ...]] = lambda _: ()
    """Pre-activations at which the slope jumps."""
    linear: bool = False
    """Whether it is linear between its kinks."""


def _piecewise(xp: Namespace, z: Array, slope: Any, low: float, high: float) -> tuple[Array, Array]:
    """`slope`·z below zero (constant below `low`), z above it (constant above `high`)."""
    bounded = between(xp, z, low, high)
    ones = xp.ones_like(z)
    inside = (z > low) & (z < high)
    factor = xp.where(z < 0, ones * slope, ones)
    return bounded * factor, xp.where(inside, factor, xp.zeros_like(z))


def _relu(xp: Namespace, z: Array, _: Mapping[str, Any]) -> tuple[Array, Array]:
    on = xp.astype(z > 0, z.dtype)
    return z * on, on


def _relu6(xp: Namespace, z: Array, _: Mapping[str, Any]) -> tuple[Array, Array]:
    return between(xp, z, 0.0, 6.0), xp.astype((z > 0) & (z < 6.0), z.dtype)


def _leaky_relu(xp: Namespace, z: Array, p: Mapping[str, Any]) -> tuple[Array, Array]:
    return _piecewise(xp, z, p["negative_slope"], -math.inf, math.inf)


def _prelu(xp: Namespace, z: Array, p: Mapping[str, Any]) -> tuple[Array, Array]:
    return _piecewise(xp, z, p["slope"], -math.inf, math.inf)


def _hardtanh(xp: Namespace, z: Array, p: Mapping[str, Any]) -> tuple[Array, Array]:
    low, high = p["low"], p["high"]
    return between(xp, z, low, high), xp.astype((z > low) & (z < high), z.dtype)


def _exponential(xp: Namespace, z: Array, scale: float, alpha: float, width: float) -> tuple[Array, Array]:
    """`scale`·z above zero, `scale`·`alpha`·(exp(z/`width`) - 1) below it."""
    below = between(xp, z, -LARGEST_EXPONENT * width, 0.0) / width
    positive = z > 0
    value = xp.where(positive, z, alpha * xp.expm1(below))
    slope = xp.where(positive, xp.ones_like(z), alpha / width * xp.exp(below))
    return scale * value, scale * slope


def _elu(xp: Namespace, z: Array, p: Mapping[str, Any]) -> tuple[Array, Array]:
    return _exponential(xp, z, 1.0, p["alpha"], 1.0)


def _celu(xp: Namespace, z: Array, p: Mapping[str, Any]) -> tuple[Array, Array]:
    return _exponential(xp, z, 1.0, p["alpha"], p["alpha"])


def _selu(xp: Namespace, z: Array, _: Mapping[str, Any]) -> tuple[Array, Array]:
    return _exponential(xp, z, SELU_SCALE, SELU_ALPHA, 1.0)


def _gelu(xp: Namespace, z: Array, _: Mapping[str, Any]) -> tuple[Array, Array]:
    share = 0.5 * (1 + erf(xp, z * math.sqrt(0.5)))
    near = between(xp, z, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    return z * share, share + near * xp.exp(-0.5 * between(xp, near, -13.0, 13.0) ** 2) / math.sqrt(
        2 * math.pi
    )


def _gelu_tanh(xp: Namespace, z: Array, _: Mapping[str, Any]) -> tuple[Array, Array]:
    outer, cubic = math.sqrt(2 / math.pi), 0.044715
    near = between(xp, z, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    inner = 2 * outer * (near + cubic * near**3)
    share = _logistic(xp, inner)
    bell = share * _logistic(xp, -inner)
    return z * share, share + 2 * near * bell * outer * (1 + 3 * cubic * near**2)


def _logistic(xp: Namespace, z: Array) -> Array:
    tail = xp.exp(-xp.abs(z))
    return xp.where(z > 0, xp.ones_like(z), tail) / (1 + tail)


def _silu(xp: Namespace, z: Array, _: Mapping[str, Any]) -> tuple[Array, Array]:
    share = _logistic(xp, z)
    near = between(xp, z, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    return z * share, share * (1 + near * (1 - share))


def _softplus_of(xp: Namespace, z: Array) -> Array:
    """log(1 + exp z) without overflow."""
    return xp.where(z > 0, z, xp.zeros_like(z)) + xp.log1p(xp.exp(-xp.abs(z)))


def _softplus(xp: Namespace, z: Array, p: Mapping[str, Any]) -> tuple[Array, Array]:
    beta = p["beta"]
    return _softplus_of(xp, beta * z) / beta, _logistic(xp, beta * z)


def _mish(xp: Namespace, z: Array, _: Mapping[str, Any]) -> tuple[Array, Array]:
    turn = xp.tanh(_softplus_of(xp, z))
    near = between(xp, z, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    return z * turn, turn + near * (1 - turn**2) * _logistic(xp, z)


def _tanh(xp: Namespace, z: Array, _: Mapping[str, Any]) -> tuple[Array, Array]:
    value = xp.tanh(z)
    return value, 1 - value**2


def _sigmoid(xp: Namespace, z: Array, _: Mapping[str, Any]) -> tuple[Array, Array]:
    value = _logistic(xp, z)
    return value, value * (1 - value)


def _hardswish(xp: Namespace, z: Array, _: Mapping[str, Any]) -> tuple[Array, Array]:
    share = between(xp, z + 3, 0.0, 6.0) / 6
    middle = (z > -3) & (z < 3)
    return z * share, xp.where(middle, (2 * z + 3) / 6, xp.astype(z >= 3, z.dtype))


def _identity(xp: Namespace, z: Array, _: Mapping[str, Any]) -> tuple[Array, Array]:
    return z, xp.ones_like(z)


_AT_ZERO = (0.0,)
_KINDS: Mapping[str, _Kind] = {
    "relu": _Kind(_relu, kinks=lambda _: _AT_ZERO, linear=True),
    "relu6": _Kind(_relu6, kinks=lambda _: (0.0, 6.0), linear=True),
    "leaky_relu": _Kind(_leaky_relu, {"negative_slope": 0.01}, lambda _: _AT_ZERO, linear=True),
    "prelu": _Kind(_prelu, {"slope": 0.25}, lambda _: _AT_ZERO, linear=True),
    "elu": _Kind(_elu, {"alpha": 1.0}, lambda p: () if p["alpha"] == 1 else _AT_ZERO),
    "celu": _Kind(_celu, {"alpha": 1.0}),
    "selu": _Kind(_selu, kinks=lambda _: _AT_ZERO),
    "gelu": _Kind(_gelu),
    "gelu_tanh": _Kind(_gelu_tanh),
    "silu": _Kind(_silu),
    "mish": _Kind(_mish),
    "softplus": _Kind(_softplus, {"beta": 1.0}),
    "tanh": _Kind(_tanh),
    "sigmoid": _Kind(_sigmoid),
    "hardswish": _Kind(_hardswish, kinks=lambda _: (-3.0, 3.0)),
    "hardtanh": _Kind(_hardtanh, {"low": -1.0, "high": 1.0}, lambda p: (p["low"], p["high"]), linear=True),
    "none": _Kind(_identity, linear=True),
}

ACTIVATIONS = tuple(_KINDS)
"""Every activation that a dump can name and this package can compute."""
PARAMETERS: Mapping[str, Mapping[str, float]] = {name: dict(kind.defaults) for name, kind in _KINDS.items()}
"""Parameters of each of them, and the values that they have where none are given."""
POSITIVE = ("alpha", "beta")
"""Parameters that must be above zero."""


@dataclass(frozen=True, eq=False)
class Activation:
    """What is applied, element by element, to the output of a layer.

    Parameters
    ----------
    name : str
        One of `ACTIVATIONS`, in any case; "linear" and "identity" mean "none". Anything else is kept as it is:
        such an activation cannot be computed, see `known`.
    parameters : mapping of float, optional
        Those of `PARAMETERS`; what is missing has its default. The `slope` of "prelu" may be an array (m,).

    Raises
    ------
    InputError
        If a parameter does not belong to the activation, is not finite, or is out of range.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Settle the name and the parameters."""
        lower = self.name.lower()
        name = "none" if lower in NO_ACTIVATION else lower if lower in _KINDS else self.name
        defaults = PARAMETERS.get(name, {})
        for parameter, value in self.parameters.items():
            if parameter not in defaults:
                there = ", ".join(defaults) or "none"
                msg = f"the activation {name!r} has no parameter {parameter!r}: it has {there}"
                raise InputError(msg)
            _check(name, parameter, value)
        settled = {key: _settled(key, self.parameters.get(key, default)) for key, default in defaults.items()}
        if name == "hardtanh" and not settled["low"] < settled["high"]:
            msg = f"the parameters of 'hardtanh' are low {settled['low']:g}, high {settled['high']:g}: low must be below high"
            raise InputError(msg)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "parameters", settled)

    @property
    def known(self) -> bool:
        """Whether it can be computed."""
        return self.name in _KINDS

    @property
    def kinks(self) -> tuple[float, ...]:
        """Pre-activations at which the slope jumps."""
        return _KINDS[self.name].kinks(self.parameters)

    @property
    def piecewise_linear(self) -> bool:
        """Whether it is linear between its kinks."""
        return _KINDS[self.name].linear

    @property
    def ceiling(self) -> float | None:
        """Pre-activation above which a ReLU is constant; None for what leaves no gradient zero below zero."""
        return {"relu": math.inf, "relu6": 6.0}.get(self.name)

    def value_and_slope(self, z: Array) -> tuple[Array, Array]:
        """σ(z) and σ'(z) for `z` (…, m), in its dtype and on its device.

        At a kink the slope is that of one side. Large magnitudes give the limits, never NaN.
        """
        xp: Namespace = array_api_compat.array_namespace(z)
        parameters = {
            key: value
            if isinstance(value, float)
            else xp.asarray(value, dtype=z.dtype, device=array_api_compat.device(z))
            for key, value in self.parameters.items()
        }
        return _KINDS[self.name].function(xp, z, parameters)

    def curvature(self, z: Array) -> Array:
        """σ''(z) for float64 `z` (…, m), by central differences of the slope; 0 next to a kink.

        The differences are good to about 1e-9 of the largest slope.
        """
        xp: Namespace = array_api_compat.array_namespace(z)
        if self.piecewise_linear:
            return xp.zeros_like(z)
        step = CURVATURE_STEP
        difference = (self.value_and_slope(z + step)[1] - self.value_and_slope(z - step)[1]) / (2 * step)
        for kink in self.kinks:
            difference = xp.where(xp.abs(z - kink) < 2 * step, xp.zeros_like(z), difference)
        return difference

    def __str__(self) -> str:
        """Name and parameters that differ from their defaults, as "leaky_relu(negative_slope=0.2)"."""
        defaults = PARAMETERS.get(self.name, {})
        shown = [
            f"{key}={value:g}" if isinstance(value, float) else f"{key}=({len(value)},)"
            for key, value in self.parameters.items()
            if not (isinstance(value, float) and value == defaults[key])
        ]
        return f"{self.name}({', '.join(shown)})" if shown else self.name

    def __eq__(self, other: object) -> bool:
        """Whether name and parameters are the same."""
        if not isinstance(other, Activation):
            return NotImplemented
        same = self.name == other.name and self.parameters.keys() == other.parameters.keys()
        return same and all(np.array_equal(v, other.parameters[k]) for k, v in self.parameters.items())

    def __hash__(self) -> int:
        """Hash of the name."""
        return hash(self.name)


def as_activation(value: str | Activation) -> Activation:
    """Return `value`, a name with default parameters or already an activation."""
    return value if isinstance(value, Activation) else Activation(value)


def _numbers(parameter: str, value: Any) -> HostArray:
    """What was handed over for a parameter, on the host; NaN for what is no number."""
    values, _ = adopted(parameter, value)
    try:
        return np.asarray(to_host(values), dtype=np.float64)
    except (TypeError, ValueError):
        return np.asarray(math.nan)


def _settled(parameter: str, value: Any) -> float | HostArray:
    """A float, or a host array of float64 for what has more than one entry."""
    array = _numbers(parameter, value)
    return float(array.reshape(-1)[0]) if array.size == 1 else array


def _check(name: str, parameter: str, value: Any) -> None:
    """Refuse a parameter that is no number, not finite or out of range."""
    array = _numbers(parameter, value)
    vector = name == "prelu" and array.ndim == 1 and array.size > 0
    if array.size != 1 and not vector:
        msg = f"the parameter {parameter!r} of {name!r} has shape {array.shape}, but must be one number"
        raise InputError(msg)
    if not np.all(np.isfinite(array)):
        plain = isinstance(value, int | float | str | np.number)
        given = f"is {value!r}" if plain else f"is a {type(value).__name__}"
        given = f"holds {array[~np.isfinite(array)][0]:g}" if array.ndim else given
        msg = f"the parameter {parameter!r} of {name!r} {given}, but must be a finite number"
        raise InputError(msg)
    if parameter in POSITIVE and not np.all(array > 0):
        msg = f"the parameter {parameter!r} of {name!r} is {float(array.reshape(-1)[0]):g}, but must be above zero"
        raise InputError(msg)
