"""What the data itself allows: noise at the maximum likelihood, and deep layers by what tells their inputs apart.

    python -m benchmarks.limits --save limits

Nobody who has to find the batch can do better than who is told which units every input leaves off. From there the
maximum-likelihood inputs are a matter of Gauss-Newton steps, and whether the zero rows of a direction determine it at
all is one of linear algebra. Both stand here beside what `invert` made of the same batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

import spear_np
from benchmarks import environment, updates
from benchmarks.problems import Array, Problem, make_problem
from benchmarks.trust import GOOD, matched_psnr
from spear_np import LayerGradients
from spear_np.backend.devices import CPU
from spear_np.backend.host import to_host
from spear_np.backend.work import suitable_threads
from spear_np.directions.disaggregate import disaggregate
from spear_np.directions.refine import STEPS, gauss_newton_step
from spear_np.directions.uniqueness import uniqueness
from spear_np.factors.factorize import Factors, factorize
from spear_np.inputs.reconstruct import reconstruct

NOISE = ((200, 10, 1e-1), (200, 20, 1e-3), (200, 30, 3e-2))
LAYERS = range(5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=16001)
    parser.add_argument("--time-limit", type=float, default=10.0, help="seconds a batch")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.batches)
    noise, deep = [], []
    for m, b, level in NOISE:
        problems = [updates.noised(make_problem(m, b, seed), level, seed) for seed in seeds]
        noise.append((f"{level:g}, {m} x {b}", *noise_row(problems, seeds, options.time_limit)))
        print(noise[-1], flush=True)
    for layer in LAYERS:
        problems = [make_problem(200, 20, seed, layer=layer) for seed in seeds]
        deep.append((layer + 1, *layer_row(problems, seeds, options.time_limit)))
        print(deep[-1], flush=True)
    setting = environment.describe()
    table = (
        f"Fashion-MNIST, float32, seeds {seeds[0]} to {seeds[-1]}, at most {options.time_limit:g} s a batch; PSNR in dB "
        "of the worst input of each batch, the lowest and the median of the batches.\n\n"
        f"{environment.markdown(('noise', 'worst', 'median', 'worst, zeros known', 'median, zeros known'), noise)}\n"
        "Layers of a six-layer network, 200 x 20: units on for some inputs of the batch and off for others, smallest "
        "singular value over its noise, inputs whose zero rows determine a direction, with a row to spare, inputs "
        f"recovered above {GOOD:g} dB.\n\n"
        f"{environment.markdown(('layer', 'telling units', 'signal', 'determined', 'and to spare', 'recovered'), deep)}\n"
        f"{environment.sentence(setting)}\n"
    )
    print("\n" + table)
    if options.save:
        environment.save(
            environment.RESULTS / options.save,
            {"environment": setting, "noise": noise, "layers": deep},
            table,
        )


def noise_row(problems: Sequence[Problem], seeds: Sequence[int], time_limit: float) -> tuple[str, ...]:
    """Lowest and median of the worst PSNR, as found and with all zeros known."""
    found = [
        matched_psnr(problem, spear_np.invert(**problem.arguments, seed=seed, time_limit=time_limit)).min()
        for problem, seed in zip(problems, seeds, strict=True)
    ]
    known = [likeliest(problem).min() for problem in problems]
    return tuple(f"{figure(values):.1f}" for values in (found, known) for figure in (np.min, np.median))


def layer_row(problems: Sequence[Problem], seeds: Sequence[int], time_limit: float) -> tuple[str, ...]:
    """What tells the inputs of a layer apart, and what was recovered of them."""
    telling, signal, unique, spare, recovered = [], [], [], [], []
    for problem, seed in zip(problems, seeds, strict=True):
        factors, q, off = truth_of(problem)
        telling.append(np.sum(np.any(off, axis=1) & ~np.all(off, axis=1)))
        signal.append(float(factors.space.S[-1]))
        found = uniqueness(factors.space, q, q, factors.space.expand(off.T))
        unique.append(np.mean(found.unique))
        spare.append(np.mean(found.redundancy >= 1))
        result = spear_np.invert(**problem.arguments, seed=seed, time_limit=time_limit)
        recovered.append(np.mean(matched_psnr(problem, result) >= GOOD))
    return (
        f"{np.median(telling):.0f}",
        f"{np.median(signal):.0e}",
        *(f"{np.mean(shares):.0%}" for shares in (unique, spare, recovered)),
    )


def truth_of(problem: Problem) -> tuple[Factors, Array, Array]:
    """Factors of a problem, its true directions (b, b), and which live units (ℓ, b) its inputs leave off."""
    with suitable_threads(CPU, problem.weight_grad.size):
        factors = factorize(LayerGradients(**problem.arguments), CPU, len(problem.images.inputs))
    assert isinstance(factors, Factors)
    inputs = problem.images.inputs
    coordinates = inputs @ (problem.weight_grad.astype(np.float64).T @ to_host(factors.space.to_basis))
    q = np.linalg.inv(coordinates).T * to_host(factors.space.S)
    z = inputs @ problem.weight.astype(np.float64).T + problem.bias
    return factors, q, (z <= 0).T[to_host(factors.space.live)]


def likeliest(problem: Problem) -> Array:
    """(b,): PSNR of the maximum-likelihood inputs if it is known which units each input leaves off."""
    factors, q, off = truth_of(problem)
    rows, Y = factors.space.U * factors.space.S, (q / factors.space.S).T
    for _ in range(2 * STEPS):
        stepped = gauss_newton_step(factors.space, rows, Y, off.astype(np.float64))
        if stepped is None:
            break
        Y = to_host(stepped)
    recovery = to_host(reconstruct(factors, disaggregate(factors, Y.T * factors.space.S)).recovery)
    difference = recovery @ problem.weight_grad.astype(np.float64) - problem.images.inputs
    return np.asarray(10 * np.log10(np.ptp(problem.images.inputs) ** 2 / np.mean(difference**2, axis=1)))


if __name__ == "__main__":
    main()
