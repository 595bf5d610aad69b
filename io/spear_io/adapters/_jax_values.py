"""What flows through a traced function: constants and parameters, and elementwise functions of a layer's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spear_np import Activation

from ._jax_primitives import ELEMENTWISE, NAMES, RESHAPES
from .probing import identify
from .wiring import NONE

Array = Any
Probe = Any
"""(len(PROBES),) values of an elementwise function at `PROBES`."""


@dataclass(frozen=True, eq=False)
class Constant:
    """What does not depend on the numbers that flow through the network: parameters, inputs, random numbers."""

    number: Array = None
    """The one number that it consists of; None for several, or if it is not known."""
    parameter: str | None = None
    axes: tuple[int | None, ...] | None = None
    """Which axes of the parameter its axes are, None for new ones; None for all if that is lost."""
    computed: bool = False
    """Whether parameters, and nothing else of any size, went into it."""
    random: bool = False

    @property
    def of_parameters(self) -> bool:
        """Whether it is one, or made of some."""
        return self.parameter is not None or self.computed

    def lies_along(self, axis: int | None) -> bool:
        """Whether the first axis of the parameter is the axis of that number."""
        return axis is not None and dict(enumerate(self.axes or ())).get(axis) == 0


@dataclass(frozen=True, eq=False)
class Traced:
    """An elementwise function of the output of a step."""

    step: int
    axis: int | None
    """That of the features; None if it is lost."""
    probe: Probe
    history: tuple[Probe, ...] = ()
    """What it was before each of the last operations with constants."""
    said: str = ""
    """What the function calls itself; empty for the output of the step itself."""
    rounding: float = 0.0
    """Of its constants, relative, where they are narrower than float32."""


Value = Constant | Traced


def applied(value: Traced) -> tuple[Activation | None, bool]:
    """Return which activation the value is of its step's output, and whether more was done to that; None if none."""
    for number, probe in enumerate((value.probe, *reversed(value.history))):
        found = identify(np.asarray(probe, dtype=np.float64), value.rounding)
        if found is not None and (found != NONE or not number):
            return found, number > 0
    return None, False


def combined(equation: Any, values: Sequence[Value]) -> Constant:
    """Return what an operation makes of constants, as far as it matters."""
    name = equation.primitive.name
    constants = [value for value in values if isinstance(value, Constant)]
    random = name.startswith(("random_", "threefry", "rng_")) or any(value.random for value in constants)
    first = constants[0] if constants else Constant()
    if name == "convert_element_type" and jnp.issubdtype(equation.params["new_dtype"], jnp.floating):
        number = first.number
        return first if number is None else replace(first, number=number.astype(equation.params["new_dtype"]))
    if name in RESHAPES | {"transpose", "broadcast_in_dim"}:
        return replace(first, axes=_axes(first.axes, equation))
    if name in ELEMENTWISE and all(value.number is not None for value in constants) and not random:
        numbers = [jnp.asarray(value.number) for value in constants]
        common = jnp.result_type(*numbers)
        try:
            return Constant(equation.primitive.bind(*(n.astype(common) for n in numbers), **equation.params))
        except (TypeError, ValueError):
            return Constant()
    return Constant(random=random, computed=any(value.of_parameters for value in constants))


def _axes(axes: tuple[int | None, ...] | None, equation: Any) -> tuple[int | None, ...] | None:
    """Return which axes of a parameter lie where after a change of shape; None if that is lost."""
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    if axes is None:
        return None
    if equation.primitive.name == "transpose":
        return tuple(axes[at] for at in equation.params["permutation"])
    if equation.primitive.name == "broadcast_in_dim":
        kept = dict(zip(equation.params["broadcast_dimensions"], axes, strict=True))
    else:
        long = [[at for at, size in enumerate(shape) if size != 1] for shape in (before, after)]
        if [before[at] for at in long[0]] != [after[at] for at in long[1]]:
            return None
        kept = {new: axes[old] for old, new in zip(*long, strict=True)}
    return tuple(kept.get(at) for at in range(len(after)))


def meet(values: Sequence[Value]) -> bool:
    """Whether parameters and other data of any size come together."""
    constants = [value for value in values if isinstance(value, Constant) and value.number is None]
    return len({value.of_parameters for value in constants}) > 1


def converted(value: Traced, equation: Any) -> Traced:
    """Return a value as another type; roundings to a narrower one are not the activation's."""
    before, after = equation.invars[0].aval.dtype, equation.params["new_dtype"]
    if jnp.issubdtype(before, jnp.floating) and jnp.issubdtype(after, jnp.floating):
        return value
    wide = jnp.float32 if jnp.issubdtype(after, jnp.floating) else after
    probe = jnp.asarray(value.probe).astype(wide)
    return replace(value, probe=probe, history=(*value.history, value.probe), said=equation.primitive.name)


def rounding_of(dtype: Any) -> float:
    """Relative rounding of a floating type narrower than float32; zero for any other."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < jnp.finfo(jnp.float32).bits
    return float(jnp.finfo(dtype).eps) / 2 if narrow else 0.0


def same_size(equation: Any) -> bool:
    return bool(equation.invars[0].aval.size == equation.outvars[0].aval.size)


def only_number(array: Any) -> Array:
    """Return the only number of an array; None if it has several, or is a key of random numbers."""
    dtype = getattr(array, "dtype", None)
    if np.size(array) != 1 or (dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended)):
        return None
    return jnp.reshape(jnp.asarray(array), ())


def name_of(equation: Any, values: Sequence[Value]) -> str:
    """Return what an operation is called in the field."""
    name: str = equation.primitive.name
    if any(isinstance(value, Constant) and value.random for value in values):
        return "dropout"
    if name in ("reduce_window_max", "reduce_window_sum"):
        spatial = sum(size > 1 for size in equation.params["window_dimensions"])
        return f"{NAMES[name]}{spatial}d"
    return NAMES.get(name, name)
