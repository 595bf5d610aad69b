"""What precision, noise and the usual defences leave of a batch, and whether the answer says so.

    python -m benchmarks.trust                         # every scenario, 10 batches each
    python -m benchmarks.trust float16 trained --batches 3

Every batch has new images and a new network, and the size of the batch is not given away. Every true input is matched
to one recovered row at most; what is left over counts as not recovered, at 0 dB. Results go to a file of JSON lines as
they come, and what is already in it is not run again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

import spear_np
from benchmarks import environment, updates
from benchmarks.problems import Array, Problem, make_problem
from benchmarks.robustness import without_counts
from benchmarks.runs import Results, Row, concluded, one_of
from spear_io.show.evaluate import EXACT
from spear_np.backend.host import to_host

Make = Callable[[int], Problem | tuple[Problem, float]]
FIELDS = ("scenario", "time_limit", "seed")
GOOD = 40.0
"""dB from which an input counts as recovered in the table: an error of one part in a hundred of the data range."""


@dataclass(frozen=True)
class Scenario:
    """A kind of update; `make` returns a problem for a seed, and the accuracy of the network if it was trained."""

    make: Make
    options: tuple[tuple[str, Any], ...] = ()
    """Of `invert`."""


def cast(m: int, b: int, dtype: torch.dtype) -> Scenario:
    """The float32 gradient rounded to a narrower type."""
    name = str(dtype).removeprefix("torch.")
    return Scenario(lambda seed: updates.rounded(make_problem(m, b, seed), dtype), (("precision", name),))


def native(m: int, b: int, dtype: torch.dtype) -> Scenario:
    """The whole network runs in one precision."""
    name = str(dtype).removeprefix("torch.")
    return Scenario(lambda seed: make_problem(m, b, seed, dtype=dtype), (("precision", name),))


def noised(m: int, b: int, level: float) -> Scenario:
    return Scenario(lambda seed: updates.noised(make_problem(m, b, seed), level, seed))


def changed(m: int, b: int, change: Callable[[Problem], Problem]) -> Scenario:
    return Scenario(lambda seed: change(make_problem(m, b, seed)))


def convolution() -> nn.Module:
    """(b, 784) -> (b, 784): four filters and maxima over squares of two pixels."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    )


