"""Layers built to fool the solver, each of a kind that has a name, and the run that holds an answer to its word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tests.cases import TAMPERINGS, Case, case_of, one_hot, pick_digits
from tests.layers import layer_data_of, with_bias
from tests.networks import Floats, LayerData
from tests.promises import broken_promises

LIMIT = 12_000
"""Proposals after which a search that has not succeeded is not worth its time here."""

Generator = np.random.Generator


def check(case: Case) -> str | None:
    """Run the solver on `case`; returns what it wrongly claims."""
    result = case.invert(max_proposals=LIMIT, time_limit=60)
    broken = broken_promises(result, case.truth, tampered=case.tampered)
    return f"{case.name}: {'; '.join(broken)}" if broken else None


def change_of(inputs: Callable[[Floats, Generator], Floats], **network: Any) -> Callable[[Generator], Case]:
    """Return a maker of cases whose five digits are changed by `inputs`."""

    def make(rng: Generator) -> Case:
        rows = inputs(pick_digits(5, rng), rng)
        return case_of("named", layer_data_of(rows, rng, **({"width": 80} | network)))

    return make


def twin(difference: float) -> Callable[[Floats, Generator], Floats]:
    def change(rows: Floats, rng: Generator) -> Floats:
        rows[1] = rows[0]
        rows[1, 20] += difference
        return rows

    return change


def tampered_with(name: str) -> Callable[[Generator], Case]:
    return lambda rng: TAMPERINGS[name](change_of(as_they_are)(rng), rng)


def as_they_are(rows: Floats, rng: Generator) -> Floats:
    return rows


def gaussian_rows(rows: Floats, rng: Generator) -> Floats:
    values: Floats = rng.standard_normal((rows.shape[0], rows.shape[1]))
    return values


def table_rows(rows: Floats, rng: Generator) -> Floats:
    return one_hot(len(rows), rng)


def another_layer(rng: Generator) -> Case:
    """The gradient of one network with the weights of another that has the same shape."""
    case, other = (change_of(as_they_are)(rng) for _ in range(2))
    arguments = case.arguments | {"weight": other.data.weight, "bias": other.data.bias}
    return replace(case, arguments=arguments, tampered=True)


def doubled_bias_grad(rng: Generator) -> Case:
    """Half of every input: the biases, here as large as the rest, tell."""
    rows = pick_digits(5, rng)
    data = layer_data_of(rows, rng, width=80)
    data = relu_layer_with_bias(data, rng)
    case = case_of("doubled", data)
    return replace(
        case, arguments=case.arguments | {"bias_grad": 2 * case.arguments["bias_grad"]}, tampered=True
    )


def relu_layer_with_bias(data: LayerData, rng: Generator) -> LayerData:
    """Return a layer with larger biases and random output gradients."""
    spread = np.std(data.inputs @ data.weight.T)
    bias = (spread * rng.standard_normal(len(data.bias))).astype(data.bias.dtype)
    return with_bias(data, bias, rng)


AWKWARD: dict[str, Callable[[Generator], Case]] = {
    "two equal samples": change_of(twin(0)),
    "one pixel differs by all of the range": change_of(twin(1)),
    "one pixel differs by a sixteenth": change_of(twin(1 / 16)),
    "one pixel differs by a grey level": change_of(twin(1 / 255)),
    "one pixel differs by a thousandth": change_of(twin(1e-3)),
    "gaussian inputs": change_of(gaussian_rows),
    "one-hot rows that differ in one field": change_of(table_rows),
    "saturated weights": change_of(as_they_are, weight_scale=0.5),
    "saturated weights, tiny layer": change_of(as_they_are, weight_scale=0.5, width=16),
    "tiny layer": change_of(as_they_are, width=14),
    "tiny layer, float64": change_of(as_they_are, width=14, dtype=np.float64),
    "half as many inputs as units": change_of(as_they_are, width=11, dtype=np.float64),
    "one output": change_of(as_they_are, outputs=1, loss="squares"),
    "two outputs, float64": change_of(as_they_are, outputs=2, dtype=np.float64, width=30),
    "nearly all units on": change_of(as_they_are, active=0.95),
    "nearly all units off": change_of(as_they_are, active=0.05),
    "another layer's weights": another_layer,
    "bias_grad doubled": doubled_bias_grad,
    **{name: tampered_with(name) for name in TAMPERINGS if name},
}


def tiny_case(seed: int, dtype: Any) -> Case:
    """Two to four digits in a layer so small that patterns nest and mixtures look like inputs."""
    rng = np.random.default_rng([seed, 5])
    b, width = int(rng.integers(2, 5)), int(rng.integers(8, 41))
    return case_of(
        f"seed {seed}, b={b} m={width}", layer_data_of(pick_digits(b, rng), rng, width=width, dtype=dtype)
    )
