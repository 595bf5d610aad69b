"""Families of updates that are not the plain gradient, or hide something: what optimisers, compressors, defences and mixed precision
make of it.

`FAMILIES` maps a name to a function of a random generator that makes one small two-layer network after one step, alters what it
shares, and says what the inputs were. Tests and `benchmarks.alterations` draw from here and nowhere else.

Notation: weight_grad = D Xᵀ (m, n) and bias_grad = D 1 (m,), D = ∂L/∂Z (m, b), X (n, b). An alteration of the feature side,
``D Xᵀ R``, keeps the zeros of D; one of the unit side, ``L D Xᵀ``, keeps X.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import spear_np
from tests.networks import digits
from tests.precision import round_to_bfloat16

Array = np.ndarray[Any, np.dtype[Any]]
Generator = np.random.Generator

CLASSES = 10
ARRAYS = ("weight_grad", "bias_grad", "weight", "bias")


@dataclass(frozen=True)
class Shared:
    """What is shared of one layer, and what the file says of it: (m, n), (m,), (m, n), (m,)."""

    weight_grad: Array
    bias_grad: Array
    weight: Array
    bias: Array
    without: tuple[str, ...] = ()
    """What of these is not there."""

    def handed_over(self, activation: str) -> spear_np.LayerGradients:
        """What the solver gets of a layer that this `activation` follows."""
        there = {name: getattr(self, name) for name in ARRAYS if name not in self.without}
        return spear_np.LayerGradients(activation=activation, **there)

    def as_type(self, dtype: Any) -> Shared:
        """The same in another precision."""
        cast = {name: np.asarray(getattr(self, name)).astype(dtype) for name in ARRAYS}
        return Shared(**cast, without=self.without)


@dataclass(frozen=True)
class Update:
    """One altered update, and the truth."""

    layers: tuple[Shared, ...]
    """In forward order, a ReLU between them; the first is the one to be inverted."""
    inputs: Array
    """(b, n): what the user calls the inputs."""
    seen: Array
    """(b, n): what the layer saw, which rounding or augmentation may have changed."""
    plain: bool = True
    """Whether both gradients are the plain gradient of what the layer saw, up to rounding and independent noise."""
    alike: bool = False
    """Whether two inputs have the same pattern and columns of ∂L/∂Z in proportion."""
    as_given: bool = True
    """Whether W, bias and activation are those that the gradient was taken at."""
    one_step: bool = True
    """Whether no other step is in the gradients."""
    with_mean: bool = True
    """Whether neither layer nor optimiser took the mean from the inputs."""


@dataclass(frozen=True)
class Step:
    """One step of a network W_0, ReLU, W_1, softmax cross-entropy; b inputs."""

    inputs: Array
    """(b, n): what the user calls the inputs."""
    seen: Array
    """(b, n): what the first layer saw."""
    weights: tuple[Array, Array]
    biases: tuple[Array, Array]
    labels: Array
    dtype: Any

    @property
    def on(self) -> Array:
        """(b, m) bool."""
        return np.asarray(self.seen @ self.weights[0].T + self.biases[0] > 0)

    @property
    def hidden(self) -> Array:
        """(b, m): outputs of the first layer."""
        return np.asarray(np.maximum(self.seen @ self.weights[0].T + self.biases[0], 0))

    @property
    def output_grads(self) -> tuple[Array, Array]:
        """(b, m) and (b, 10): Dᵀ of both layers."""
        o = self.hidden @ self.weights[1].T + self.biases[1]
        p = np.exp(o - o.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        last = (p - np.eye(o.shape[1])[self.labels]) / len(self.seen)
        return last @ self.weights[1] * self.on, last

    def update(self, *, plain: bool = True) -> Update:
        """The plain gradients of both layers."""
        d = self.output_grads
        seen = (self.seen, self.hidden)
        layers = tuple(
            Shared(d[i].T @ seen[i], d[i].sum(axis=0), self.weights[i], self.biases[i]) for i in (0, 1)
        )
        return Update(layers, self.inputs, self.seen, plain)

    def with_inputs(self, inputs: Array) -> Step:
        """The step on other `inputs`."""
        labels = np.resize(self.labels, len(inputs))
        return replace(self, inputs=inputs, seen=inputs, labels=labels)


def step(rng: Generator, *, b: int | None = None, m: int | None = None, classes: int = CLASSES) -> Step:
    """Draw data, a network and labels: 64 features of uniform numbers, digits or normal numbers."""
    b = int(rng.integers(2, 7)) if b is None else b
    m = int(rng.choice([40, 60, 100])) if m is None else m
    kind = rng.choice(["uniform", "digits", "normal"])
    if kind == "digits":
        x = digits()[rng.choice(len(digits()), b, replace=False)].astype(np.float64)
    else:
        x = rng.random((b, 64)) if kind == "uniform" else rng.standard_normal((b, 64))
    n = x.shape[1]
    weights = rng.uniform(-1, 1, (m, n)) / np.sqrt(n), rng.uniform(-1, 1, (classes, m)) / np.sqrt(m)
    biases = rng.uniform(-1, 1, m) / np.sqrt(n), rng.uniform(-1, 1, classes) / np.sqrt(m)
    dtype = np.float32 if rng.random() < 0.8 else np.float64
    return Step(x, x, weights, biases, rng.integers(classes, size=b), dtype)


def as_shared(update: Update, dtype: Any) -> Update:
    """Return the `update` in the precision of its network."""

    return replace(update, layers=tuple(one.as_type(dtype) for one in update.layers))


# How families are made.

Make = Callable[[Generator], Update]
MapOfGradient = Callable[[Generator, Array], Array]
FAMILIES: dict[str, Make] = {}


def family(name: str) -> Callable[[Callable[[Generator], tuple[Update, Any]]], Make]:
    """Register a function that returns an update and the precision it is shared in."""

    def register(make: Callable[[Generator], tuple[Update, Any]]) -> Make:
        def made(rng: Generator) -> Update:
            update, dtype = make(rng)
            return as_shared(update, dtype)

        made.__doc__ = make.__doc__
        FAMILIES[name] = made
        return made

    return register


def of_weight_grads(name: str, change: MapOfGradient, *, plain: bool = False, **drawn: Any) -> None:
    """Register a family that changes the weight_grad of every layer, and nothing else."""

    def make(rng: Generator) -> tuple[Update, Any]:
        at = step(rng, **drawn)
        update = at.update(plain=plain)
        layers = tuple(replace(one, weight_grad=change(rng, one.weight_grad)) for one in update.layers)
        return replace(update, layers=layers), at.dtype

    family(name)(make)


def of_both(name: str, change: Callable[[Generator, Array], Array], *, plain: bool = False) -> None:
    """Register a family that changes [weight_grad, bias_grad] (m, n + 1) of every layer as one matrix."""

    def make(rng: Generator) -> tuple[Update, Any]:
        at = step(rng)
        update = at.update(plain=plain)
        layers = []
        for one in update.layers:
            both = change(rng, np.column_stack([one.weight_grad, one.bias_grad]))
            layers.append(replace(one, weight_grad=both[:, :-1], bias_grad=both[:, -1]))
        return replace(update, layers=tuple(layers)), at.dtype

    family(name)(make)


def of_first(name: str, change: Callable[[Generator, Step, Shared], Shared], *, plain: bool = False) -> None:
    """Register a family that changes what is shared of the first layer."""

    def make(rng: Generator) -> tuple[Update, Any]:
        at = step(rng)
        update = at.update(plain=plain)
        before = update.layers[0]
        first = change(rng, at, before)
        as_given = first.weight is before.weight and first.bias is before.bias and "bias" not in first.without
        return replace(update, layers=(first, *update.layers[1:]), as_given=as_given), at.dtype

    family(name)(make)


def of_inputs(name: str, change: Callable[[Generator, Array], Array], *, inputs_too: bool = False) -> None:
    """Register a family whose gradient is plain, but of other inputs than the user's: rounded, augmented, masked."""

    def make(rng: Generator) -> tuple[Update, Any]:
        at = step(rng)
        seen = change(rng, at.inputs)
        at = replace(at, seen=seen, inputs=seen if inputs_too else at.inputs)
        return at.update(), at.dtype

    family(name)(make)


