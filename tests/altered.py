"""Updates as clients send them: behind dropout, beside faint inputs, compressed, without what tells the scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tests.cases import INPUTS, Case, case_of
from tests.layers import layer_data_of
from tests.networks import Floats, LayerData

Generator = np.random.Generator


def with_output_grad(data: LayerData, output_grad: Floats) -> LayerData:
    """Return the layer with other gradients of its outputs (m, b), and what is shared of them, in its precision."""
    dtype, inputs = data.weight_grad.dtype, data.inputs.astype(np.float64)
    return replace(
        data,
        output_grad=output_grad.astype(dtype),
        weight_grad=(output_grad @ inputs).astype(dtype),
        bias_grad=output_grad.sum(axis=1).astype(dtype),
    )


def dropout(data: LayerData, rng: Generator) -> Case:
    """Units are dropped at a rate between one in 300 and 60 %, for each input by itself."""
    rate = 10.0 ** rng.uniform(-2.5, -0.22)
    kept = rng.random(data.output_grad.shape) >= rate
    return case_of(f"dropout {rate:.3f}", with_output_grad(data, data.output_grad * kept / (1 - rate)))


def faint(data: LayerData, rng: Generator) -> Case:
    """Some inputs are those that a network is sure of: their gradients are fainter by up to nine orders of magnitude."""
    size = 10.0 ** -(rng.uniform(0, 9, len(data.inputs)) * (rng.random(len(data.inputs)) < 0.5))
    return case_of("faint", with_output_grad(data, data.output_grad * size))


def quantised(data: LayerData, rng: Generator) -> Case:
    """Both gradients are rounded to evenly spaced levels."""
    bits = int(rng.integers(6, 15))

    def levels(values: Floats) -> Floats:
        step = float(np.max(np.abs(values))) / (2 ** (bits - 1) - 1) or 1.0
        return np.asarray(np.rint(values / step) * step)

    return _compressed(f"{bits} bits", data, levels)


def sparsified(data: LayerData, rng: Generator) -> Case:
    """The smallest entries of both gradients are set to zero."""
    share = 10.0 ** rng.uniform(-3, -0.7)

    def largest(values: Floats) -> Floats:
        return np.where(np.abs(values) >= np.quantile(np.abs(values), share), values, 0)

    return _compressed(f"all but {share:.3f}", data, largest)


def _compressed(name: str, data: LayerData, change: Callable[[Floats], Floats]) -> Case:
    """Return a case of what `change` makes of both gradients; its errors, which may be coherent, are the noise."""
    case = case_of(name, data)
    names = ("weight_grad", "bias_grad")
    changed = {key: change(case.arguments[key].astype(np.float64)).astype(np.float32) for key in names}
    error = np.sqrt(np.mean((changed["weight_grad"] - case.arguments["weight_grad"]) ** 2, axis=1))
    return replace(case, arguments=case.arguments | changed, noise=np.hypot(case.noise, error))


def without_scale(data: LayerData, rng: Generator) -> Case:
    """No bias_grad, but the range of the data, and at times neither W."""
    case = case_of("no bias_grad", data)
    missing: dict[str, Any] = {"bias_grad": None}
    if rng.random() < 0.3:
        missing |= {"weight": None, "bias": None}
    low, high = float(np.min(data.inputs)), float(np.max(data.inputs))
    return replace(case, arguments=case.arguments | missing | {"data_range": (low, high + (high == low))})


ALTERATIONS: dict[str, Callable[[LayerData, Generator], Case]] = {
    "dropout": dropout,
    "faint": faint,
    "quantised": quantised,
    "sparsified": sparsified,
    "without scale": without_scale,
}


def altered_case(seed: int) -> Case | None:
    """Return a small layer whose update was altered; None if its gradient is not finite, or shows no input."""
    rng = np.random.default_rng([seed, 4093])
    b, width = int(rng.integers(2, 9)), int(rng.integers(30, 161))
    kind = str(rng.choice(["digits", "gaussian", "uniform", "same class", "one pixel"]))
    dtype = np.float32 if rng.random() < 0.8 else np.float64
    data = layer_data_of(INPUTS[kind](b, rng), rng, width=width, depth=int(rng.integers(2, 4)), dtype=dtype)
    if not np.all(np.isfinite(data.weight_grad)):
        return None
    name = str(rng.choice(list(ALTERATIONS)))
    case = ALTERATIONS[name](data, rng)
    if not case.truth.groups:
        return None
    return replace(case, name=f"seed {seed}, {case.name}, {kind}, b={b} m={width} {np.dtype(dtype).name}")
