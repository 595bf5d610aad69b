"""What one layer shares: validated once, read by blocks of columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adopt import adopted
from ..arrays import Array, Namespace, Sliceable
from ..backend.devices import Device
from ..backend.work import block_numbers
from ..errors import InputError
from .activation import Activation, as_activation

BLOCK_BYTES = 32 * 2**20
"""Target size of one float64 block of columns: what bounds the memory of a wide gradient.

Heuristic: 32 MB keep products fast; it changes no answer.
"""

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative rounding error of one stored number, by precision.

Derived: 2^-p for a significand of p bits (IEEE 754).
"""

FIRST_COLUMNS = 16
"""Columns, spread over a block, whose digits are looked at before those of all.

Heuristic: they hold hundreds of numbers; it only saves time.
"""
SPLITTABLE = 1e280
"""Entry up to which the digits of a float64 can be split without overflow.

Derived: its product with 2^45, the largest splitting factor, stays below 1e308.
"""


WHOLE = 2.0**53
"""Size from which all float64 numbers are whole.

Definition: of the format.
"""


@dataclass(frozen=True)
class WeightDecay:
    """Multiples of a layer's own parameters that an update holds besides the gradient, as weight decay leaves them."""

    weight: float = 0.0
    """λ: what is called weight_grad is ∂L/∂W + λ W."""
    bias: float = 0.0
    """The same of bias_grad; optimizers often leave biases out."""
    deviation: float = 0.0
    """Standard deviation of `weight` where it was fitted to the update; 0 where it is known."""

    @property
    def present(self) -> bool:
        """Whether there is any."""
        return self.weight != 0 or self.bias != 0

    def __str__(self) -> str:
        """How much of what, and how sure that is."""
        sure = f" (± {self.deviation:.1g})" if self.deviation else ""
        biases = {self.weight: " and biases", 0.0: ", not of the biases"}
        own = biases.get(self.bias, f" and {self.bias:.6g} times the biases")
        return f"{self.weight:.6g}{sure} times the weights{own}"


NO_DECAY = WeightDecay()


