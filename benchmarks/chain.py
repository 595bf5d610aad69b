"""Batches recovered with the help of the next layers: share found whole and exact, time, labels, false promises.

    python -m benchmarks.chain --set main --batches 20 --save benchmarks/results/chain.md

Every batch has fresh inputs and a fresh network; the batch size is not given. A row is wrong if it is off by more than its
bound, a batch is wrong if it is called exact and an input is missing or off by more than 1e-4 of the data range.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spear_np
from benchmarks import environment
from benchmarks.networks import Network, Shared, share
from spear_np.backend.host import to_host

EXACT = 1e-4
"""Share of the data range within which a row is right."""


@dataclass(frozen=True)
class Cell:
    """One row of a table."""

    title: str
    network: Network
    b: int
    batches: int | None = None
    """Where it is not that of the command."""
    time_limit: float = 60.0
    first: int = 0
    """Number of the layer whose inputs are sought."""
    method: str | None = None
    """Where it is not that of the command."""


@dataclass(frozen=True)
class Outcome:
    """What came of one batch."""

    status: str
    found: int
    right: int
    """True inputs that a row holds within `EXACT`."""
    worst: float
    """Largest error of a true input, as a share of the range; infinite if it is missing."""
    broken: int
    """Rows that are off by more than their bound."""
    wrong: bool
    """Whether the batch is called exact and is not."""
    labels: int | None
    """Rows whose label is that of the true input nearest to them; None where none is told."""
    seconds: float
    reason: str


def wide(m: int, activation: str = "relu", layers: int = 5, **options: Any) -> Network:
    """A network of equal widths."""
    return Network(widths=(m,) * layers, activation=activation, **options)


def run(cell: Cell, seed: int, method: str = "chain") -> Outcome:
    """Invert one batch and hold the answer against the truth."""
    shared = share(cell.network, cell.b, seed)
    started = time.perf_counter()
    result = spear_np.invert_chain(
        shared.layers[cell.first :],
        method=cell.method or method,
        time_limit=cell.time_limit,
        loss="cross_entropy",
    )
    return judged(shared, result, time.perf_counter() - started, cell.first)


def judged(shared: Shared, result: spear_np.Inversion, seconds: float, first: int = 0) -> Outcome:
    """Hold an answer against the truth."""
    inputs = to_host(result.inputs)
    truth = shared.inputs[first]
    errors = shared.errors(inputs, first)
    if len(inputs):
        nearest = np.argmin((truth**2).sum(1)[None, :] - 2 * inputs @ truth.T, axis=1)
        own = np.abs(inputs - truth[nearest]).max(axis=1)
        broken = int(np.sum(own > np.asarray(result.certificate.error_bound)))
    else:
        nearest, broken = np.empty(0, dtype=np.int64), 0
    labels = None
    if result.labels is not None:
        labels = int(np.sum(to_host(result.labels) == shared.labels[nearest]))
    visible = visible_inputs(shared, first)
    right = errors <= EXACT
    return Outcome(
        status=str(result.status),
        found=result.found,
        right=int(np.sum(right)),
        worst=float(np.max(errors)),
        broken=broken,
        wrong=str(result.status) == "exact" and not bool(np.all(right | ~visible)),
        labels=labels,
        seconds=round(seconds, 3),
        reason=result.reason,
    )


def visible_inputs(shared: Shared, first: int) -> Any:
    """(b,) bool: whether more of an input than the rounding of the largest is in the gradient."""
    traces = np.linalg.norm(shared.output_grads[first], axis=0) * np.linalg.norm(shared.inputs[first], axis=1)
    unit = np.finfo(str(shared.layers[first].weight_grad.dtype)).eps
    return traces > unit * traces.max()


SMOOTH = ("gelu", "silu", "elu")
LARGE_WEIGHTS = Network(widths=(1000,), init="normal", normalised=False, dtype=torch.float64)
"""The setting of Shariati and Meybodi (2026): weights N(0, 0.5²), no biases, pixels in [0, 1], float64."""
SETS: dict[str, list[Cell]] = {
    "main": [
        *(Cell(f"ReLU, {b}", wide(200), b) for b in (20, 40, 65, 80, 90)),
        Cell("ReLU, 100", wide(200), 100, time_limit=120),
        *(Cell(f"ReLU, 80 % on, {b}", wide(200, share_on=0.8), b) for b in (20, 40)),
        *(Cell(f"{a}, {b}", wide(200, a), b) for a in SMOOTH for b in (20, 60, 80)),
        *(Cell(f"{a}, {b}", wide(200, a), b) for a in ("leaky_relu", "leaky_relu_0.2") for b in (20, 60, 80)),
        *(Cell(f"{a}, {b}", wide(200, a), b) for a in ("tanh", "softplus") for b in (20, 60)),
        Cell("sigmoid, 20", wide(200, "sigmoid"), 20),
        *(
            Cell(f"{a}, faces, {b}", wide(200, a, source="faces"), b)
            for a in ("relu", "gelu")
            for b in (30, 60)
        ),
        Cell("GELU, 110", wide(200, "gelu"), 110, time_limit=120),
    ],
    "data": [
        *(
            Cell(f"{a}, table, {b}", wide(200, a, source="table"), b)
            for a in ("relu", "leaky_relu", "gelu", "silu", "elu", "tanh", "softplus", "sigmoid")
            for b in (30, 60)
        ),
        *(
            Cell(f"{a}, raw pixels, zero biases, {b}", wide(200, a, normalised=False, init="glorot"), b)
            for a in ("relu", "leaky_relu", "gelu", "silu", "elu", "tanh", "softplus", "sigmoid")
            for b in (30, 60)
        ),
    ],
    "large": [
        *(Cell(f"ReLU, m = 1000, {b}", wide(1000), b, batches=5, time_limit=120) for b in (200, 250, 300)),
        *(
            Cell(f"{a}, m = 1000, {b}", wide(1000, a), b, batches=5, time_limit=120)
            for a in ("gelu", "tanh")
            for b in (200, 300)
        ),
        Cell("ReLU, m = 2000, 400", wide(2000), 400, batches=2, time_limit=300),
    ],
    "one hidden layer": [
        *(Cell(f"m = 200, {b}", wide(200, layers=1), b, method="auto") for b in (60, 80, 100, 110)),
        Cell("m = 1000, 250", wide(1000, layers=1), 250, batches=5, method="auto"),
        *(
            Cell(
                f"large weights, m = 1000, {b}", LARGE_WEIGHTS, b, batches=5, time_limit=limit, method="auto"
            )
            for b, limit in ((64, 30), (128, 60), (256, 180))
        ),
    ],
    "robust": [
        *(
            Cell(f"{a}, {source}, 30", wide(200, a, source=source), 30)
            for a in ("relu", "gelu", "tanh")
            for source in ("digits", "adult", "gaussian")
        ),
        *(
            Cell(f"{a}, photographs, 25", wide(200, a, source="photos"), 25, batches=5)
            for a in ("relu", "gelu")
        ),
        *(
            Cell(f"{a}, trained {steps}, {b}", wide(200, a, steps=steps), b)
            for a in ("relu", "gelu", "tanh")
            for steps in (300, 3000)
            for b in (20, 40)
        ),
        *(
            Cell(f"{a}, noise {noise:g}, {b}", wide(200, a, noise=noise), b)
            for a in ("relu", "gelu", "tanh")
            for noise in (1e-4, 1e-3, 1e-2)
            for b in (20, 40)
        ),
        *(
            Cell(f"{a}, {name} gradients, {b}", wide(200, a, gradient_dtype=dtype), b)
            for a in ("relu", "gelu", "tanh")
            for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16))
            for b in (10, 20)
        ),
        *(
            Cell(f"{a}, layer {number + 1}, 20", wide(200, a), 20, first=number)
            for a in ("relu", "gelu", "tanh", "sigmoid")
            for number in (1, 2, 3)
        ),
        *(
            Cell(f"{a}, second layer of {b}", Network(widths=(200, b, 200, 200), activation=a), b)
            for a in ("relu", "gelu", "tanh")
            for b in (20,)
        ),
        Cell("GELU, float64, 60", wide(200, "gelu", dtype=torch.float64), 60),
    ],
}


def summary(cell: Cell, outcomes: Sequence[Outcome]) -> str:
    """One line of Markdown."""
    n = len(outcomes)
    exact = sum(o.status == "exact" for o in outcomes)
    whole = sum(o.right == cell.b for o in outcomes)
    share_right = sum(o.right for o in outcomes) / (n * cell.b)
    worst = max((o.worst for o in outcomes if np.isfinite(o.worst)), default=float("inf"))
    told = [o.labels == o.found for o in outcomes if o.labels is not None]
    labels = f"{sum(told)} of {len(told)}" if told else "–"
    seconds = np.median([o.seconds for o in outcomes])
    return (
        f"| {cell.title} | {exact} of {n} | {whole} of {n} | {100 * share_right:.1f} % | {worst:.0e} | {labels} | "
        f"{seconds:.2f} | {sum(o.wrong for o in outcomes)} | {sum(o.broken for o in outcomes)} |"
    )


HEAD = (
    "| network, b | `exact` | within 1e-4 | inputs | worst error | labels right | median s | false `exact` | broken bounds |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells of a set and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=[*SETS], default="main")
    parser.add_argument("--only", help="cells whose title holds this text")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=31001)
    parser.add_argument("--time-limit", type=float, help="seconds for a batch")
    parser.add_argument("--method", default="chain")
    parser.add_argument("--rows", type=Path, help="JSON lines, one a batch")
    parser.add_argument("--save", type=Path, help="Markdown table")
    options = parser.parse_args(arguments)
    lines = [HEAD]
    print(HEAD, flush=True)
    for cell in SETS[options.set]:
        if options.only and options.only not in cell.title:
            continue
        if options.time_limit:
            cell = replace(cell, time_limit=options.time_limit)
        count = min(options.batches, cell.batches or options.batches)
        outcomes = []
        for seed in range(options.first_seed, options.first_seed + count):
            outcomes.append(run(cell, seed, options.method))
            if options.rows:
                with options.rows.open("a") as file:
                    file.write(json.dumps({"cell": cell.title, "seed": seed, **asdict(outcomes[-1])}) + "\n")
        lines.append(summary(cell, outcomes))
        print(lines[-1], flush=True)
    if options.save:
        seeds = f"Seeds from {options.first_seed}; {environment.sentence(environment.describe())}"
        options.save.write_text("\n".join([*lines, "", seeds, ""]))


if __name__ == "__main__":
    main()
