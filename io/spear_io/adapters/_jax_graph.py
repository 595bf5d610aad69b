"""How a JAX function uses parameters as layers: read off its trace, whichever library wrote it.

The function is traced, not run. A product with a matrix of parameters is a layer. Elementwise operations are evaluated
at `PROBES` in the place of the pre-activations, so that an activation is known by its values, however it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._jax_primitives import CALLS, ELEMENTWISE, INHERITS, RESHAPES, SEVERAL, UNCHANGED, module_of
from ._jax_values import (
    Constant,
    Traced,
    Value,
    applied,
    combined,
    converted,
    meet,
    name_of,
    only_number,
    rounding_of,
    same_size,
)
from ._layers import Parameters
from ._round import RecordingError
from .keras_operations import of_your_own, snake
from .probing import PROBES
from .wiring import NONE, Elementwise, Kept, Moved, Operation, Other, Output, Product, Step, Wiring, wire


@dataclass
class _Trace:
    layers: Mapping[str, Parameters]
    """By the name of the matrix."""
    biases: Mapping[str, str | None]
    """By the name of the layer."""
    steps: list[Step] = field(default_factory=list)
    biased: set[int] = field(default_factory=set)
    """The products to which their bias was added."""
    elsewhere: set[str] = field(default_factory=set)
    """Layers whose matrices are used in other ways, too."""
    inside: str | None = None
    """The module in which the operations are, if it is one that is named as such."""

    def add(self, operation: Operation, takes: Iterable[int], axis: int | None) -> Traced:
        self.steps.append(Step(operation, tuple(dict.fromkeys(takes))))
        return Traced(len(self.steps) - 1, axis, PROBES.astype(np.float32))

    def finish(self, ends: Sequence[Value]) -> None:
        """End with what the function hands out; a product without the bias of its layer is none of that layer."""
        self.add(Output(), self._takes(ends), None)
        for position, step in enumerate(self.steps):
            layer = step.operation.layer if isinstance(step.operation, Product) else None
            if layer is not None and self.biases[layer] is not None and position not in self.biased:
                self.steps[position] = replace(step, operation=Other("matmul"))

    def run(
        self, jaxpr: Any, values: Sequence[Value], constants: Sequence[Value], boundary: str | None
    ) -> list[Value]:
        """Follow the values through a function; return what it hands out."""
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))

        def read(variable: Any) -> Value:
            if isinstance(variable, jax.extend.core.Literal):
                return Constant(only_number(variable.val))
            return known[variable]

        outer = self.inside
        for equation in jaxpr.eqns:
            self.inside = outer or module_of(equation, boundary)
            results = self._apply(equation, [read(variable) for variable in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        self.inside = outer
        return [read(variable) for variable in jaxpr.outvars]

    def _apply(self, equation: Any, values: list[Value]) -> list[Value]:
        name = equation.primitive.name
        if name in CALLS:
            return self._call(equation, values)
        if name in UNCHANGED and len(values) == len(equation.outvars):
            return values
        traced = [value for value in values if isinstance(value, Traced)]
        product = self._product(equation, values)
        if product is not None:
            return [product]
        if name in SEVERAL:
            self._use_elsewhere(values)
        if not traced and not meet(values):
            return [combined(equation, values)] * len(equation.outvars)
        if self.inside is not None:
            return self._other(equation, values, snake(self.inside))
        if not traced:  # the network's input goes through something with parameters
            return self._other(equation, values, name_of(equation, values))
        if name == "convert_element_type":
            return [converted(traced[0], equation)]
        if name in RESHAPES or (name == "broadcast_in_dim" and same_size(equation)):
            return [self._reshape(equation, traced[0])]
        if name == "transpose":
            return [self._transpose(traced[0], equation.params["permutation"])]
        if name in ELEMENTWISE:
            result = self._bias(equation, values) or self._elementwise(equation, values)
            if result is not None:
                return [result]
        return self._other(equation, values, name_of(equation, values))

    def _call(self, equation: Any, values: list[Value]) -> list[Value]:
        """Follow values into a function, and remember its name for an activation that it may be."""
        name = equation.primitive.name
        inner = equation.params[CALLS[name]]
        jaxpr, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
        outer, boundary = self.inside, equation.params.get("name")
        if name in INHERITS and outer is None:
            self.inside, boundary = None, ""
        results = self.run(jaxpr, values, [Constant(only_number(c)) for c in constants], boundary)
        self.inside = outer
        called = equation.params.get("name") if name in ("jit", "pjit") else None
        return [
            replace(r, said=called) if called and isinstance(r, Traced) and r.said else r for r in results
        ]

    def _product(self, equation: Any, values: list[Value]) -> Traced | None:
        """Return the output of a layer if that is what the operation gives."""
        name = equation.primitive.name
        if name == "conv_general_dilated" and isinstance(values[1], Constant) and values[1].parameter:
            dimensions = equation.params["dimension_numbers"]
            spatial = len(dimensions.out_spec) - 2
            return self.add(Product(f"conv{spatial}d"), self._takes(values[:1]), dimensions.out_spec[1])
        if name != "dot_general":
            return None
        (contracted, batches) = equation.params["dimension_numbers"]
        for side in (1, 0):
            kernel, other = values[side], values[1 - side]
            if not isinstance(kernel, Constant) or kernel.axes not in ((0, 1), (1, 0)):
                continue
            layer = self.layers.get(kernel.parameter or "")
            if layer is None or any(batches) or len(contracted[0]) != 1:
                continue
            ((taken,), (summed,)) = contracted[1 - side], contracted[side]
            if kernel.axes[summed] != (0 if layer.transposed else 1):
                continue
            takes = self._takes([other])
            if isinstance(other, Constant) and other.random:
                takes = [self.add(Other("dropout"), (), None).step]
            if isinstance(other, Traced) and other.axis != taken:
                takes = [self.add(Moved("transpose"), takes, None).step]
            rank = len(equation.invars[1 - side].aval.shape)
            axis = 0 if side == 0 else rank - 1
            return self.add(Product("dense", layer.layer, linear=True), takes, axis)
        return None

    def _bias(self, equation: Any, values: list[Value]) -> Traced | None:
        """Return the output of a layer to which its bias is added."""
        for traced, added in (values, values[::-1]) if equation.primitive.name == "add" else ():
            if not isinstance(traced, Traced) or not isinstance(added, Constant) or added.parameter is None:
                continue
            if added.number is None and not added.lies_along(traced.axis):
                continue
            product = self.steps[traced.step].operation
            if not isinstance(product, Product) or traced.said or traced.step in self.biased:
                continue
            if product.layer is None or added.parameter == self.biases.get(product.layer):
                self.biased.add(traced.step)
                return traced
        return None

    def _use_elsewhere(self, values: Iterable[Value]) -> None:
        """Note that matrices of layers are used in another way, too: their gradients are not of one product."""
        for value in values:
            layer = self.layers.get(value.parameter or "") if isinstance(value, Constant) else None
            if layer is not None:
                self.elsewhere.add(layer.layer)
                use = self.add(Product("dense", layer.layer, linear=True), (), None)
                self.biased.add(use.step)
                self.add(Other("matmul"), [use.step], None)

    def _elementwise(self, equation: Any, values: list[Value]) -> Traced | None:
        """Return an elementwise function of the output of one step; None if it is more than that."""
        traced = [value for value in values if isinstance(value, Traced)]
        constants = [value for value in values if isinstance(value, Constant)]
        several = len({(value.step, value.axis) for value in traced}) > 1
        spread = any(
            variable.aval.shape != equation.outvars[0].aval.shape
            for variable, value in zip(equation.invars, values, strict=True)
            if isinstance(value, Traced)
        )
        if several or spread or any(value.number is None for value in constants):
            return None
        arrays = [
            v.probe if isinstance(v, Traced) else jnp.broadcast_to(v.number, PROBES.shape) for v in values
        ]
        wide = [
            a.astype(np.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a
            for a in map(jnp.asarray, arrays)
        ]
        try:
            probe = equation.primitive.bind(*wide, **equation.params)
        except (TypeError, ValueError):  # operands of several types
            return None
        alone = len(traced) == 1
        history = (*traced[0].history, traced[0].probe) if alone else ()
        rounding = max(rounding_of(equation.outvars[0].aval.dtype), *(value.rounding for value in traced))
        said = equation.primitive.name
        return replace(traced[0], probe=probe, history=history, said=said, rounding=rounding)

    def _transpose(self, value: Traced, order: Sequence[int]) -> Traced:
        if value.axis is None:
            return value
        axis, rows = order.index(value.axis), [at for at in order if at != value.axis]
        if rows == sorted(rows):
            return replace(value, axis=axis)
        return self.add(Moved("transpose"), self._takes([value]), axis)

    def _reshape(self, equation: Any, value: Traced) -> Traced:
        before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        axis = value.axis
        long = [[at for at, size in enumerate(shape) if size != 1] for shape in (before, after)]
        if [before[at] for at in long[0]] == [after[at] for at in long[1]]:
            same = dict(zip(*long, strict=True))
            return replace(
                value,
                axis=same.get(axis) if axis in same else len(after) - 1 if axis == len(before) - 1 else None,
            )
        # Rows of features stay rows of features if they lie last, and still do: the sizes of the layers tell.
        (step,) = self._takes([value])
        operation = Kept("reshape") if axis == len(before) - 1 else Moved("reshape")
        return self.add(operation, [step], len(after) - 1)

    def _other(self, equation: Any, values: list[Value], name: str) -> list[Value]:
        """Add anything else that happens to values."""
        random = any(isinstance(value, Constant) and value.random for value in values)
        takes = self._takes(values, scaled=random)
        axis = next((value.axis for value in values if isinstance(value, Traced)), None)
        result = self.add(Other(name), takes, axis)
        return [result] * len(equation.outvars)

    def _takes(self, values: Iterable[Value], *, scaled: bool = False) -> list[int]:
        """Return the steps whose outputs the values are; what was done to them since becomes steps of its own.

        `scaled`: what a dropout does before it drops is part of it.
        """
        taken = []
        for value in values:
            if isinstance(value, Constant):
                continue
            found, rest = applied(value)
            step = value.step
            if found is not None and found != NONE:
                step = self.add(Elementwise(found), [step], None).step
            elif found is None and not scaled:
                step = self.add(Elementwise(of_your_own(value.said)), [step], None).step
            if rest and not scaled:
                step = self.add(Other(value.said), [step], None).step
            taken.append(step)
        return taken


def wiring_of(
    forward: Callable[[Any], Any],
    params: Any,
    names: Sequence[str],
    layers: Sequence[Parameters],
    written: Iterable[str],
) -> dict[str, Wiring]:
    """Return how `forward` wires the layers that it uses, in the order in which it does.

    Parameters
    ----------
    forward : callable
        Of the parameters alone: the network's outputs, or its loss.
    params : pytree of arrays
        Its argument.
    names : sequence of str
        Of the leaves of `params`.
    layers : sequence of Parameters
        What these make.
    written : iterable of str
        The layers that the dump will hold.

    Raises
    ------
    RecordingError
        If `forward` cannot be traced.
    """
    try:
        traced = jax.make_jaxpr(forward)(params)
    except Exception as error:  # the function is not ours
        lines = str(error).splitlines() or [type(error).__name__]
        msg = f"`forward` cannot be traced as a function of the parameters alone ({lines[0]})"
        raise RecordingError(msg) from error
    leaves = jax.tree_util.tree_leaves(params)
    trace = _Trace({one.weight: one for one in layers}, {one.layer: one.bias for one in layers})
    arguments = [
        Constant(only_number(leaf), name, tuple(range(np.ndim(leaf))))
        for name, leaf in zip(names, leaves, strict=True)
    ]
    ends = trace.run(traced.jaxpr, arguments, [Constant(only_number(c)) for c in traced.consts], None)
    trace.finish(ends)
    shapes = {layer.layer: layer.shape for layer in layers}
    wired = wire(trace.steps, {name: shapes[name] for name in written})
    used = _used(trace.steps) | trace.elsewhere
    return {
        # Behind the last layers lies the loss: only an activation is told from it.
        name: wiring if name in used or wiring.activation.known else replace(wiring, activation=NONE)
        for name, wiring in wired.items()
    }


def _used(steps: Sequence[Step]) -> set[str]:
    """Return the layers on whose outputs other products depend."""
    leads = [False] * len(steps)
    for step in reversed(range(len(steps))):
        for taken in steps[step].takes:
            leads[taken] = leads[taken] or leads[step] or isinstance(steps[step].operation, Product)
    return {
        step.operation.layer
        for step, used in zip(steps, leads, strict=True)
        if used and isinstance(step.operation, Product) and step.operation.layer is not None
    }