@dataclass(frozen=True, eq=False)
class LayerGradients:
    """The shared update of one fully connected layer, Z = W X + b·1ᵀ.

    Parameters
    ----------
    weight_grad : (m, n) array or sliceable, float16, float32 or float64
        ∂L/∂W; row j belongs to output unit j. Never copied as a whole: it is read by blocks of columns. Tensors of
        PyTorch and arrays of JAX, bfloat16 too, are taken as NumPy arrays on the host.
    bias_grad : (m,) array, optional
        ∂L/∂b. Without it every input is found up to its scale.
    weight : (m, n) array or sliceable, optional
        W. Without it (and `bias`) activation signs cannot be checked.
    bias : (m,) array, optional
        b. A missing bias counts as zero when `weight` is given.
    activation : str or Activation
        What is applied to Z, element by element. A name stands for the activation with default parameters.
    precision : {"float64", "float32", "float16", "bfloat16"}, optional
        What the numbers were rounded to. Defaults to the dtype of `weight_grad`. A wider type that carries narrower
        numbers gives itself away when they are read, unless they were scaled since.
    decay : WeightDecay
        What the arrays hold of `weight` and `bias` besides the gradient: taken out of every block that is read.

    Raises
    ------
    InputError
        If shapes or dtypes do not fit together, a parameter of the activation is out of range, or `decay` asks for
        parameters that are missing.
    """

    weight_grad: Sliceable
    bias_grad: Sliceable | None = None
    weight: Sliceable | None = None
    bias: Sliceable | None = None
    activation: str | Activation = "relu"
    precision: str | None = None
    decay: WeightDecay = NO_DECAY

    def __post_init__(self) -> None:
        """Check everything that can be checked without reading the matrices."""
        for name in ("weight_grad", "bias_grad", "weight", "bias"):
            values, precision = adopted(name, getattr(self, name))
            object.__setattr__(self, name, values)
            if name == "weight_grad" and self.precision is None:
                object.__setattr__(self, "precision", precision)
        m, n = _matrix_shape("weight_grad", self.weight_grad)
        if self.weight is not None:
            shape = _matrix_shape("weight", self.weight)
            if shape != (m, n):
                msg = f"`weight` has shape {shape}, but `weight_grad` has {(m, n)}: they must be the same"
                raise InputError(msg)
        for name in ("bias_grad", "bias"):
            vector = getattr(self, name)
            if vector is not None:
                _check_vector(name, vector, m)
        activation = as_activation(self.activation)
        slope = activation.parameters.get("slope")
        if isinstance(slope, np.ndarray) and slope.shape != (m,):
            msg = f"the slopes of 'prelu' have shape {slope.shape}, but the layer has {m} output units"
            raise InputError(msg)
        object.__setattr__(self, "activation", activation)
        if self.precision is not None and self.precision not in UNIT_ROUNDOFF:
            msg = f"`precision` is {self.precision!r}, but must be one of {', '.join(UNIT_ROUNDOFF)}"
            raise InputError(msg)
        if not (math.isfinite(self.decay.weight) and math.isfinite(self.decay.bias)):
            msg = f"`decay` is {self.decay.weight:g} of the weights, {self.decay.bias:g} of the biases: not a finite number"
            raise InputError(msg)
        if self.decay.weight and self.weight is None:
            msg = "`weight` is missing: without it weight decay cannot be taken out of `weight_grad`"
            raise InputError(msg)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        m, n = self.weight_grad.shape
        return int(m), int(n)

    @property
    def sigma(self) -> Activation:
        """σ, what is applied to Z."""
        return as_activation(self.activation)

    @property
    def ceiling(self) -> float:
        """Pre-activation above which a ReLU is constant and leaves no gradient; infinite for a plain one."""
        ceiling = self.sigma.ceiling
        assert ceiling is not None  # see `require_zeros`
        return ceiling

    def require_zeros(self) -> None:
        """Refuse a layer whose gradient has no zeros for a single layer's inversion to rest on.

        Raises
        ------
        InputError
            If the activation is neither "relu" nor "relu6".
        """
        if self.sigma.ceiling is None:
            msg = (
                f"the activation after this layer is '{self.sigma}': only a ReLU leaves the zeros in the "
                "gradient that the inversion of a single layer rests on"
            )
            raise InputError(msg)

    @property
    def update(self) -> Sliceable:
        """(m, n): what was handed over as `weight_grad`, weight decay and all."""
        return self.weight_grad

    @property
    def unit_roundoff(self) -> float:
        """Largest relative rounding error of one entry of `weight_grad`, dimensionless."""
        return UNIT_ROUNDOFF[self.precision_name]

    @property
    def precision_name(self) -> str:
        """What the entries of `weight_grad` were rounded to."""
        return self.precision or _dtype_name(self.weight_grad.dtype)

    def blocks(self, *names: str, device: Device) -> Iterator[tuple[slice, tuple[Array, ...]]]:
        """Yield `(columns, arrays)`: float64 blocks (m, width) of the named matrices, on `device`.

        "weight_grad" comes without weight decay, "update" as it was handed over.
        """
        n, width = self.shape[1], self._width(device)
        spans = [slice(start, min(start + width, n)) for start in range(0, n, width)]
        stored = ["weight_grad" if name == "update" else name for name in names]
        if self.decay.weight and "weight_grad" in names:
            stored.append("weight")
        stored = list(dict.fromkeys(stored))  # each is read once
        reads = ([getattr(self, name)[:, columns] for name in stored] for columns in spans)

        def named(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
            read = dict(zip(stored, arrays, strict=True))
            return tuple(self._named(name, read) for name in names)

        yield from zip(spans, map(named, device.streamed(reads)), strict=True)

    def _named(self, name: str, read: dict[str, Array]) -> Array:
        """One of `blocks`, from those that were `read`."""
        if name == "update":
            return read["weight_grad"]
        if name == "weight_grad" and self.decay.weight:
            return read["weight_grad"] - self.decay.weight * read["weight"]
        return read[name]

    def _width(self, device: Device) -> int:
        """How many columns a block has."""
        m, n = self.shape
        width = BLOCK_BYTES // (8 * m)
        if device.name != "cpu":
            # Blocks no wider than m have QR decompositions compute what is known again and again.
            width = min(max(width, m), block_numbers(device) // m)
        return max(1, min(n, width))

    def vector(self, name: str, *, device: Device) -> Array:
        """(m,) float64 copy of `bias_grad`, without weight decay, or `bias` on `device`; zeros for a missing `bias`."""
        value = getattr(self, name)
        if value is None:
            return device.xp.zeros(self.shape[0], dtype=device.xp.float64, device=device.handle)
        vector = device.float64(value[:] if not hasattr(value, "ndim") else value)
        if name == "bias_grad" and self.decay.bias:
            return vector - self.decay.bias * self.vector("bias", device=device)
        return vector


def narrower_precisions(precision: str) -> list[str]:
    """Precisions with fewer digits than `precision`, the one with fewest first."""
    roundoff = UNIT_ROUNDOFF[precision]
    names = [name for name, unit in UNIT_ROUNDOFF.items() if unit > roundoff]
    return sorted(names, key=lambda name: -UNIT_ROUNDOFF[name])


def fits_precision(xp: Namespace, values: Array, precision: str) -> bool:
    """Whether no float64 entry of `values` has more digits than `precision` holds, whatever its exponent.

    By splitting off the digits beyond (Dekker 1971, "A floating-point technique for extending the available
    precision").
    """
    if float(xp.max(xp.abs(values))) > SPLITTABLE:
        return False
    # Numbers that have more digits show it in some columns already.
    for part in (values[..., :: 1 + values.shape[-1] // FIRST_COLUMNS], values):
        split = part * (UNIT_ROUNDOFF[precision] / UNIT_ROUNDOFF["float64"] + 1)
        if not bool(xp.all(split - (split - part) == part)):
            return False
    return True


def spacing_of(xp: Namespace, values: Array, spacing: float) -> float:
    """Largest power of two of which `spacing` and all float64 entries of `values` are multiples; `spacing` if they are zero.

    Of numbers in a floating-point format it is the distance of its smallest ones, or less than the rounding of the smallest
    that occur.
    """
    size = xp.abs(values)
    least = float(xp.min(xp.where(size > 0, size, xp.full_like(size, math.inf))))
    spacing = min(spacing, 2.0 ** math.floor(math.log2(least))) if math.isfinite(least) else spacing
    while True:
        # Above 2^53 all float64 numbers are whole, and nothing overflows.
        count = xp.minimum(size, xp.full_like(size, WHOLE * spacing)) / spacing
        if bool(xp.all(xp.floor(count) == count)):
            return spacing
        spacing /= 2


def _dtype_name(dtype: Any) -> str:
    """Name of a dtype of any array library ("float32", also for torch- or strict-style reprs)."""
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        return str(dtype).rsplit(".", maxsplit=1)[-1]


def _check_dtype(name: str, dtype: Any) -> None:
    """Refuse everything but real floating point."""
    if _dtype_name(dtype) not in UNIT_ROUNDOFF:
        msg = f"`{name}` has dtype {_dtype_name(dtype)}: expected float16, float32 or float64"
        raise InputError(msg)


def _matrix_shape(name: str, matrix: Any) -> tuple[int, int]:
    """Return (m, n) of a non-empty floating-point matrix, or say what it is instead."""
    if not isinstance(matrix, Sliceable):
        msg = f"`{name}` is a {type(matrix).__name__}: it needs `shape`, `dtype` and slicing, as an array has"
        raise InputError(msg)
    shape = tuple(int(size) for size in matrix.shape)
    if len(shape) != 2:
        msg = f"`{name}` has shape {shape}: expected two dimensions (output units, input features)"
        raise InputError(msg)
    _check_dtype(name, matrix.dtype)
    if 0 in shape:
        msg = f"`{name}` is empty: its shape is {shape}"
        raise InputError(msg)
    return shape[0], shape[1]


def _check_vector(name: str, vector: Any, m: int) -> None:
    """Refuse a vector whose length or dtype does not fit."""
    if not isinstance(vector, Sliceable):
        msg = f"`{name}` is a {type(vector).__name__}: expected an array of {m} numbers"
        raise InputError(msg)
    shape = tuple(int(size) for size in vector.shape)
    if shape != (m,):
        msg = f"`{name}` has shape {shape}, but `weight_grad` has {m} rows: expected ({m},)"
        raise InputError(msg)
    _check_dtype(name, vector.dtype)


@dataclass(frozen=True, eq=False)
class LayerChain:
    """What consecutive layers share: the activated output of each is the input of the next, with nothing in between.

    Parameters
    ----------
    layers : sequence of LayerGradients
        In forward order, at least one: the inputs of the first are sought.
    names : sequence of str, optional
        What they are called, one name each.
    loss : str, optional
        "cross_entropy" or another, where it is known.

    Raises
    ------
    InputError
        If there are no layers, or not as many names.
    """

    layers: Sequence[LayerGradients]
    names: Sequence[str] = ()
    loss: str | None = None

    def __post_init__(self) -> None:
        """Check and settle both sequences."""
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "names", tuple(self.names))
        if not self.layers:
            msg = "`layers` is empty: expected the layer whose inputs are sought, and those that follow it"
            raise InputError(msg)
        if self.names and len(self.names) != len(self.layers):
            msg = f"`names` holds {len(self.names)} names for {len(self.layers)} layers: give one for each, or none"
            raise InputError(msg)

    @property
    def first(self) -> LayerGradients:
        """The layer whose inputs are sought."""
        return self.layers[0]

    @property
    def units(self) -> int:
        """Those of its widest layer."""
        return max(layer.shape[0] for layer in self.layers)
