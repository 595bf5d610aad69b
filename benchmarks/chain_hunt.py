"""Chains of layers, most of them altered, in search of an answer that breaks its promise.

    python -m benchmarks.chain_hunt --first-seed 1 --count 1000 --save chain_hunt
    python -m benchmarks.chain_hunt --first-seed 17 --count 1 --families dropout

Every seed is one small network with a batch of its own, and one family of alterations drawn at random. Whatever was done to
the gradients, `exact` promises that no input is wrong or missing; whatever the status, no row is further from the truth than
its bound says. The exit status is 1 if an answer was wrongly called exact, or the solver crashed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional

import spear_np
from benchmarks import environment
from benchmarks.chain import judged
from benchmarks.networks import Network, Shared, draw
from benchmarks.problems import Array, Loss, loss_of
from spear_np import Activation, LayerGradients
from tests.networks import LayerData
from tests.promises import broken_promises, rounding_noise, truth_of

Generator = np.random.Generator
Row = dict[str, Any]

LIMIT = {False: 1.5, True: 0.5}
"""Seconds for one problem; for one that was tampered with."""
FIRST_LIMIT = 120
"""Widths from 40 to this."""
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "leaky_relu": {"negative_slope": (0.01, 0.5)},
    "prelu": {"slope": (0.05, 0.6)},
    "elu": {"alpha": (0.3, 2.0)},
    "celu": {"alpha": (0.3, 2.0)},
    "softplus": {"beta": (0.5, 3.0)},
    "hardtanh": {"low": (-1.5, -0.3), "high": (0.3, 1.5)},
}
"""Parameters of activations, and what they are drawn from."""
FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "prelu": lambda z, slope: torch.where(z > 0, z, slope * z),
    "elu": functional.elu,
    "celu": functional.celu,
    "selu": functional.selu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "silu": functional.silu,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardswish": functional.hardswish,
    "hardtanh": lambda z, low, high: functional.hardtanh(z, low, high),
    "none": lambda z: z,
}
"""PyTorch's activations, by the names of a dump."""
NAMES = tuple(name for name in FUNCTIONS if name != "none")
SOURCES: tuple[Any, ...] = ("fashion-mnist", "digits", "table", "gaussian", "faces")


@dataclass
class Plan:
    """What a problem is made of before it is altered."""

    source: Any
    b: int
    widths: list[int]
    """Of the hidden layers."""
    activations: list[Activation]
    dtype: torch.dtype
    seed: int
    gains: list[float] = field(default_factory=list)
    """Factors of the weights and biases of all layers."""
    bias_gain: float = 1.0
    steps: int = 0
    """Of training."""
    classes: int | None = None
    loss: Loss = "cross-entropy"
    normalised: bool = True
    rows: Callable[[Array, Generator], Array] | None = None
    """What is done to the batch."""
    model: Callable[[Model, Generator], None] | None = None
    """What is done to the model."""
    between: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    """Number of a hidden layer, its activated output, its input -> input of the next."""


@dataclass
class Model:
    """A perceptron."""

    weights: list[torch.Tensor]
    biases: list[torch.Tensor]
    activations: list[Activation]
    """Of the hidden layers."""

    def copy(self) -> Model:
        return Model([w.clone() for w in self.weights], [b.clone() for b in self.biases], self.activations)

    def follow(self, gradients: Gradients, rate: float) -> None:
        """One step of gradient descent."""
        for weight, bias, (w, b) in zip(self.weights, self.biases, gradients.arrays, strict=True):
            weight -= rate * w
            bias -= rate * b


@dataclass
class Gradients:
    """What one backward pass leaves."""

    arrays: list[tuple[torch.Tensor, torch.Tensor]]
    """weight_grad and bias_grad of every layer."""
    output_grad: torch.Tensor
    """(m, b) of the first layer."""


