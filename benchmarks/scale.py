"""How far the scale of inputs is off that no bias_grad gives, chosen by activation patterns and the range of the data.

python -m benchmarks.scale --save scale
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

import spear_np
from benchmarks import environment
from benchmarks.problems import Array, Problem, make_problem, mlp, sample_images, shared_gradient
from spear_np.backend.host import to_host

LAYERS = {
    "W and bias known": ("weight_grad", "weight", "bias"),
    "no bias": ("weight_grad", "weight"),
    "gradient alone": ("weight_grad",),
}
"""What a server sees of a layer: never bias_grad."""
RIGHT = 1 - 1e-6
"""Cosine between a recovered and a true input from which nothing but the scale can be wrong."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", type=int, default=200, help="units of the layer")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=14001)
    parser.add_argument("--time-limit", type=float, default=10.0, help="seconds for a batch")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    options = parser.parse_args()
    setting = environment.describe()
    seeds = range(options.first_seed, options.first_seed + options.batches)
    rows = []
    for layer in LAYERS:
        for normalised in (True, False):
            for given in (True, False) if layer == "W and bias known" else (True,):
                for b in options.batch_sizes:
                    outcomes = [
                        outcome(
                            options.m, b, seed, layer, options.time_limit, normalised=normalised, given=given
                        )
                        for seed in seeds
                    ]
                    off, broken = (np.concatenate(values) for values in zip(*outcomes, strict=True))
                    rows.append(
                        (
                            layer,
                            ("normalised" if normalised else "pixels")
                            + ("" if given else ", range not given"),
                            b,
                            f"{len(off)} of {b * len(seeds)}",
                            f"{np.median(off):.1g}",
                            f"{np.quantile(off, 0.9):.1g}",
                            f"{np.max(off):.1g}",
                            int(np.sum(broken)),
                        )
                    )
                    print(rows[-1], flush=True)
    header = (
        "known",
        "inputs",
        "b",
        "right but for the scale",
        "median",
        "90 %",
        "worst",
        "beyond their bound",
    )
    table = (
        f"Relative error of the scale. Fashion-MNIST, m = {options.m}, float32, seeds {seeds[0]} to {seeds[-1]}.\n\n"
        f"{environment.markdown(header, rows)}\n{environment.sentence(setting)}\n"
    )
    print("\n" + table)
    if options.save:
        environment.save(environment.RESULTS / options.save, {"environment": setting, "rows": rows}, table)


def outcome(
    m: int, b: int, seed: int, layer: str, time_limit: float, *, normalised: bool, given: bool
) -> tuple[Array, Array]:
    """Return how far the scale of each right input is off, |s - 1|, and for each one handed out if it is beyond its bound."""
    problem = without_bias(m, b, seed, normalised=normalised) if layer == "no bias" else None
    problem = problem or make_problem(m, b, seed, normalised=normalised)
    images = problem.images
    ends = tuple((pixel - images.mean) / images.std for pixel in (0.0, 1.0))
    options: dict[str, Any] = {"data_range": ends} if given else {}
    arguments = {name: getattr(problem, name) for name in LAYERS[layer]}
    result = spear_np.invert(**arguments, seed=seed, time_limit=time_limit, **options)
    recovered, truth = to_host(result.inputs), images.inputs
    products = recovered @ truth.T
    cosine = products / np.linalg.norm(truth, axis=1) / np.linalg.norm(recovered, axis=1)[:, None]
    partner = np.argmax(np.abs(cosine), axis=1)
    error = np.abs(recovered - truth[partner]).max(axis=1)
    broken = error > np.asarray(result.certificate.error_bound)
    # A wrong direction has no scale that could be right.
    found = np.argmax(np.abs(cosine), axis=0)
    right = np.abs(cosine[found, range(len(truth))]) > RIGHT
    scale = products[found, range(len(truth))] / np.sum(truth**2, axis=1)
    return np.abs(scale - 1)[right], broken


def without_bias(m: int, b: int, seed: int, *, normalised: bool) -> Problem:
    """Return what the first layer of a network without biases shares."""
    images, _ = sample_images("fashion-mnist", b, seed, normalised=normalised)
    network = mlp(images.inputs.shape[1], m, 6, seed, images.classes)
    for linear in network[::2]:
        torch.nn.init.zeros_(linear.bias)
    return shared_gradient(network, 0, images, "cross-entropy", torch.float32)


if __name__ == "__main__":
    main()