# Nothing altered: what all others are held against.


@family("plain")
def plain(rng: Generator) -> tuple[Update, Any]:
    at = step(rng)
    return at.update(), at.dtype


@family("plain, one input")
def plain_single(rng: Generator) -> tuple[Update, Any]:
    at = step(rng, b=1)
    return at.update(), at.dtype


# Feature side: weight_grad = D Xᵀ R.


def mean_free(g: Array) -> Array:
    return np.asarray(g - g.mean(axis=1, keepdims=True))


@family("gradient centralisation")
def centralised(rng: Generator) -> tuple[Update, Any]:
    """Rows of weight_grad without their mean (Yong et al. 2020)."""
    at = step(rng)
    update = at.update(plain=False)
    layers = tuple(replace(one, weight_grad=mean_free(one.weight_grad)) for one in update.layers)
    return replace(update, layers=layers, with_mean=False), at.dtype


@family("gradient centralisation, centred weights")
def centralised_weights(rng: Generator) -> tuple[Update, Any]:
    """The same after many such steps: the weights have no mean either."""
    at = step(rng)
    weights = (mean_free(at.weights[0]), mean_free(at.weights[1]))
    update = replace(at, weights=weights).update(plain=False)
    layers = tuple(replace(one, weight_grad=mean_free(one.weight_grad)) for one in update.layers)
    return replace(update, layers=layers, with_mean=False), at.dtype