@dataclass
class Made:
    """A problem with its answer."""

    plan: Plan
    model: Model
    """That whose gradients are shared; `shared` is what the solver is told of it."""
    shared: Model
    inputs: Array
    labels: Array
    gradients: Gradients
    others: tuple[torch.Tensor, Array]
    """Inputs and labels of another batch."""
    precision: str | None = None
    batch_size: int | None = None
    unit: float = 0.0
    """Rounding of the gradients."""
    told: list[Activation] = field(default_factory=list)
    """Activations of the hidden layers as the solver is told."""

    @property
    def arrays(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return self.gradients.arrays

    def change(
        self, layer: int, weight_grad: torch.Tensor | None = None, bias_grad: torch.Tensor | None = None
    ) -> None:
        old = self.arrays[layer]
        self.arrays[layer] = (
            old[0] if weight_grad is None else weight_grad,
            old[1] if bias_grad is None else bias_grad,
        )

    def layers(self) -> list[LayerGradients]:
        activations = [*self.told, Activation("none")]
        return [
            LayerGradients(
                w.numpy().copy(),
                b.numpy().copy(),
                self.shared.weights[number].numpy().copy(),
                self.shared.biases[number].numpy().copy(),
                activations[number],
                precision=self.precision,
            )
            for number, (w, b) in enumerate(self.arrays)
        ]

    def numbers(self, rng: Generator, *, some: bool = True) -> list[int]:
        """One layer, or a few."""
        count = len(self.arrays)
        share = int(rng.integers(1, count + 1)) if some and rng.random() < 0.5 else 1
        # The first two decide most.
        return [
            int(k) for k in np.argsort(rng.random(count) * np.where(np.arange(count) < 2, 0.5, 1.0))[:share]
        ]


def draw_activation(rng: Generator, width: int, name: str | None = None) -> Activation:
    name = name or str(rng.choice(NAMES))
    parameters: dict[str, Any] = {
        key: float(rng.uniform(*limits)) for key, limits in RANGES.get(name, {}).items()
    }
    if name == "prelu" and rng.random() < 0.5:
        parameters["slope"] = rng.uniform(*RANGES["prelu"]["slope"], width)
    if name in RANGES and name not in ("prelu", "hardtanh") and rng.random() < 0.5:
        parameters = {}
    return Activation(name, parameters)


def apply(activation: Activation, z: torch.Tensor) -> torch.Tensor:
    parameters = {
        key: torch.as_tensor(value, dtype=z.dtype) if isinstance(value, np.ndarray) else value
        for key, value in activation.parameters.items()
    }
    return FUNCTIONS[activation.name](z, **parameters)


def draw_plan(rng: Generator, seed: int) -> Plan:
    hidden = int(rng.choice([1, 2, 3, 4, 5], p=[0.15, 0.3, 0.25, 0.15, 0.15]))
    widths = [int(w) for w in rng.integers(40, FIRST_LIMIT + 1, hidden)]
    if rng.random() < 0.3:
        widths = [widths[0]] * hidden
    most = 0.4 * min(widths) if hidden > 1 else 9
    b = 1 if rng.random() < 0.05 else int(3 + (most - 3) * rng.random() ** 1.5)
    source = SOURCES[int(rng.choice(len(SOURCES)))]
    if rng.random() < 0.5:
        activations = [draw_activation(rng, widths[0])] * hidden
        if isinstance(activations[0].parameters.get("slope"), np.ndarray):
            activations = [draw_activation(rng, width, "prelu") for width in widths]
    else:
        activations = [draw_activation(rng, width) for width in widths]
    return Plan(
        source=source,
        b=b,
        widths=widths,
        activations=activations,
        dtype=torch.float64 if rng.random() < 0.15 else torch.float32,
        seed=seed,
        gains=[float(rng.choice([1.0, 1.0, 1.0, 1.7, 0.6]))] * (hidden + 1),
        normalised=bool(rng.random() < 0.8),
        classes=2 if rng.random() < 0.05 else None,
    )


def draw_model(plan: Plan, n: int, classes: int, rng: Generator) -> Model:
    sizes = [n, *plan.widths, classes]
    weights, biases = [], []
    for (i, o), gain in zip(pairwise(sizes), plan.gains, strict=True):
        bound = gain / np.sqrt(i)
        weights.append(torch.as_tensor(rng.uniform(-bound, bound, (o, i)), dtype=plan.dtype))
        biases.append(torch.as_tensor(plan.bias_gain * rng.uniform(-bound, bound, o), dtype=plan.dtype))
    return Model(weights, biases, plan.activations)


def backward(model: Model, x: torch.Tensor, labels: Array, plan: Plan) -> Gradients:
    parameters = [w.clone().requires_grad_() for w in model.weights]
    biases = [b.clone().requires_grad_() for b in model.biases]
    a, first = x, None
    for number, (weight, bias) in enumerate(zip(parameters, biases, strict=True)):
        z = functional.linear(a, weight, bias)
        if number == 0:
            first = z
            first.retain_grad()
        if number < len(model.activations):
            out = apply(model.activations[number], z)
            a = out if plan.between is None else plan.between(number, out, a)
        else:
            a = z
    loss_of(a, labels, plan.loss).backward()
    assert first is not None
    return Gradients(
        [(w.grad.clone(), b.grad.clone()) for w, b in zip(parameters, biases, strict=True)],
        first.grad.T.clone(),
    )


def make(plan: Plan, rng: Generator) -> Made:
    images, rest = draw(Network(source=plan.source, normalised=plan.normalised), plan.b, plan.seed, 512)
    classes = plan.classes or images.classes
    rows = images.inputs if plan.rows is None else plan.rows(images.inputs, rng)
    x = torch.as_tensor(rows, dtype=plan.dtype)
    labels = images.labels % classes
    others = torch.as_tensor(rest.inputs, dtype=plan.dtype), rest.labels % classes
    model = draw_model(plan, x.shape[1], classes, rng)
    if plan.model is not None:
        plan.model(model, rng)
    for step in range(plan.steps):
        chosen = np.arange(step * 64, (step + 1) * 64) % len(others[1])
        model.follow(backward(model, others[0][chosen], others[1][chosen], plan), 0.1)
    gradients = backward(model, x, labels, plan)
    return Made(
        plan,
        model,
        model.copy(),
        x.double().numpy(),
        labels,
        gradients,
        others,
        told=list(plan.activations),
        unit=torch.finfo(plan.dtype).eps,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Families: what is done to the plan, and what to the problem that was made of it.


def nothing(made: Made, rng: Generator) -> None:
    pass


def wrong_activation(made: Made, rng: Generator, *, everywhere: bool) -> None:
    hidden = len(made.told)
    which = range(hidden) if everywhere else [int(rng.integers(hidden))]
    name = str(rng.choice(NAMES))
    for number in which:
        right = made.told[number]
        other = draw_activation(rng, made.plan.widths[number], None if not everywhere else name)
        if other == right:
            other = Activation("tanh" if right.name != "tanh" else "gelu")
        made.told[number] = other


def wrong_parameter(made: Made, rng: Generator) -> None:
    factor = float(rng.choice([0.9, 1.1, 0.99, 1.01]))
    for number, right in enumerate(made.told):
        made.told[number] = Activation(right.name, {k: v * factor for k, v in right.parameters.items()})


def parametric(plan: Plan, rng: Generator) -> None:
    name = str(rng.choice(list(RANGES)))
    plan.activations = [draw_activation(rng, width, name) for width in plan.widths]


def other_model(made: Made, rng: Generator) -> None:
    """Weights or gradients of some layers are those of another model."""
    other = draw_model(made.plan, made.inputs.shape[1], made.model.weights[-1].shape[0], rng)
    for number in made.numbers(rng):
        if rng.random() < 0.5:
            made.shared.weights[number], made.shared.biases[number] = (
                other.weights[number],
                other.biases[number],
            )
        else:
            found = backward(other, _x(made), made.labels, made.plan)
            made.arrays[number] = found.arrays[number]


def other_step(made: Made, rng: Generator) -> None:
    """Gradients of some layers are those of the next step, on the same batch or on another."""
    model, x, labels = made.model.copy(), _x(made), made.labels
    model.follow(made.gradients, float(rng.choice([0.001, 0.01, 0.1, 1.0])))
    if rng.random() < 0.5:
        x, labels = made.others[0][: made.plan.b], made.others[1][: made.plan.b]
    found = backward(model, x, labels, made.plan)
    for number in made.numbers(rng):
        if len(made.arrays) > 1 and number != 0:
            made.arrays[number] = found.arrays[number]
        else:  # all but the first
            made.gradients.arrays[1:] = found.arrays[1:]


def _x(made: Made) -> torch.Tensor:
    return torch.as_tensor(made.inputs, dtype=made.plan.dtype)


def _order(size: int, rng: Generator) -> Array:
    """A permutation of all of it, or of two."""
    order = np.arange(size)
    if rng.random() < 0.5:
        return rng.permutation(size)
    i, k = rng.choice(size, 2, replace=False)
    order[[i, k]] = k, i
    return order


def permuted_gradient(made: Made, rng: Generator) -> None:
    for number in made.numbers(rng):
        w, b = made.arrays[number]
        if rng.random() < 0.5:
            order = _order(len(b), rng)
            made.change(number, w[order], b[order] if rng.random() < 0.7 else b)
        else:
            made.change(number, w[:, _order(w.shape[1], rng)])


def permuted_weight(made: Made, rng: Generator) -> None:
    for number in made.numbers(rng):
        w, b = made.shared.weights[number], made.shared.biases[number]
        if rng.random() < 0.5:
            order = _order(len(b), rng)
            made.shared.weights[number] = w[order]
            if rng.random() < 0.7:
                made.shared.biases[number] = b[order]
        else:
            made.shared.weights[number] = w[:, _order(w.shape[1], rng)]


def dropout(plan: Plan, rng: Generator) -> None:
    p, number = float(rng.choice([0.01, 0.1, 0.5])), int(rng.integers(len(plan.widths)))
    everywhere, batch_wide = rng.random() < 0.5, rng.random() < 0.2
    masks: dict[int, torch.Tensor] = {}

    def between(layer: int, a: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        if layer != number and not everywhere:
            return a
        if layer not in masks or masks[layer].shape[1] != a.shape[1]:
            shape = (1 if batch_wide else plan.b, a.shape[1])
            masks[layer] = torch.as_tensor((rng.random(shape) >= p) / (1 - p), dtype=a.dtype)
        return a * masks[layer] if len(a) == plan.b or batch_wide else a

    plan.between = between


def normalisation(plan: Plan, rng: Generator) -> None:
    number, kind = int(rng.integers(len(plan.widths))), str(rng.choice(["layer", "batch", "mean", "scale"]))
    scale = float(rng.choice([0.9, 0.99, 1.01, 1.1, 2.0]))

    def between(layer: int, a: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        if layer != number:
            return a
        if kind == "layer":
            return functional.layer_norm(a, a.shape[1:])
        if kind == "scale":
            return scale * a
        if kind == "mean":
            return a - a.mean(0)
        return (a - a.mean(0)) / (a.var(0, unbiased=False) + 1e-5).sqrt()

    plan.between = between


def residual(plan: Plan, rng: Generator) -> None:
    plan.widths = [plan.widths[0]] * max(2, len(plan.widths))
    plan.activations = [draw_activation(rng, plan.widths[0]) for _ in plan.widths]
    plan.gains = [1.0] * (len(plan.widths) + 1)
    plan.b = min(plan.b, int(0.4 * plan.widths[0]))

    def between(layer: int, a: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return a + before if layer > 0 else a

    plan.between = between


def trained(plan: Plan, rng: Generator) -> None:
    plan.steps = int(rng.choice([100, 300, 800]))
    plan.dtype = torch.float32


def duplicates(plan: Plan, rng: Generator) -> None:
    apart = float(rng.choice([0.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5]))
    plan.b = max(plan.b, 3)

    def rows(x: Array, rng: Generator) -> Array:
        x = x.copy()
        for _ in range(int(rng.integers(1, 4))):
            i, k = rng.choice(len(x), 2, replace=False)
            x[i] = x[k] + apart * np.ptp(x) * rng.uniform(-1, 1, x.shape[1])
        return x

    plan.rows = rows


def dependent(plan: Plan, rng: Generator) -> None:
    plan.b = max(plan.b, 4)
    blend, kind = float(rng.uniform(0.1, 0.9)), int(rng.integers(4))

    def rows(x: Array, rng: Generator) -> Array:
        x = x.copy()
        i, j, k, l = rng.choice(len(x), 4, replace=False)
        if kind == 0:
            x[i] = blend * x[j] + (1 - blend) * x[k]
        elif kind == 1:
            x[i] = blend * x[j]
        elif kind == 2:
            x[i] = x[j] + x[k] - x[l]
        else:
            x[i] = 0
        return x

    plan.rows = rows


def other_batch_size(made: Made, rng: Generator) -> None:
    made.batch_size = max(1, made.plan.b + int(rng.choice([-2, -1, 1, 2])))


def near_linear(plan: Plan, rng: Generator) -> None:
    plan.gains = [float(rng.choice([0.01, 0.03, 0.1, 1.0])) for _ in plan.gains]
    plan.gains[int(rng.integers(max(1, len(plan.gains) - 1)))] = float(rng.choice([0.01, 0.03, 0.1]))
    if rng.random() < 0.4:
        name = str(rng.choice(["tanh", "sigmoid", "softplus", "silu", "hardtanh"]))
        plan.activations = [draw_activation(rng, width, name) for width in plan.widths]


def saturated(plan: Plan, rng: Generator) -> None:
    plan.gains = [float(rng.choice([1.0, 3.0, 10.0, 30.0])) for _ in plan.gains]
    plan.gains[0] = float(rng.choice([10.0, 30.0]))


def linear_layer(plan: Plan, rng: Generator) -> None:
    plan.activations = list(plan.activations)
    plan.activations[int(rng.integers(len(plan.widths)))] = Activation("none")


def quantised(made: Made, rng: Generator) -> None:
    kind = str(rng.choice(["float16", "bfloat16", "8 bit"]))
    which = range(len(made.arrays)) if rng.random() < 0.6 else made.numbers(rng)
    for number in which:
        w, b = made.arrays[number]
        if kind == "8 bit":
            made.change(number, *(_levels(v, 127) for v in (w, b)))
        else:
            dtype = getattr(torch, kind)
            made.change(number, w.to(dtype).to(w.dtype), b.to(dtype).to(b.dtype))
    if kind == "8 bit":
        made.unit = 1 / 127
        return
    made.unit = torch.finfo(getattr(torch, kind)).eps
    if rng.random() < 0.3 and which == range(len(made.arrays)):
        made.precision = kind


def _levels(values: torch.Tensor, levels: int) -> torch.Tensor:
    step = values.abs().max() / levels
    return torch.round(values / step) * step if step > 0 else values


def sparsified(made: Made, rng: Generator) -> None:
    share = float(rng.choice([0.01, 0.1, 0.5, 0.9]))
    for number in made.numbers(rng):
        w, _ = made.arrays[number]
        cut = torch.quantile(w.abs().double().reshape(-1)[: 10**6], 1 - share)
        made.change(number, torch.where(w.abs() >= cut, w, 0.0))
    made.unit = 1.0


def clipped(made: Made, rng: Generator) -> None:
    """Norms of layers clipped one by one: nothing of the inputs changes."""
    for number in range(len(made.arrays)):
        factor = float(10 ** rng.uniform(-3, 3))
        w, b = made.arrays[number]
        made.change(number, w * factor, b * factor)


def noise(made: Made, rng: Generator) -> None:
    level = float(10 ** rng.uniform(-5, -2))
    chosen = made.numbers(rng)
    for number in chosen:
        w, b = (
            v + level * v.double().square().mean().sqrt() * torch.as_tensor(rng.standard_normal(v.shape))
            for v in made.arrays[number]
        )
        made.change(number, w.to(made.plan.dtype), b.to(made.plan.dtype))
    made.unit = level


def bias_gradient(made: Made, rng: Generator) -> None:
    """bias_grad of some layers scaled, or of the step before."""
    model = made.model.copy()
    model.follow(made.gradients, float(rng.choice([0.001, 0.01, 0.1])))
    stale = backward(model, _x(made), made.labels, made.plan)
    factor = float(rng.choice([0.5, 0.9, 0.99, 0.999, 1.001, 1.1, 2.0, -1.0]))
    scale = rng.random() < 0.6
    for number in made.numbers(rng):
        w, b = made.arrays[number]
        made.change(number, w, factor * b if scale else stale.arrays[number][1])


def all_bias_gradients(made: Made, rng: Generator) -> None:
    """Another learning rate for biases."""
    factor = float(rng.choice([0.5, 2.0, 1.01, 10.0]))
    for number, (w, b) in enumerate(made.arrays):
        made.change(number, w, factor * b)


def stale_weights(made: Made, rng: Generator) -> None:
    if rng.random() < 0.4:
        kind = getattr(torch, str(rng.choice(["float16", "bfloat16"])))
        for number in made.numbers(rng):
            w, b = made.shared.weights[number], made.shared.biases[number]
            made.shared.weights[number] = w.to(kind).to(w.dtype)
            made.shared.biases[number] = b.to(kind).to(b.dtype)
        return
    model = made.model.copy()
    model.follow(made.gradients, float(rng.choice([1e-4, 1e-3, 0.01, 0.1])))
    for number in range(len(made.arrays)) if rng.random() < 0.6 else made.numbers(rng):
        made.shared.weights[number], made.shared.biases[number] = model.weights[number], model.biases[number]


def weight_decay(made: Made, rng: Generator) -> None:
    decay = float(10 ** rng.uniform(-6, -2))
    for number in range(len(made.arrays)) if rng.random() < 0.5 else made.numbers(rng):
        w, b = made.arrays[number]
        biases = rng.random() < 0.5
        made.change(
            number,
            w + decay * made.model.weights[number],
            b + decay * made.model.biases[number] if biases else b,
        )


def features(made: Made, rng: Generator) -> None:
    """Columns of the first weight_grad scaled, swapped, centred, dropped."""
    w, _ = made.arrays[0]
    kind = int(rng.integers(6))
    n = w.shape[1]
    if kind == 0:
        w = w * torch.as_tensor(rng.uniform(0.5, 2.0, n), dtype=w.dtype)
    elif kind == 1:
        w = w[:, _order(n, rng)]
    elif kind == 2:
        w = w - w.mean(1, keepdim=True)
    elif kind == 3:
        w = w - w.mean(0, keepdim=True)
    elif kind == 4:
        w = w * float(rng.choice([0.5, 0.99, 1.01, 2.0]))
    else:
        w = w.clone()
        w[:, rng.choice(n, max(1, int(rng.choice([0.01, 0.3]) * n)), replace=False)] = 0
    made.change(0, w)


def pruned_features(plan: Plan, rng: Generator) -> None:
    def model(model: Model, rng: Generator) -> None:
        n = model.weights[0].shape[1]
        model.weights[0][:, rng.choice(n, max(1, int(0.2 * n)), replace=False)] = 0

    plan.model = model


def blind_features(made: Made, rng: Generator) -> None:
    """The gradient of features that no unit looks at is scaled: only the features themselves know."""
    w, _ = made.arrays[0]
    blind = made.model.weights[0].abs().sum(0) == 0
    made.change(0, torch.where(blind, float(rng.choice([0.0, 0.5, 2.0])) * w, w))


def local_steps(made: Made, rng: Generator) -> None:
    model, steps = made.model.copy(), int(rng.integers(2, 6))
    rate = float(rng.choice([1e-4, 1e-3, 1e-2, 1e-1]))
    total = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in made.arrays]
    moving = rng.random() < 0.3
    for step in range(steps):
        x, labels = _x(made), made.labels
        if moving and step:
            keep = slice(step % len(labels), None)
            x, labels = x[keep], labels[keep]
        found = backward(model, x, labels, replace(made.plan))
        total = [(w + v, b + c) for (w, b), (v, c) in zip(total, found.arrays, strict=True)]
        model.follow(found, rate)
    made.gradients = Gradients(total, made.gradients.output_grad)


def momentum(made: Made, rng: Generator) -> None:
    """Mixed with the gradient of the step before, on the same batch or on another, whose inputs are then in it too."""
    share = float(rng.choice([1e-4, 1e-2, 0.5, 0.9]))
    count = int(rng.integers(1, made.plan.b + 1))
    model = made.model.copy()
    model.follow(made.gradients, float(rng.choice([-1e-3, -0.01, -0.1])))
    x, labels = _x(made), made.labels
    another = rng.random() < 0.5
    if another:
        x, labels = made.others[0][:count], made.others[1][:count]
    found = backward(model, x, labels, made.plan)
    columns = made.gradients.output_grad
    if another:
        made.inputs = np.concatenate([made.inputs, x.double().numpy()])
        made.labels = np.concatenate([made.labels, labels])
        columns = torch.cat([columns, share * found.output_grad], dim=1)
    made.gradients = Gradients(
        [(w + share * v, b + share * c) for (w, b), (v, c) in zip(made.arrays, found.arrays, strict=True)],
        columns,
    )


def sign_flips(made: Made, rng: Generator) -> None:
    for number in made.numbers(rng):
        w, b = made.arrays[number]
        kind = int(rng.integers(4))
        if kind == 0:
            made.change(number, -w, -b)
        elif kind == 1:
            made.change(number, -w, b)
        else:
            unit = int(rng.integers(len(b)))
            w, b = w.clone(), b.clone()
            w[unit] *= -1
            if kind == 2:
                b[unit] *= -1
            made.change(number, w, b)


def not_a_number(made: Made, rng: Generator) -> None:
    number = int(rng.integers(len(made.arrays)))
    value = float(rng.choice([np.nan, np.inf, -np.inf]))
    which = int(rng.integers(4))
    if which < 2:
        arrays = [v.clone() for v in made.arrays[number]]
        arrays[which].reshape(-1)[int(rng.integers(arrays[which].numel()))] = value
        made.change(number, *arrays)
    else:
        array = (made.shared.weights, made.shared.biases)[which - 2][number]
        array.reshape(-1)[int(rng.integers(array.numel()))] = value


def huge(plan: Plan, rng: Generator) -> None:
    plan.gains = list(plan.gains)
    plan.gains[int(rng.integers(len(plan.gains)))] = float(10 ** rng.uniform(2, 6))
    plan.activations = [
        draw_activation(
            rng, width, str(rng.choice(["relu", "leaky_relu", "gelu", "softplus", "elu", "mish"]))
        )
        for width in plan.widths
    ]


def zero_biases(plan: Plan, rng: Generator) -> None:
    plan.bias_gain = 0.0


def zero_biases_straight(plan: Plan, rng: Generator) -> None:
    plan.bias_gain = 0.0
    plan.activations = [
        draw_activation(rng, width, str(rng.choice(["relu", "leaky_relu", "prelu"]))) for width in plan.widths
    ]


def dead_units(plan: Plan, rng: Generator) -> None:
    number, share = int(rng.integers(len(plan.widths))), float(rng.choice([0.1, 0.5, 0.8]))

    def model(model: Model, rng: Generator) -> None:
        m = len(model.biases[number])
        dead = rng.choice(m, int(share * m), replace=False)
        model.weights[number][dead] = 0
        model.biases[number][dead] = -1.0

    plan.model = model
    if rng.random() < 0.5:
        plan.activations = [draw_activation(rng, width, "relu") for width in plan.widths]


def twin_units(plan: Plan, rng: Generator) -> None:
    number = int(rng.integers(len(plan.widths)))

    def model(model: Model, rng: Generator) -> None:
        m = len(model.biases[number])
        first, second = rng.permutation(m)[: 2 * (m // 2)].reshape(2, -1)
        model.weights[number][first] = model.weights[number][second]
        model.biases[number][first] = model.biases[number][second]

    plan.model = model


def narrow_second(plan: Plan, rng: Generator) -> None:
    plan.b = max(3, min(plan.b, 30))
    hidden = max(2, len(plan.widths))
    plan.widths = [plan.widths[0], plan.b + int(rng.integers(0, 3)), *plan.widths[2:]]
    plan.activations = [draw_activation(rng, width) for width in plan.widths]
    plan.gains = [plan.gains[0]] * (hidden + 1)


def two_classes(plan: Plan, rng: Generator) -> None:
    plan.classes = 2


def squared_error(plan: Plan, rng: Generator) -> None:
    plan.loss = "squared-error"


def unchanged(plan: Plan, rng: Generator) -> None:
    pass


@dataclass(frozen=True)
class Family:
    """One kind of problem."""

    tampered: bool
    """Whether the solver is told something that is not so."""
    plan: Callable[[Plan, Generator], None] = unchanged
    alter: Callable[[Made, Generator], None] = nothing
    undetectable: str = ""
    """Why the alteration cannot be seen: the problem is another one's, to the last digit."""


FAMILIES: dict[str, Family] = {
    "unaltered": Family(False),
    "trained": Family(False, trained),
    "duplicates": Family(False, duplicates),
    "dependent inputs": Family(False, dependent),
    "near-linear": Family(False, near_linear),
    "saturated": Family(False, saturated),
    "a linear layer": Family(False, linear_layer),
    "zero biases": Family(False, zero_biases),
    "dead units": Family(False, dead_units),
    "twin units": Family(False, twin_units),
    "narrow second layer": Family(False, narrow_second),
    "two classes": Family(False, two_classes),
    "squared error": Family(False, squared_error),
    "huge pre-activations": Family(False, huge),
    "clipped by layer": Family(False, alter=clipped),
    "quantised": Family(True, alter=quantised),
    "noise on some layers": Family(True, alter=noise),
    "sparsified": Family(True, alter=sparsified),
    "wrong activation": Family(True, alter=lambda m, r: wrong_activation(m, r, everywhere=False)),
    "wrong activations": Family(True, alter=lambda m, r: wrong_activation(m, r, everywhere=True)),
    "wrong parameter": Family(True, parametric, wrong_parameter),
    "another model": Family(True, alter=other_model),
    "another step": Family(True, alter=other_step),
    "permuted gradient": Family(True, alter=permuted_gradient),
    "permuted weight": Family(True, alter=permuted_weight),
    "dropout": Family(True, dropout),
    "normalisation": Family(True, normalisation),
    "residual sum": Family(True, residual),
    "other batch size": Family(True, alter=other_batch_size),
    "bias gradient": Family(True, alter=bias_gradient),
    "all bias gradients": Family(True, alter=all_bias_gradients),
    "all bias gradients, zero biases": Family(
        True,
        zero_biases_straight,
        all_bias_gradients,
        "a batch of another scale, if the loss is not cross-entropy",
    ),
    "stale weights": Family(True, alter=stale_weights),
    "weight decay": Family(True, alter=weight_decay),
    "features": Family(True, alter=features),
    "blind features": Family(True, pruned_features, blind_features),
    "local steps": Family(True, alter=local_steps),
    "momentum": Family(True, alter=momentum),
    "sign flips": Family(True, alter=sign_flips),
    "not a number": Family(True, alter=not_a_number),
}


def one_hidden_layer(plan: Plan, rng: Generator) -> None:
    """A ReLU layer, and the output layer shows fewer inputs than there are."""
    width = int(rng.integers(60, FIRST_LIMIT + 60))
    plan.widths, plan.activations, plan.gains = [width], [Activation("relu")], plan.gains[:1] * 2
    plan.b = int(rng.integers(12, max(13, int(0.45 * width))))


def problem(seed: int, families: Sequence[str], *, one_hidden: bool = False) -> tuple[str, Made]:
    """The problem of a seed."""
    rng = np.random.default_rng([seed, 4711])
    name = str(rng.choice(list(families)))
    family = FAMILIES[name]
    plan = draw_plan(rng, seed)
    if one_hidden:
        one_hidden_layer(plan, rng)
    family.plan(plan, rng)
    made = make(plan, rng)
    family.alter(made, rng)
    return name, made


def solve(made: Made, limit: float, method: str = "chain") -> spear_np.Inversion:
    """Invert it, by the chain alone if nothing else is said."""
    loss = "cross_entropy" if made.plan.loss == "cross-entropy" else "squared_error"
    return spear_np.invert_chain(
        made.layers(), method=method, loss=loss, time_limit=limit, batch_size=made.batch_size
    )


def covered_features(made: Made, result: spear_np.Inversion) -> Array:
    """(n,) bool: the features that the certificate says something of."""
    weighted: Array = made.shared.weights[0].abs().sum(0).numpy() > 0
    disclaimed = any(check.name == "features_weighted" for check in result.certificate.checks)
    return weighted if disclaimed else np.ones_like(weighted)


def promises(made: Made, result: spear_np.Inversion) -> tuple[str, str, str]:
    """What the answer claims and the truth denies: a false `exact`, and broken bounds; empty if nothing. And what is forgiven.

    The quick judge is strict; what it condemns is held against what the gradient can tell apart at all.
    """
    columns = made.gradients.output_grad.double().numpy()
    covered = covered_features(made, result)
    inputs = made.inputs[:, covered]
    first = replace(
        result.gradients, **{n: getattr(result.gradients, n)[:, covered] for n in ("weight", "weight_grad")}
    )
    result = replace(result, gradients=first)
    shared = Shared((first, *made.layers()[1:]), (inputs,), (columns,), made.labels)
    outcome = judged(shared, result, 0.0)
    if not outcome.wrong and not outcome.broken:
        return "", "", ""
    forgiven = (
        f"worst error {outcome.worst:.1e}, {outcome.broken} bounds" if outcome.wrong or outcome.broken else ""
    )
    data = LayerData(
        inputs=inputs,
        weight=made.shared.weights[0].numpy()[:, covered],
        bias=made.shared.biases[0].numpy(),
        weight_grad=made.arrays[0][0].double().numpy()[:, covered],
        bias_grad=made.arrays[0][1].double().numpy(),
        output_grad=columns,
    )
    noise = rounding_noise(data.weight_grad, max(made.unit, float(np.finfo(np.float32).eps)) / 2)
    truth = truth_of(data, noise)
    if not truth.groups:
        return "", "", forgiven
    found = broken_promises(result, truth, tampered=False)
    false = "; ".join(text for text in found if text.startswith("exact"))
    return false, "; ".join(text for text in found if not text.startswith("exact")), "" if found else forgiven


def run(job: tuple[int, tuple[str, ...], bool]) -> Row:
    """Solve the problem of one seed and judge the answer."""
    seed, families, one_hidden = job
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name, made = problem(seed, families, one_hidden=one_hidden)
    plan = made.plan
    row: Row = {
        "family": name,
        "seed": seed,
        "status": "",
        "false": "",
        "broken": "",
        "problem": f"{plan.source}, b = {plan.b}, widths {plan.widths}, {[str(a) for a in plan.activations]}",
    }
    started = time.perf_counter()
    try:
        with threadpool_limits(limits=1):
            limit = LIMIT[FAMILIES[name].tampered]
            result = solve(made, 3 * limit, "auto") if one_hidden else solve(made, limit)
    except spear_np.InputError as error:
        return row | {"status": "refused", "problem": str(error), "seconds": 0.0}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the hunt is for
        return row | {"status": "crash", "false": f"{type(error).__name__}: {error}", "seconds": 0.0}
    seconds = round(time.perf_counter() - started, 2)
    false, broken, forgiven = promises(made, result)
    found = f"{result.found} of {result.batch_size}: {result.reason}"
    return row | {
        "status": str(result.status),
        "false": false,
        "broken": broken,
        "forgiven": forgiven,
        "found": found,
        "seconds": seconds,
    }


def main() -> int:
    options = parse()
    families = tuple(options.families)
    start, rows = time.perf_counter(), []
    jobs = [
        (seed, families, options.one_hidden)
        for seed in range(options.first_seed, options.first_seed + options.count)
    ]
    with ProcessPoolExecutor(options.workers) as pool:
        for row in pool.map(run, jobs, chunksize=4):
            rows.append(row)
            if row.get("forgiven"):
                print(
                    f"  {row['family']}, seed {row['seed']}, {row['status']}, forgiven: {row['forgiven']}",
                    flush=True,
                )
            if (row["false"] or row["broken"]) and not FAMILIES[row["family"]].undetectable:
                told = (row["false"] or row["broken"])[:200]
                print(
                    f"{row['family']}, seed {row['seed']}, {row['status']}: {told} ({row['problem']})",
                    flush=True,
                )
    table = report(rows, options, time.perf_counter() - start)
    print("\n" + table)
    if options.save:
        counts = Counter((row["family"], row["status"]) for row in rows)
        told = [
            {"family": family, "status": status, "runs": runs} for (family, status), runs in counts.items()
        ]
        broken = [row for row in rows if row["false"] or row["broken"]]
        setting = {**vars(options), "environment": environment.describe()}
        environment.save(
            environment.RESULTS / options.save, {**setting, "counts": told, "broken": broken}, table
        )
    return int(any(row["false"] and not FAMILIES[row["family"]].undetectable for row in rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000, help="problems")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument(
        "--one-hidden", action="store_true", help="networks with one ReLU layer, larger batches"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    return parser.parse_args()


STATUSES = ("exact", "approximate", "partial", "failed", "refused", "crash")


def report(rows: list[Row], options: argparse.Namespace, seconds: float) -> str:
    """Return the table: one line for each family."""
    lines: list[tuple[Any, ...]] = []
    for family in [*options.families, "all"]:
        members = [row for row in rows if family in (row["family"], "all")]
        lines.append(
            (
                family,
                len(members),
                *(sum(row["status"] == status for row in members) for status in STATUSES),
                sum(bool(row["false"]) and row["status"] == "exact" for row in members),
                sum(bool(row["broken"]) for row in members),
                sum(bool(row.get("forgiven")) for row in members),
            )
        )
    header = ("family", "problems", *STATUSES, "false `exact`", "broken bounds", "not to be told apart")
    last = options.first_seed + options.count - 1
    return (
        f"Seeds {options.first_seed} to {last}, at most {LIMIT[False]:g} s each, {LIMIT[True]:g} s where tampered with, {seconds / 60:.0f} minutes.\n\n"
        f"{environment.markdown(header, lines)}\n{environment.sentence(environment.describe())}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
