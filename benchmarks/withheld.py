"""What is left of a batch when some of its directions are withheld: the bounds of the others, and how far they are off.

python -m benchmarks.withheld --save withheld
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks import environment
from benchmarks.problems import Array, make_problem
from spear_np import LayerGradients
from spear_np.backend.devices import CPU
from spear_np.backend.host import to_host
from spear_np.backend.work import suitable_threads
from spear_np.factors.factorize import Factors, factorize
from spear_np.inputs.partial import partial_inputs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", type=int, default=200, help="units of the layer")
    parser.add_argument("-b", type=int, default=20, help="inputs of the batch")
    parser.add_argument("--withheld", type=int, nargs="+", default=[1, 2, 5, 8])
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=12001)
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.batches)
    rows = []
    for withheld in options.withheld:
        outcomes = [outcome(options.m, options.b, withheld, seed) for seed in seeds]
        psnr, ratio = (np.concatenate(values) for values in zip(*outcomes, strict=True))
        rows.append(
            (
                withheld,
                f"{len(psnr)} of {(options.b - withheld) * len(seeds)}",
                int(np.sum(ratio > 1)),
                f"{np.min(psnr):.0f}",
                f"{np.median(psnr):.0f}",
                f"{np.median(1 / ratio):.1f}",
            )
        )
        print(rows[-1], flush=True)
    header = (
        "directions withheld",
        "inputs bounded",
        "beyond their bound",
        "worst, dB",
        "median, dB",
        "bound / error, median",
    )
    setting = environment.describe()
    table = (
        f"Fashion-MNIST, m = {options.m}, b = {options.b}, float32, the true directions of the others given, seeds "
        f"{seeds[0]} to {seeds[-1]}.\n\n{environment.markdown(header, rows)}\n{environment.sentence(setting)}\n"
    )
    print("\n" + table)
    if options.save:
        environment.save(environment.RESULTS / options.save, {"environment": setting, "rows": rows}, table)


def outcome(m: int, b: int, withheld: int, seed: int) -> tuple[Array, Array]:
    """Return PSNR and error over bound of the inputs that are bounded."""
    problem = make_problem(m, b, seed)
    with suitable_threads(CPU, m * b):
        factors = factorize(LayerGradients(**problem.arguments), CPU)
        assert isinstance(factors, Factors)
        weight_grad, inputs = problem.weight_grad.astype(np.float64), problem.images.inputs
        coordinates = inputs @ (weight_grad.T @ to_host(factors.space.to_basis))
        directions = np.linalg.inv(coordinates).T * to_host(factors.space.S)
        partial = partial_inputs(factors, directions[withheld:])
    recovered = partial.coordinates @ (to_host(factors.space.to_basis).T @ weight_grad)
    difference = recovered - inputs[withheld:][partial.which]
    psnr = 10 * np.log10(np.ptp(inputs) ** 2 / np.mean(difference**2, axis=1))
    return psnr, np.abs(difference).max(axis=1) / partial.error_bound


if __name__ == "__main__":
    main()