SCENARIOS: dict[str, Scenario] = {
    # Precision.
    "float64, 200 x 20": native(200, 20, torch.float64),
    "float32, 200 x 20": native(200, 20, torch.float32),
    "float16 gradient, 200 x 10": cast(200, 10, torch.float16),
    "bfloat16 gradient, 200 x 10": cast(200, 10, torch.bfloat16),
    "bfloat16 gradient, 200 x 30": cast(200, 30, torch.bfloat16),
    "float16 network, 200 x 10": native(200, 10, torch.float16),
    "bfloat16 network, 200 x 10": native(200, 10, torch.bfloat16),
    # Gaussian noise, relative to the root mean square of the gradient.
    "noise 1e-5, 200 x 30": noised(200, 30, 1e-5),
    "noise 1e-3, 200 x 20": noised(200, 20, 1e-3),
    "noise 1e-3, 2000 x 50": noised(2000, 50, 1e-3),
    "noise 3e-2, 200 x 30": noised(200, 30, 3e-2),
    "noise 1e-1, 200 x 10": noised(200, 10, 1e-1),
    # Layers of a six-layer network, counted from 1.
    **{
        f"layer {layer + 1} of 6, 200 x 20": Scenario(partial(make_problem, 200, 20, layer=layer))
        for layer in range(5)
    },
    # Dropout behind the ReLU.
    **{
        f"dropout {rate:g}, 200 x 20": Scenario(partial(updates.dropped_out, 200, 20, rate=rate))
        for rate in (0.1, 0.2, 0.5)
    },
    # What is in front of the layer, and between it and its ReLU.
    "BatchNorm in front, 200 x 20": Scenario(partial(updates.behind, lambda: nn.BatchNorm1d(784), 200, 20)),
    "LayerNorm in front, 200 x 20": Scenario(partial(updates.behind, lambda: nn.LayerNorm(784), 200, 20)),
    "convolution, ReLU and pooling in front, 200 x 20": Scenario(
        partial(updates.behind, convolution, 200, 20)
    ),
    "BatchNorm before the ReLU, 200 x 20": Scenario(partial(updates.norm_before_relu, 200, 20)),
    "one class, 200 x 20": Scenario(partial(updates.same_class, 200, 20)),
    "one class, 200 x 40": Scenario(partial(updates.same_class, 200, 40)),
    # Trained networks.
    "trained 300 steps, 200 x 20": Scenario(partial(updates.trained, 200, 20, steps=300)),
    "trained 3000 steps, 200 x 20": Scenario(partial(updates.trained, 200, 20, steps=3000)),
    # Defences.
    **{
        f"DP-SGD, clip 1, noise {noise:g}, 200 x 20": Scenario(
            partial(updates.dp_sgd, 200, 20, clip=1.0, noise=noise)
        )
        for noise in (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    },
    **{
        f"largest {share:.0%} of entries, 200 x 20": changed(
            200, 20, partial(updates.sparsified, share=share)
        )
        for share in (0.99, 0.9, 0.5, 0.1)
    },
    **{
        f"{bits} bits, 200 x 20": changed(200, 20, partial(updates.quantised, bits=bits))
        for bits in (16, 12, 8, 1)
    },
    # Several steps, several clients.
    **{
        f"5 epochs at {rate:g}, 200 x 20": Scenario(
            partial(updates.local_epochs, 200, 20, epochs=5, learning_rate=rate)
        )
        for rate in (0.1, 0.01, 0.001)
    },
    "5 epochs of 4 mini-batches at 0.01, 200 x 20": Scenario(
        partial(updates.local_epochs, 200, 20, epochs=5, learning_rate=0.01, batches=4)
    ),
    "sum of 4 clients, 200 x 10 each": Scenario(partial(updates.aggregated, 200, 10, clients=4)),
}


def main() -> int:
    options = parse()
    results = Results.read(options.results, FIELDS)
    for name, scenario in SCENARIOS.items():
        if options.names and name not in options.names:
            continue
        for seed in range(options.first_seed, options.first_seed + options.batches):
            setting = dict(zip(FIELDS, (name, options.time_limit, seed), strict=True))
            print(line(results.once(setting, partial(run, scenario, setting))), flush=True)
    rows = [row for row in results.rows.values() if row["time_limit"] == options.time_limit]
    return concluded(options.results, rows, report(rows, options.time_limit), line)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", type=one_of(SCENARIOS), metavar="SCENARIO", help="all if none is given"
    )
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=11001)
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds a batch")
    parser.add_argument("--results", type=Path, default=environment.RESULTS / "trust.jsonl")
    return parser.parse_args()


def run(scenario: Scenario, setting: Row) -> Row:
    """Invert one fresh batch and hold every row against the truth."""
    made = scenario.make(setting["seed"])
    problem, accuracy = made if isinstance(made, tuple) else (made, None)
    start = time.perf_counter()
    result = spear_np.invert(
        **problem.arguments, **dict(scenario.options), seed=setting["seed"], time_limit=setting["time_limit"]
    )
    seconds = time.perf_counter() - start
    truth, inputs = problem.images.inputs, to_host(result.inputs)
    data_range = float(np.ptp(truth))
    psnr = matched_psnr(problem, result)
    errors, beyond = [], 0
    for i, k in matches(truth, inputs):
        errors.append(float(np.max(np.abs(truth[i] - inputs[k]))))
        beyond += errors[-1] > result.certificate.error_bound[k]
    wrong = result.status == "exact" and (
        max(errors, default=0.0) > EXACT * data_range or bool(np.any(psnr[problem.visible] == 0))
    )
    return {
        "b": len(truth),
        "status": str(result.status),
        "rank": result.batch_size,
        "found": result.found,
        "psnr": np.round(np.sort(psnr), 1).tolist(),
        "beyond_bound": int(beyond),
        "wrong": wrong,
        "accuracy": accuracy,
        "seconds": round(seconds, 3),
        "reason": result.reason,
        "environment": environment.describe(),
    }