@family("weight standardisation")
def weight_standardised(rng: Generator) -> tuple[Update, Any]:
    """The file holds V, the layer used V without the mean of its rows, and the gradient is that of V."""
    at = step(rng)
    used = replace(at, weights=(mean_free(at.weights[0]), at.weights[1])).update(plain=False)
    first = replace(used.layers[0], weight_grad=mean_free(used.layers[0].weight_grad), weight=at.weights[0])
    return replace(used, layers=(first, *used.layers[1:]), with_mean=False), at.dtype


def some_columns(rng: Generator, g: Array) -> Array:
    """One to three columns times a factor."""
    g = g.copy()
    chosen = rng.choice(g.shape[1], rng.integers(1, 4), replace=False)
    g[:, chosen] *= rng.choice([0, 0.5, 0.9, 0.99, 1.01, 1.1, 2])
    return g


def column_norm(g: Array) -> Array:
    return np.asarray(np.linalg.norm(g, axis=0, keepdims=True) + 1e-30)


def root(matrix: Array, power: float, damping: float) -> Array:
    """A power of a symmetric positive matrix, damped by a share of its mean eigenvalue."""
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(values, 0) + damping * np.mean(np.maximum(values, 0)) + 1e-30
    return np.asarray((vectors * values**power) @ vectors.T)


def orthogonalised(rng: Generator, g: Array) -> Array:
    """Muon without its approximation: all singular values one (Jordan et al. 2024)."""
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    kept = s > 1e-9 * s[0]
    return np.asarray(u[:, kept] @ vt[kept])


def newton_schulz(rng: Generator, g: Array) -> Array:
    """Muon as it is run: five steps of its quintic."""
    x = g / (np.linalg.norm(g) + 1e-30)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return np.asarray(x)


def right_whitened(rng: Generator, g: Array) -> Array:
    """D Xᵀ R with R a root of the second moment of the columns: one side of Shampoo (Gupta et al. 2018)."""
    return np.asarray(g @ root(g.T @ g, -0.25, 1e-3))


def shampoo(rng: Generator, g: Array) -> Array:
    return np.asarray(root(g @ g.T, -0.25, 1e-3) @ g @ root(g.T @ g, -0.25, 1e-3))


def column_second_moment(rng: Generator, g: Array) -> Array:
    """The column factor of a factored second moment."""
    c = np.mean(g**2, axis=0, keepdims=True)
    return np.asarray(g / np.sqrt(c + 1e-3 * np.mean(c)))


def adafactor(rng: Generator, g: Array) -> Array:
    """Shazeer and Stern 2018: g / sqrt(row mean ⊗ column mean / mean)."""
    square = g**2 + 1e-30
    rows, columns = square.mean(axis=1, keepdims=True), square.mean(axis=0, keepdims=True)
    return np.asarray(g / np.sqrt(rows * columns / square.mean()))


def largest_columns(rng: Generator, g: Array) -> Array:
    """Only the columns of largest norm are sent."""
    norm = column_norm(g)
    return np.asarray(g * (norm >= np.quantile(norm, rng.uniform(0.05, 0.6))))


def random_columns(rng: Generator, g: Array) -> Array:
    return np.asarray(g * (rng.random(g.shape[1]) < rng.uniform(0.5, 0.98)))


def clipped_columns(rng: Generator, g: Array) -> Array:
    norm = column_norm(g)
    return np.asarray(g * np.minimum(1, np.quantile(norm, rng.uniform(0.5, 0.99)) / norm))


def swapped(rng: Generator, g: Array) -> Array:
    """Two features change places, as when a file and a network order them differently."""
    g = g.copy()
    i, k = rng.choice(g.shape[1], 2, replace=False)
    g[:, [i, k]] = g[:, [k, i]]
    return g


def copied_column(rng: Generator, g: Array) -> Array:
    g = g.copy()
    i, k = rng.choice(g.shape[1], 2, replace=False)
    g[:, i] = g[:, k]
    return g


def added_to_columns(rng: Generator, g: Array) -> Array:
    """A share of one column is added to another."""
    g = g.copy()
    i, k = rng.choice(g.shape[1], 2, replace=False)
    g[:, i] += 10.0 ** rng.uniform(-3, 0) * g[:, k]
    return g


