"""Random layers of every kind, most of them awkward, some tampered with: material to catch a false `exact`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

import spear_np
from tests.layers import layer_data_of
from tests.networks import Floats, LayerData, digit_labels, digits
from tests.precision import round_to_bfloat16
from tests.promises import Truth, rounding_noise, truth_of

Generator = np.random.Generator


@dataclass(frozen=True)
class Case:
    """One layer, how it is handed to the solver, and the truth."""

    name: str
    data: LayerData
    arguments: dict[str, Any]
    """Of `spear_np.invert`."""
    noise: Floats
    """(m,): standard deviation of one entry of each row of weight_grad."""
    rounding: bool = True
    """Whether that noise comes from rounding alone."""
    tampered: bool = False
    """Whether what the solver gets is no longer what the layer shared."""

    @property
    def truth(self) -> Truth:
        """What the solver may find."""
        return truth_of(self.data, self.noise, rounding=self.rounding)

    def invert(self, **options: Any) -> spear_np.Inversion:
        """Run the solver."""
        return spear_np.invert(**(self.arguments | options))


def case_of(name: str, data: LayerData) -> Case:
    """Return the case of a layer that is handed over as it is."""
    arguments = {name: getattr(data, name) for name in ("weight_grad", "bias_grad", "weight", "bias")}
    unit = np.finfo(data.weight_grad.dtype).eps / 2
    return Case(name, data, arguments, rounding_noise(data.weight_grad, unit))


# What batches are made of: functions of (number of inputs, generator) that return (b, n) float64.


def pick_digits(b: int, rng: Generator) -> Floats:
    images: Floats = digits()[rng.choice(len(digits()), b, replace=False)].astype(np.float64)
    return images


def gaussian(b: int, rng: Generator) -> Floats:
    return rng.standard_normal((b, int(rng.integers(b + 2, 70))))


def uniform(b: int, rng: Generator) -> Floats:
    return rng.random((b, int(rng.integers(b + 2, 70))))


def one_hot(b: int, rng: Generator) -> Floats:
    """Rows of a table: categories and a few numbers; some rows differ in one field only."""
    sizes = rng.integers(2, 6, int(rng.integers(3, 8)))
    fields = [rng.integers(size, size=b) for size in sizes]
    if b > 1:
        for field in fields:
            field[1] = field[0]
        fields[0][1] = (fields[0][0] + 1) % sizes[0]
    numbers = rng.random((b, int(rng.integers(0, 4))))
    columns = [np.eye(size)[field] for size, field in zip(sizes, fields, strict=True)]
    return np.concatenate([*columns, numbers], axis=1)


def sparse(b: int, rng: Generator) -> Floats:
    """Few features are ever used."""
    rows = np.zeros((b, int(rng.integers(50, 1000))))
    used = rng.choice(rows.shape[1], 30, replace=False)
    rows[:, used] = rng.random((b, 30)) < 0.3
    return rows


def enlarged(b: int, rng: Generator) -> Floats:
    """Every pixel many times over: rounding errors that do not average out."""
    factor = int(rng.integers(2, 6))
    pixels = np.ones((1, factor, factor))
    images: Floats = np.kron(pick_digits(b, rng).reshape(b, 8, 8), pixels).reshape(b, -1)
    return images


def same_class(b: int, rng: Generator) -> Floats:
    among = np.flatnonzero(digit_labels() == rng.integers(10))
    images: Floats = digits()[rng.choice(among, b, replace=False)].astype(np.float64)
    return images


def with_second(change: Callable[[Floats, Generator], Floats]) -> Callable[[int, Generator], Floats]:
    """Return a maker of digits of which the second is made from the others by `change`."""

    def make(b: int, rng: Generator) -> Floats:
        rows = pick_digits(b, rng)
        if b > 1:
            rows[1] = change(rows, rng)
        return rows

    return make


def one_pixel(rows: Floats, rng: Generator) -> Floats:
    copy: Floats = rows[0].copy()
    copy[rng.integers(len(copy))] += rng.choice([1, 1 / 16, 1 / 255, 1e-3, 1e-4, 1e-5])
    return copy


INPUTS: dict[str, Callable[[int, Generator], Floats]] = {
    "digits": pick_digits,
    "same class": same_class,
    "gaussian": gaussian,
    "uniform": uniform,
    "one-hot": one_hot,
    "sparse": sparse,
    "enlarged": enlarged,
    "three channels": lambda b, rng: np.concatenate([pick_digits(b, rng)] * 3, axis=1),
    "equal": with_second(lambda rows, _: rows[0]),
    "one pixel": with_second(one_pixel),
    "scaled copy": with_second(lambda rows, rng: rows[0] * rng.choice([0.5, 2.0, -1.0])),
    "mean of two": with_second(lambda rows, _: (rows[0] + rows[-1]) / 2),
    "black": with_second(lambda rows, _: 0 * rows[0]),
    "bright": with_second(lambda rows, rng: rows[1] * 10.0 ** rng.integers(1, 5)),
}


def noisy(case: Case, rng: Generator) -> Case:
    """Add Gaussian noise to both gradients, between 1e-6 and 1e-2 of their root mean square."""
    level = 10.0 ** -rng.uniform(2, 6)
    arguments, noise = dict(case.arguments), case.noise
    for name in ("weight_grad", "bias_grad"):
        values = arguments[name].astype(np.float64)
        size = level * np.sqrt(np.mean(values**2))
        arguments[name] = values + size * rng.standard_normal(values.shape)
        if name == "weight_grad":
            noise = np.hypot(noise, size)
    return replace(case, arguments=arguments, noise=noise, rounding=False)


def half_precision(case: Case, rng: Generator) -> Case:
    """Round both gradients to float16, after a loss scale that leaves them in its range."""
    scale = 1 / (float(np.max(np.abs(case.data.weight_grad))) or 1.0)
    data = replace(case.data, output_grad=case.data.output_grad * scale)
    arguments = dict(case.arguments)
    for name in ("weight_grad", "bias_grad"):
        arguments[name] = (case.arguments[name] * scale).astype(np.float16)
    return replace(
        case, data=data, arguments=arguments, noise=rounding_noise(arguments["weight_grad"], 2.0**-11)
    )


def brain_float(case: Case, rng: Generator) -> Case:
    """Round both gradients to bfloat16."""
    arguments = dict(case.arguments) | {"precision": "bfloat16"}
    for name in ("weight_grad", "bias_grad"):
        arguments[name] = round_to_bfloat16(case.arguments[name])
    return replace(case, arguments=arguments, noise=rounding_noise(arguments["weight_grad"], 2.0**-8))


def as_it_is(case: Case, rng: Generator) -> Case:
    return case


PRECISIONS: dict[str, Callable[[Case, Generator], Case]] = {
    "": as_it_is,
    "noise": noisy,
    "float16": half_precision,
    "bfloat16": brain_float,
}


def tampering(**changes: Callable[[Any, Generator], Any]) -> Callable[[Case, Generator], Case]:
    """Return a function that replaces arguments of a case."""

    def tamper(case: Case, rng: Generator) -> Case:
        changed = {name: change(case.arguments[name], rng) for name, change in changes.items()}
        return replace(case, arguments=case.arguments | changed, tampered=True)

    return tamper


def another_batch_size(by: int) -> Callable[[Case, Generator], Case]:
    def tamper(case: Case, rng: Generator) -> Case:
        most = min(case.data.weight_grad.shape)
        size = int(np.clip(len(case.data.inputs) + by, 1, most))
        return replace(case, arguments=case.arguments | {"batch_size": size}, tampered=True)

    return tamper


def near(values: Floats, rng: Generator) -> Floats:
    return (values * (1 + 1e-3 * rng.standard_normal(values.shape))).astype(values.dtype)


TAMPERINGS: dict[str, Callable[[Case, Generator], Case]] = {
    "": as_it_is,
    "bias permuted": tampering(bias=lambda v, rng: rng.permutation(v)),
    "bias shifted": tampering(bias=lambda v, rng: v + v.dtype.type(0.3)),
    "bias_grad permuted": tampering(bias_grad=lambda v, rng: rng.permutation(v)),
    "weight permuted": tampering(weight=lambda v, rng: rng.permutation(v)),
    "weight of another network": tampering(
        weight=lambda v, rng: (np.std(v) * rng.standard_normal(v.shape)).astype(v.dtype)
    ),
    "weight perturbed": tampering(weight=near),
    "rows of weight_grad permuted": tampering(weight_grad=lambda v, rng: rng.permutation(v)),
    "one input too few": another_batch_size(-1),
    "one input too many": another_batch_size(1),
}


def random_case(seed: int, *, tamper: bool = True) -> Case | None:
    """Return a small layer drawn from everything above; None if its gradient is not finite."""
    rng = np.random.default_rng([seed, 8847])
    small = rng.random() < 0.5
    width = int(rng.integers(8, 41)) if small else int(rng.choice([60, 100]))
    b = int(rng.integers(1, 6)) if small else int(rng.integers(1, 9))
    kind = str(rng.choice(list(INPUTS)))
    loss = rng.choice(["softmax", "squares", "logistic"], p=[0.6, 0.2, 0.2])
    outputs = int(rng.choice([1, 2, 3, 10], p=[0.1, 0.1, 0.2, 0.6]))
    dtype = np.float32 if rng.random() < 0.75 else np.float64
    options = {
        "depth": int(rng.integers(2, 5)),
        "outputs": max(outputs, 2) if loss == "softmax" else outputs,
        "weight_scale": None if rng.random() < 0.7 else float(rng.choice([0.01, 0.1, 0.5])),
        "active": None if rng.random() < 0.7 else float(rng.choice([0.2, 0.8, 0.9])),
    }
    data = layer_data_of(
        INPUTS[kind](b, rng), rng, width=width, loss=loss, dtype=dtype, **cast(dict[str, Any], options)
    )
    precision = str(rng.choice(list(PRECISIONS), p=[0.7, 0.14, 0.08, 0.08]))
    shares = [0.6] + [0.4 / (len(TAMPERINGS) - 1)] * (len(TAMPERINGS) - 1)
    tampered = str(rng.choice(list(TAMPERINGS), p=shares)) if tamper else ""
    words = [kind, f"b={b} m={width} {loss}", *map(str, options.values()), np.dtype(dtype).name]
    if not np.all(np.isfinite(data.weight_grad)):
        return None
    case = case_of(", ".join([f"seed {seed}", *words, precision, tampered]), data)
    return TAMPERINGS[tampered](PRECISIONS[precision](case, rng), rng)