def matches(truth: Array, inputs: Array) -> Iterator[tuple[int, int]]:
    """Pairs of a true input (b, n) and the recovered row (k, n) that it is matched to, each in one pair at most."""
    distance = np.linalg.norm(truth[:, None, :] - inputs[None, :, :], axis=2)
    return zip(*(side.tolist() for side in linear_sum_assignment(distance)), strict=True)


def matched_psnr(problem: Problem, result: spear_np.Inversion) -> Array:
    """(b,): PSNR of each true input with the range of the data as peak; 0 if it was not handed out, 400 at most."""
    truth, inputs = problem.images.inputs, to_host(result.inputs)
    psnr = np.zeros(len(truth))
    for i, k in matches(truth, inputs):
        mean_square = float(np.mean((truth[i] - inputs[k]) ** 2))
        psnr[i] = min(400.0, 10 * np.log10(np.ptp(truth) ** 2 / max(mean_square, 1e-300)))
    return psnr


def line(row: Row) -> str:
    """One finished batch for the terminal."""
    good = sum(value >= GOOD for value in row["psnr"])
    return (
        f"{row['scenario']}, seed {row['seed']}: {row['status']}, {row['found']}/{row['b']} handed out, {good} above "
        f"{GOOD:g} dB, worst {row['psnr'][0]:.0f}, median {statistics.median(row['psnr']):.0f} dB, "
        f"{row['beyond_bound']} beyond their bound, {row['seconds']:.2f} s; rank {row['rank']}; {row['reason']}"
    )


def report(rows: list[Row], time_limit: float) -> str:
    """Return the table: one line for each scenario."""
    lines = []
    for name in SCENARIOS:
        members = [row for row in rows if row["scenario"] == name]
        if not members:
            continue
        psnr = np.concatenate([row["psnr"] for row in members])
        worst = [row["psnr"][0] for row in members]
        short = [row for row in members if row["status"] != "exact"]
        reasons = Counter(f"{row['status']}: {without_counts(row['reason'])}" for row in short)
        statuses = Counter(row["status"] for row in members)
        lines.append(
            (
                name,
                ", ".join(f"{count} {status}" for status, count in statuses.most_common()),
                f"{sum(row['found'] for row in members) / len(psnr):.0%}",
                f"{np.mean(psnr >= GOOD):.0%}",
                f"{min(worst):.0f}",
                f"{statistics.median(worst):.0f}",
                f"{np.median(psnr):.0f}",
                sum(row["beyond_bound"] for row in members),
                sum(row["wrong"] for row in members),
                f"{statistics.median(row['seconds'] for row in members):.2f}",
                reasons.most_common(1)[0][0] if reasons else "–",
            )
        )
    header = (
        "update",
        "batches",
        "inputs handed out",
        f"above {GOOD:g} dB",
        "worst input, dB",
        "median of the worst",
        "median, dB",
        "beyond their bound",
        "wrongly exact",
        "median s",
        "most often, where not exact",
    )
    seeds = [row["seed"] for row in rows]
    return (
        f"Fashion-MNIST, m x b, seeds {min(seeds)} to {max(seeds)}, at most {time_limit:g} s a batch. PSNR with the range "
        f"of the data as peak; an input that was not handed out counts 0 dB.\n\n{environment.markdown(header, lines)}\n"
        f"{environment.sentence(rows[-1]['environment'])}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