def smoothed(rng: Generator, g: Array) -> Array:
    """Laplacian smoothing of each row over neighbouring features (Osher et al. 2018), weakly."""
    share = 10.0 ** rng.uniform(-3, -1)
    return np.asarray(g + share * (np.roll(g, 1, axis=1) + np.roll(g, -1, axis=1) - 2 * g))


def sketched_features(rng: Generator, g: Array) -> Array:
    """Projected on a random subspace of the features and back."""
    n = g.shape[1]
    q = np.linalg.qr(rng.standard_normal((n, max(1, n - int(rng.integers(1, n // 2))))))[0]
    return np.asarray(g @ q @ q.T)


def galore(rng: Generator, g: Array) -> Array:
    """Projected on the row space of another gradient, of more rank than the batch (Zhao et al. 2024)."""
    n = g.shape[1]
    other = rng.standard_normal((min(n, 24), n)) + 0.5 * rng.standard_normal((min(n, 24), 1)) * np.mean(
        g, axis=0
    ) / (np.std(g) + 1e-30)
    basis = np.linalg.svd(other, full_matrices=False)[2]
    return np.asarray(g @ basis.T @ basis)


of_weight_grads("a few columns scaled", some_columns)
of_weight_grads("all columns scaled by 1e-3", lambda rng, g: g * (1 + 1e-3 * rng.standard_normal(g.shape[1])))
of_weight_grads(
    "all columns scaled by a tenth", lambda rng, g: g * (1 + 0.1 * rng.standard_normal(g.shape[1]))
)
of_weight_grads(
    "one input, columns disturbed", lambda rng, g: g * (1 + 1e-3 * rng.standard_normal(g.shape[1])), b=1
)
of_weight_grads("columns of unit norm", lambda rng, g: g / column_norm(g))
of_weight_grads("column second moment", column_second_moment)
of_weight_grads("Adafactor", adafactor)
of_weight_grads("Muon, exact", orthogonalised)
of_weight_grads("Muon, Newton-Schulz", newton_schulz)
of_weight_grads("Shampoo, right side", right_whitened)
of_weight_grads("Shampoo", shampoo)
of_weight_grads("largest columns", largest_columns)
of_weight_grads("random columns", random_columns)
of_weight_grads("columns clipped", clipped_columns)
of_weight_grads("two columns swapped", swapped)
of_weight_grads("columns permuted", lambda rng, g: g[:, rng.permutation(g.shape[1])])
of_weight_grads("columns shifted by one", lambda rng, g: np.roll(g, 1, axis=1))
of_weight_grads("one column copied", copied_column)
of_weight_grads("a column added to another", added_to_columns)
of_weight_grads("Laplacian smoothing", smoothed)
of_weight_grads("random subspace of features", sketched_features)
of_weight_grads("GaLore", galore)
of_weight_grads("columns without their mean", lambda rng, g: g - g.mean(axis=0, keepdims=True))
of_weight_grads("one constant for all features", lambda rng, g: g + 1e-3 * g.sum(axis=1, keepdims=True))


def input_second_moment(at: Step) -> Array:
    """(n, n): uncentred covariance of what the first layer saw."""
    return np.asarray(at.seen.T @ at.seen / len(at.seen))


of_first(
    "K-FAC, input side",
    lambda rng, at, one: replace(
        one, weight_grad=one.weight_grad @ root(input_second_moment(at), -1.0, 10.0 ** rng.uniform(-2, 1))
    ),
)
of_first(
    "K-FAC, both sides",
    lambda rng, at, one: replace(
        one,
        weight_grad=root(at.output_grads[0].T @ at.output_grads[0], -0.5, 1.0)
        @ one.weight_grad
        @ root(input_second_moment(at), -0.5, 1.0),
    ),
)
of_first(
    "preconditioned by the power of each input feature",
    lambda rng, at, one: replace(
        one, weight_grad=one.weight_grad / (np.mean(at.seen**2, axis=0) + 10.0 ** rng.uniform(-2, 1))
    ),
)


def of_scaled_weights(rng: Generator, at: Step, one: Shared) -> Shared:
    """Weights were folded with a scale of the features, as of a normalisation layer, and the gradient with them."""
    scale = rng.uniform(0.5, 2, one.weight.shape[1])
    return replace(one, weight_grad=one.weight_grad * scale, weight=one.weight * scale)


of_first("gradient of scaled weights", of_scaled_weights)


# What the layer saw is not what the user calls the inputs.


def significant_bits(values: Array, bits: int) -> Array:
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.rint(mantissa * 2.0**bits) / 2.0**bits, exponent))


def truncated_bits(values: Array, bits: int) -> Array:
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.trunc(mantissa * 2.0**bits) / 2.0**bits, exponent))


def levels(values: Array, count: int) -> Array:
    size = np.max(np.abs(values)) / count
    return np.asarray(np.rint(values / size) * size)


of_inputs("inputs rounded to bfloat16", lambda rng, x: significant_bits(x, 8))
of_inputs("inputs rounded to TF32", lambda rng, x: significant_bits(x, 11))
of_inputs("inputs rounded to float16", lambda rng, x: x.astype(np.float16).astype(np.float64))
of_inputs("inputs rounded to float8", lambda rng, x: significant_bits(x, 4))
of_inputs("inputs truncated to bfloat16", lambda rng, x: truncated_bits(x, 8))
of_inputs("inputs of 8 bits", lambda rng, x: levels(x, 127))
of_inputs("inputs mirrored", lambda rng, x: x[:, ::-1])
of_inputs("features dropped", lambda rng, x: x * (rng.random(x.shape) < 0.9))
of_inputs("mixup", lambda rng, x: 0.7 * x + 0.3 * np.roll(x, 1, axis=0))
of_inputs("inputs without mean", lambda rng, x: mean_free(x), inputs_too=True)
of_inputs(
    "inputs of unit norm",
    lambda rng, x: x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-30),
    inputs_too=True,
)


# Inputs that leave no trace of their own, or hide behind others.


LEAST_APART = 3
"""Units that each of two inputs turns on and the other does not: fewer leave nothing to spare, and the search finds neither."""


def apart(on: Array) -> bool:
    """Whether every two patterns, rows of `on` (b, m) bool, differ in enough units both ways."""
    one_way = on.astype(int) @ ~on.T
    return bool(np.all(one_way[~np.eye(len(on), dtype=bool)] >= LEAST_APART))


def similar(rng: Generator, x: Array, size: float) -> Array:
    """`x` with a part of its features changed."""
    return np.asarray(x + size * rng.standard_normal(len(x)) * (rng.random(len(x)) < 0.2))


def without_trace(at: Step) -> Step:
    """The step with biases that turn the last input off wherever one of the others is."""
    z = at.seen @ at.weights[0].T + at.biases[0]
    alone = (z[-1] > 0) & ~np.all(z[:-1] > 0, axis=0)
    return replace(at, biases=(at.biases[0] - 1.01 * z[-1] * alone, at.biases[1]))


def hidden_last(
    rng: Generator, b: int, arrange: Callable[[Array], None], **options: Any
) -> tuple[Update, Any]:
    """A step whose last of b inputs leaves no trace beside the others, as `arrange` sets them (b, n), once their patterns differ."""
    while True:
        at = step(rng, b=b, **options)
        x = at.inputs.copy()
        arrange(x)
        at = without_trace(at.with_inputs(x))
        if apart(at.on[:-1]):
            return at.update(), at.dtype


@family("between two others")
def between_two(rng: Generator) -> tuple[Update, Any]:
    """A third input between two others that turns on only what both turn on."""

    def arrange(x: Array) -> None:
        x[1] = similar(rng, x[0], 0.3)
        share = rng.uniform(0.3, 0.7)
        x[2] = share * x[0] + (1 - share) * x[1]

    return hidden_last(rng, 3, arrange)


@family("between three others")
def between_three(rng: Generator) -> tuple[Update, Any]:
    """A fourth input in the middle of three, alike, that turns on only what all of them turn on."""

    def arrange(x: Array) -> None:
        x[1], x[2] = similar(rng, x[0], 0.4), similar(rng, x[0], 0.4)
        x[3] = rng.dirichlet([4, 4, 4]) @ x[:3]

    return hidden_last(rng, 4, arrange)


@family("between four others")
def between_four(rng: Generator) -> tuple[Update, Any]:
    """The same of four, two and two alike."""

    def arrange(x: Array) -> None:
        x[1], x[3] = similar(rng, x[0], 0.4), similar(rng, x[2], 0.4)
        x[4] = rng.dirichlet([4, 4, 4, 4]) @ x[:4]

    return hidden_last(rng, 5, arrange, m=100)


@family("between seven others")
def between_seven(rng: Generator) -> tuple[Update, Any]:
    """The same of seven, all alike."""

    def arrange(x: Array) -> None:
        for row in range(1, 7):
            x[row] = similar(rng, x[0], 0.5)
        x[7] = rng.dirichlet([4] * 7) @ x[:7]

    return hidden_last(rng, 8, arrange, m=100)


@family("beyond another, nested patterns")
def beyond_nested(rng: Generator) -> tuple[Update, Any]:
    """An input on the line through two others, outside of them, that turns on only what both turn on."""
    while True:
        at = step(rng, b=4, m=100)
        x = at.inputs.copy()
        x[1] = x[0] + 0.5 * rng.standard_normal(x.shape[1]) * (rng.random(x.shape[1]) < 0.5)
        x[3] = x[0] + rng.uniform(-0.3, -0.02) * (x[1] - x[0])
        z = x @ at.weights[0].T + at.biases[0]
        # Whatever the first turns on alone, none turns on.
        alone = (z[0] > 0) & (z[1] <= 0)
        shifted = at.biases[0] - 1.01 * np.maximum(np.max(z, axis=0), 0) * alone
        at = without_trace(replace(at.with_inputs(x), biases=(shifted, at.biases[1])))
        if np.sum(at.on[0] != at.on[1]) >= LEAST_APART:
            return at.update(), at.dtype


@family("two classes, two inputs alike")
def alike(rng: Generator) -> tuple[Update, Any]:
    """Two inputs turn on the same units, and two classes make their columns of ∂L/∂Z proportional: they show as one."""
    at = step(rng, b=int(rng.integers(2, 6)), classes=2)
    x = at.inputs.copy()
    x[1] = similar(rng, x[0], 0.1)
    at = at.with_inputs(x)
    z = at.seen @ at.weights[0].T + at.biases[0]
    differ = (z[0] > 0) != (z[1] > 0)
    shifted = at.biases[0] - differ * (np.minimum(z[0], z[1]) - 0.01)
    update = replace(at, biases=(shifted, at.biases[1])).update()
    return replace(update, alike=True), at.dtype


@family("one input a mean of two others")
def dependent(rng: Generator) -> tuple[Update, Any]:
    """Linearly dependent inputs that do leave a trace: the rank is too small for the batch."""
    at = step(rng, b=int(rng.integers(3, 7)))
    x = at.inputs.copy()
    share = rng.uniform(0.2, 0.8)
    x[0] = share * x[1] + (1 - share) * x[2]
    return at.with_inputs(x).update(), at.dtype


@family("two inputs equal")
def twins(rng: Generator) -> tuple[Update, Any]:
    at = step(rng, b=int(rng.integers(3, 7)))
    x = at.inputs.copy()
    x[1] = x[0]
    return at.with_inputs(x).update(), at.dtype


@family("an input a multiple of another")
def multiples(rng: Generator) -> tuple[Update, Any]:
    at = step(rng, b=int(rng.integers(3, 7)))
    x = at.inputs.copy()
    x[1] = rng.uniform(0.5, 0.95) * x[0]
    return at.with_inputs(x).update(), at.dtype


@family("an input of zeros")
def zero_input(rng: Generator) -> tuple[Update, Any]:
    at = step(rng, b=int(rng.integers(3, 7)))
    x = at.inputs.copy()
    x[0] = 0
    return at.with_inputs(x).update(), at.dtype


# Unit side: weight_grad = L D Xᵀ, and what is wrong with the layer in the file.


def row_factor(rng: Generator, g: Array) -> Array:
    return np.asarray(rng.uniform(0.2, 2, (len(g), 1)))


def row_clip(g: Array, quantile: float) -> Array:
    norm = np.linalg.norm(g, axis=1, keepdims=True) + 1e-30
    return np.asarray(np.minimum(1, np.quantile(norm, quantile) / norm))


of_both("rows scaled", lambda rng, g: g * row_factor(rng, g))
of_both("rows clipped", lambda rng, g: g * row_clip(g, 0.5))
of_both("rows of unit norm", lambda rng, g: g / (np.linalg.norm(g, axis=1, keepdims=True) + 1e-30))
of_both("clipped as a whole", lambda rng, g: 0.1 * g, plain=True)
of_both("sign", lambda rng, g: np.sign(g))
of_both("Adam, first step", lambda rng, g: g / (np.abs(g) + 10.0 ** rng.uniform(-8, -1)))
of_both("Adam, large epsilon", lambda rng, g: g / (np.abs(g) + 10.0 ** rng.uniform(1, 3)))
of_both("Natural logarithm of the size", lambda rng, g: np.sign(g) * np.log1p(np.abs(g) / np.mean(np.abs(g))))
of_both("tanh", lambda rng, g: np.tanh(g / (10.0 ** rng.uniform(0, 2) * np.max(np.abs(g)) + 1e-30)))
of_weight_grads("rows of weight_grad scaled", lambda rng, g: g * row_factor(rng, g))
of_weight_grads("rows of weight_grad clipped", lambda rng, g: g * row_clip(g, rng.uniform(0.3, 0.98)))
of_weight_grads("each tensor clipped by itself", lambda rng, g: g / np.linalg.norm(g))
of_weight_grads("LARS", lambda rng, g: g * 10.0 ** rng.uniform(-2, 0))
of_weight_grads("weight_grad 0.1 % too large", lambda rng, g: 1.001 * g)


def earlier(rng: Generator, at: Step) -> Update:
    """The step before: other inputs, the same network."""
    return at.with_inputs(step(rng, b=len(at.inputs)).inputs).update()


def with_earlier(name: str, share: Callable[[Generator], float]) -> None:
    """Register a family that adds a share of the update before."""

    def make(rng: Generator) -> tuple[Update, Any]:
        at = step(rng)
        update, before, factor = at.update(plain=False), earlier(rng, at), share(rng)
        layers = tuple(
            replace(
                one,
                weight_grad=one.weight_grad + factor * other.weight_grad,
                bias_grad=one.bias_grad + factor * other.bias_grad,
            )
            for one, other in zip(update.layers, before.layers, strict=True)
        )
        return replace(update, layers=layers, one_step=False), at.dtype

    family(name)(make)


with_earlier("momentum", lambda rng: 0.9)
with_earlier("a faint earlier update", lambda rng: 10.0 ** rng.uniform(-8, -2))


def decayed(rng: Generator, at: Step, one: Shared) -> Shared:
    return replace(one, weight_grad=one.weight_grad + 10.0 ** rng.uniform(-7, -2) * one.weight)


of_first("weight decay", decayed)
of_first(
    "stale bias",
    lambda rng, at, one: replace(
        one, bias=one.bias + 10.0 ** rng.uniform(-3, 0) * rng.standard_normal(len(one.bias)) / 8
    ),
    plain=True,
)
of_first("bias dropped", lambda rng, at, one: replace(one, without=("bias",)), plain=True)
of_first("bias rescaled", lambda rng, at, one: replace(one, bias=one.bias * rng.uniform(0.5, 2)), plain=True)
of_first("bias permuted", lambda rng, at, one: replace(one, bias=rng.permutation(one.bias)), plain=True)
of_first(
    "stale weights",
    lambda rng, at, one: replace(
        one, weight=one.weight + 10.0 ** rng.uniform(-4, -1) * rng.standard_normal(one.weight.shape) / 8
    ),
    plain=True,
)
of_first(
    "weights after the step",
    lambda rng, at, one: replace(
        one, weight=one.weight - 0.1 * one.weight_grad, bias=one.bias - 0.1 * one.bias_grad
    ),
    plain=True,
)
of_first(
    "weights rounded to bfloat16",
    lambda rng, at, one: replace(one, weight=round_to_bfloat16(one.weight).astype(np.float64)),
    plain=True,
)
of_first(
    "weights pruned",
    lambda rng, at, one: replace(one, weight=one.weight * (rng.random(one.weight.shape) < 0.95)),
    plain=True,
)
of_first(
    "bias_grad rescaled", lambda rng, at, one: replace(one, bias_grad=one.bias_grad * rng.uniform(0.3, 3))
)
of_first(
    "bias_grad disturbed",
    lambda rng, at, one: replace(
        one, bias_grad=one.bias_grad * (1 + 10.0 ** rng.uniform(-5, -1) * rng.standard_normal(len(one.bias)))
    ),
)
of_first(
    "bias_grad of another step",
    lambda rng, at, one: replace(one, bias_grad=earlier(rng, at).layers[0].bias_grad),
)
of_first("no bias_grad", lambda rng, at, one: replace(one, without=("bias_grad",)), plain=True)


def with_own_backward(name: str, mask: Callable[[Generator, Step], Array], *, plain: bool = True) -> None:
    """Register a family whose ∂L/∂Z of the first layer is another one: `mask` (b, m) times that of the second passed back."""

    def make(rng: Generator) -> tuple[Update, Any]:
        at = step(rng)
        update = at.update(plain=plain)
        d = at.output_grads[1] @ at.weights[1] * mask(rng, at)
        first = replace(update.layers[0], weight_grad=d.T @ at.seen, bias_grad=d.sum(axis=0))
        traces = np.linalg.norm(d, axis=1) * np.linalg.norm(at.seen, axis=1)
        seen = at.seen[traces > np.finfo(at.dtype).eps * np.max(traces)]
        return replace(update, layers=(first, *update.layers[1:]), seen=seen, as_given=False), at.dtype

    family(name)(make)


def preactivation(at: Step) -> Array:
    return np.asarray(at.seen @ at.weights[0].T + at.biases[0])


with_own_backward("shifted threshold", lambda rng, at: preactivation(at) > 10.0 ** rng.uniform(-3, 0))
with_own_backward("threshold below zero", lambda rng, at: preactivation(at) > -(10.0 ** rng.uniform(-3, 0)))
with_own_backward(
    "units dropped", lambda rng, at: at.on * (rng.random(at.on.shape) >= rng.uniform(0.002, 0.5))
)
with_own_backward(
    "one mask of dropped units for all", lambda rng, at: at.on * (rng.random(at.on.shape[1]) >= 0.3)
)
with_own_backward("leaky by a little", lambda rng, at: np.where(at.on, 1.0, 10.0 ** rng.uniform(-8, -2)))
with_own_backward("squared ReLU", lambda rng, at: 2 * np.maximum(preactivation(at), 0))
with_own_backward(
    "softplus, steep", lambda rng, at: 1 / (1 + np.exp(-np.clip(300 * preactivation(at), -600, 600)))
)


# Compression and noise, entry by entry.


def truncated_mantissa(rng: Generator, g: Array) -> Array:
    return truncated_bits(g, int(rng.integers(7, 20)))


def stochastic_bfloat16(rng: Generator, g: Array) -> Array:
    mantissa, exponent = np.frexp(g)
    return np.asarray(np.ldexp(np.floor(mantissa * 256 + rng.random(g.shape)) / 256, exponent))


def evenly_quantised(rng: Generator, g: Array) -> Array:
    return levels(g, 2 ** int(rng.integers(5, 16)))


def qsgd(rng: Generator, g: Array) -> Array:
    """Alistarh et al. 2017: levels of the norm, rounded at random."""
    count = 2 ** int(rng.integers(4, 16))
    size = np.linalg.norm(g) / count + 1e-30
    return np.asarray(np.floor(g / size + rng.random(g.shape)) * size)


def largest_entries(rng: Generator, g: Array) -> Array:
    return np.asarray(np.where(np.abs(g) >= np.quantile(np.abs(g), 10.0 ** rng.uniform(-3, -0.5)), g, 0))


def low_rank(rng: Generator, g: Array) -> Array:
    """PowerSGD (Vogels et al. 2019): the best approximation of a rank below, at or above that of the batch."""
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    r = max(1, int(rng.integers(1, 8)))
    return np.asarray((u[:, :r] * s[:r]) @ vt[:r])


def count_sketch(rng: Generator, g: Array) -> Array:
    """Rows of a count sketch of all entries, in three times as many buckets, read back by the median of three."""
    flat = g.ravel()
    estimates = []
    for _ in range(3):
        bucket, sign = rng.integers(3 * len(flat), size=len(flat)), rng.choice([-1, 1], len(flat))
        table = np.bincount(bucket, weights=flat * sign, minlength=3 * len(flat))
        estimates.append(table[bucket] * sign)
    return np.asarray(np.median(estimates, axis=0).reshape(g.shape))


of_both("mantissa truncated", truncated_mantissa, plain=True)
of_both("bfloat16, rounded at random", stochastic_bfloat16, plain=True)
of_both("evenly quantised", evenly_quantised, plain=True)
of_both("QSGD", qsgd, plain=True)
of_both("largest entries", largest_entries, plain=True)
of_both("entries masked", lambda rng, g: g * (rng.random(g.shape) >= 10.0 ** rng.uniform(-3.5, -1)))
of_both(
    "Gaussian noise",
    lambda rng, g: g + 10.0 ** rng.uniform(-7, -1) * np.std(g) * rng.standard_normal(g.shape),
    plain=True,
)
of_both(
    "Laplace noise",
    lambda rng, g: g + 10.0 ** rng.uniform(-7, -1) * np.std(g) * rng.laplace(size=g.shape),
    plain=True,
)
of_both(
    "noise on a few rows",
    lambda rng, g: g + np.std(g) * 1e-2 * rng.standard_normal(g.shape) * (rng.random((len(g), 1)) < 0.05),
    plain=True,
)
of_both(
    "multiplicative noise",
    lambda rng, g: g * (1 + 10.0 ** rng.uniform(-6, -2) * rng.standard_normal(g.shape)),
    plain=True,
)
of_both("count sketch", count_sketch, plain=True)
of_weight_grads("PowerSGD", low_rank)


@family("two local steps")
def local_steps(rng: Generator) -> tuple[Update, Any]:
    """Two steps on the same batch, added up; the file holds the weights before."""
    at = step(rng)
    rate = 10.0 ** rng.uniform(-4, -0.5)
    one = at.update()
    moved = replace(
        at,
        weights=tuple(w - rate * o.weight_grad for w, o in zip(at.weights, one.layers, strict=True)),
        biases=tuple(b - rate * o.bias_grad for b, o in zip(at.biases, one.layers, strict=True)),
    )
    two = moved.update()
    layers = tuple(
        replace(a, weight_grad=a.weight_grad + c.weight_grad, bias_grad=a.bias_grad + c.bias_grad)
        for a, c in zip(one.layers, two.layers, strict=True)
    )
    return replace(one, layers=layers, as_given=False), at.dtype
