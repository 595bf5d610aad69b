"""Two checkpoints around one step of SGD with weight decay: is λ found, and do the inputs come back?

    python -m benchmarks.weight_decay                         # every setting, 10 batches each
    python -m benchmarks.weight_decay --batches 3 --steps 300

The checkpoints are float32 `.npz` files, the dump is what `spear-np convert` makes of them, and nothing of the weight
decay is told. The weights round the step before anybody sees it, at 6e-8 of their own size: with a small learning rate
that is what limits the digits, weight decay or not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import spear_np
from benchmarks import environment
from benchmarks.problems import Images, loss_of, mlp, sample_images, train
from benchmarks.runs import Results, Row, concluded
from benchmarks.trust import matches
from spear_io.convert import Origin, convert
from spear_io.files.dump import RecordInfo, open_dump
from spear_io.show.evaluate import EXACT
from spear_np.backend.host import to_host

FIELDS = ("steps", "b", "learning_rate", "weight_decay", "seed")
GOOD = 60.0
"""dB from which an input counts as recovered."""
WIDTH = 200
TIME_LIMIT = 20.0
"""Seconds a batch."""


def main() -> int:
    options = parse()
    results = Results.read(options.results, FIELDS)
    seeds = range(options.first_seed, options.first_seed + options.batches)
    for setting in product(options.steps, options.sizes, options.rates, options.decays, seeds):
        row = dict(zip(FIELDS, setting, strict=True))
        print(line(results.once(row, partial(run, row))), flush=True)
    rows = list(results.rows.values())
    return concluded(options.results, rows, report(rows), line)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 300, 3000], help="of training before")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20], help="of the batch")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.01])
    parser.add_argument("--decays", type=float, nargs="+", default=[0.0, 1e-4, 5e-4, 1e-2])
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=41001)
    parser.add_argument("--results", type=Path, default=environment.RESULTS / "weight_decay.jsonl")
    return parser.parse_args()


def step(setting: Row, folder: Path) -> Images:
    """Take one step of SGD, write the model before and after it, and return the batch."""
    images, others = sample_images("fashion-mnist", setting["b"], setting["seed"], others=20_000)
    network = mlp(images.inputs.shape[1], WIDTH, 2, setting["seed"], images.classes)
    train(network, others, setting["steps"], "cross-entropy")
    save(network, folder / "before.npz")
    optimizer = torch.optim.SGD(
        network.parameters(), lr=setting["learning_rate"], weight_decay=setting["weight_decay"]
    )
    inputs = torch.as_tensor(images.inputs, dtype=torch.float32)
    loss_of(network(inputs), images.labels, "cross-entropy").backward()
    optimizer.step()
    save(network, folder / "after.npz")
    return images


def save(network: nn.Module, path: Path) -> None:
    """Write a checkpoint."""
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    np.savez(path, **arrays)


def run(setting: Row) -> Row:
    """Invert one fresh batch from two checkpoints and hold every row against the truth."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = step(setting, folder)
        convert(
            {"record-0": Origin(before=folder / "before.npz", after=folder / "after.npz")},
            folder / "dump.h5",
            info=RecordInfo(learning_rate=setting["learning_rate"]),
        )
        with open_dump(folder / "dump.h5") as dump:
            start = time.perf_counter()
            gradients = dump.records[0].layers[0].gradients
            result = spear_np.invert_layer(gradients, seed=setting["seed"], time_limit=TIME_LIMIT)
            inputs = to_host(result.inputs)
            seconds = time.perf_counter() - start
    truth = images.inputs.astype(np.float32).astype(np.float64)
    data_range = float(np.ptp(truth))
    psnr, errors, beyond = np.zeros(len(truth)), [0.0], 0
    for i, k in matches(truth, inputs):
        mean_square = float(np.mean((truth[i] - inputs[k]) ** 2))
        psnr[i] = 10 * np.log10(data_range**2 / max(mean_square, 1e-300))
        errors.append(float(np.max(np.abs(truth[i] - inputs[k]))))
        beyond += errors[-1] > result.certificate.error_bound[k]
    decay = result.gradients.decay
    return {
        "status": str(result.status),
        "found": result.found,
        "psnr": np.round(np.sort(psnr), 1).tolist(),
        "decay": decay.weight,
        "bias_decay": decay.bias,
        "deviation": decay.deviation,
        "named": "decay" in result.reason,
        "beyond_bound": int(beyond),
        "wrong": result.status == "exact" and max(errors) > EXACT * data_range,
        "seconds": round(seconds, 3),
        "reason": result.reason,
        "environment": environment.describe(),
    }


def line(row: Row) -> str:
    """One finished batch for the terminal."""
    return (
        f"{row['steps']} steps, b = {row['b']}, rate {row['learning_rate']:g}, decay {row['weight_decay']:g}, seed {row['seed']}: "
        f"{row['status']}, {row['found']} handed out, worst {row['psnr'][0]:.0f} dB, λ = {row['decay']:.7g} ± "
        f"{row['deviation']:.0e}, {row['beyond_bound']} beyond their bound, {row['seconds']:.2f} s; {row['reason']}"
    )


def report(rows: list[Row]) -> str:
    """Return the table: one line for each setting."""
    lines = []
    for setting in sorted({tuple(row[name] for name in FIELDS[:-1]) for row in rows}):
        members = [row for row in rows if tuple(row[name] for name in FIELDS[:-1]) == setting]
        steps, b, rate, decay = setting
        whole = [row for row in members if row["psnr"][0] >= GOOD]
        psnr = np.concatenate([row["psnr"] for row in members])
        off = [
            abs(row["decay"] - decay) / row["deviation"] if row["deviation"] else 0.0
            for row in members
            if row["decay"]
        ]
        statuses = Counter(row["status"] for row in members)
        lines.append(
            (
                steps,
                b,
                f"{rate:g}",
                f"{decay:g}",
                f"{sum(row['decay'] != 0 for row in members)} of {len(members)}",
                f"{max(off):.1f}" if off else "–",
                f"{len(whole)} of {len(members)}",
                f"{np.mean(psnr >= GOOD):.1%}",
                f"{statistics.median(psnr):.0f}",
                sum(row["named"] for row in members if row not in whole),
                ", ".join(f"{count} {status}" for status, count in statuses.most_common()),
                sum(row["beyond_bound"] for row in members),
                sum(row["wrong"] for row in members),
                f"{statistics.median(row['seconds'] for row in members):.2f}",
            )
        )
    header = (
        "steps",
        "b",
        "rate",
        "λ",
        "λ fitted",
        "off by, σ",
        f"all inputs ≥ {GOOD:g} dB",
        f"inputs ≥ {GOOD:g} dB",
        "median, dB",
        "others that name it",
        "status",
        "beyond their bound",
        "wrongly exact",
        "median s",
    )
    seeds = [row["seed"] for row in rows]
    return (
        f"Fashion-MNIST, 784-{WIDTH}-10, seeds {min(seeds)} to {max(seeds)}; an input that was not handed out counts 0 dB.\n\n"
        f"{environment.markdown(header, lines)}\n{environment.sentence(rows[-1]['environment'])}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
