"""The published algorithm against this solver: the same gradients, one after the other, in the same process.

python -m benchmarks.against_published
python -m benchmarks.against_published --dump examples/fashion_mnist_b16.h5 --method auto
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import spear_np
from benchmarks import environment, published
from benchmarks.problems import Images, Problem, make_problem
from spear_io import open_dump

Row = dict[str, Any]


def main() -> None:
    options = parse()
    setting = environment.describe()
    warm_up(options.method)
    rows = []
    for name, problem in problems(options):
        row = compare(problem, name, options)
        rows.append(row)
        print(line(row), flush=True)
    table = report(rows, options, setting)
    print("\n" + table)
    if options.save:
        arguments = {
            key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()
        }
        environment.save(
            environment.RESULTS / options.save,
            {"environment": setting, "options": arguments, "rows": rows},
            table,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", type=int, default=200, help="units of the layer")
    parser.add_argument("-b", type=int, nargs="+", default=[8, 12, 16], help="batch sizes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="one problem each")
    parser.add_argument("--method", choices=spear_np.METHODS, default="sampling", help="of this solver")
    parser.add_argument(
        "--threads", type=int, default=1, help="cores for the SVDs of the published algorithm"
    )
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds for each of the two")
    parser.add_argument("--dump", type=Path, help="a dump with truth, instead of fresh problems")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    return parser.parse_args()


def problems(options: argparse.Namespace) -> Iterator[tuple[str, Problem]]:
    """Yield the problems and what to call them: fresh ones, or the first layer of a dump for every seed."""
    if options.dump is not None:
        problem = read_problem(options.dump)
        for seed in options.seeds:
            yield f"{options.dump.name}, seed {seed}", problem
        return
    for b in options.b:
        for seed in options.seeds:
            yield f"m = {options.m}, b = {b}, seed {seed}", make_problem(options.m, b, seed)


def read_problem(path: Path) -> Problem:
    """Return the first layer of a dump with its truth."""
    with open_dump(path) as dump:
        record = dump.records[0]
        layer = record.layers[0]
        arrays = {name: array[...] for name, array in layer.arrays.items()}
        if layer.truth is None:
            msg = f"{path} holds no truth to check the answers against"
            raise SystemExit(msg)
        truth = layer.truth[...].astype(np.float64)
    images = Images(truth, np.zeros(len(truth), np.int64), (1, 1, truth.shape[1]), 0.0, 1.0)
    return Problem(**arrays, images=images, activity=float("nan"))


def warm_up(method: str) -> None:
    """Let both load what they load once, on a problem that takes neither long."""
    arguments = make_problem(50, 3, seed=0).arguments
    published.recover(**arguments, time_limit=5)
    spear_np.invert(**arguments, method=method, time_limit=5)


def compare(problem: Problem, name: str, options: argparse.Namespace) -> Row:
    """Solve one problem twice."""
    seed = int(name.rpartition(" ")[2])
    theirs, seconds, cpu = timed(
        lambda: published.recover(
            **problem.arguments, seed=seed, time_limit=options.time_limit, threads=options.threads
        )
    )
    published_row = {
        "solved": theirs.inputs is not None,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "samples": theirs.submatrices,
        "agreement": theirs.agreement,
        "error": None if theirs.inputs is None else problem.error(theirs.inputs),
    }
    ours, seconds, cpu = timed(
        lambda: spear_np.invert(
            **problem.arguments, method=options.method, seed=seed, time_limit=options.time_limit
        )
    )
    solver_row = {
        "solved": ours.status == "exact",
        "status": str(ours.status),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "samples": ours.proposals,
        "error": problem.error(np.asarray(ours.inputs)) if ours.status == "exact" else None,
    }
    return {
        "name": name,
        "b": len(problem.images.inputs),
        "seed": seed,
        "published": published_row,
        "spear_np": solver_row,
    }


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what `run` returns, and the wall clock and CPU seconds it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def line(row: Row) -> str:
    """One finished problem for the terminal."""
    theirs, ours = row["published"], row["spear_np"]
    return (
        f"{row['name']}: published {'solved' if theirs['solved'] else 'NOT solved'} in {theirs['seconds']:.2f} s "
        f"({theirs['samples']:,} samples), spear-np {ours['status']} in {ours['seconds']:.2f} s "
        f"({ours['samples']:,} samples): {theirs['seconds'] / ours['seconds']:.1f} times as fast"
    )


def report(rows: list[Row], options: argparse.Namespace, setting: dict[str, Any]) -> str:
    """Return the table: one line for each batch size."""
    lines: list[tuple[Any, ...]] = []
    for b in sorted({row["b"] for row in rows}):
        cell = [row for row in rows if row["b"] == b]
        theirs, ours = [row["published"] for row in cell], [row["spear_np"] for row in cell]
        # An unfinished published run took at least this long, so the ratio is a lower bound.
        bound = "" if all(run["solved"] for run in theirs) else "≥ "
        lines.append(
            (
                b,
                solved(theirs),
                solved(ours),
                f"{median(theirs, 'seconds'):.2f}",
                f"{median(ours, 'seconds'):.3f}",
                f"{bound}{total(theirs, 'seconds') / total(ours, 'seconds'):.1f}",
                f"{bound}{statistics.median(pairwise(cell, 'seconds')):.1f}",
                f"{bound}{total(theirs, 'cpu_seconds') / total(ours, 'cpu_seconds'):.1f}",
                f"{bound}{total(theirs, 'samples') / max(total(ours, 'samples'), 1):.1f}",
                f"{largest(theirs)} / {largest(ours)}",
            )
        )
    header = (
        "b",
        "published solved",
        "spear-np exact",
        "published, median s",
        "spear-np, median s",
        "ratio of total times",
        "median ratio of times",
        "ratio of total CPU times",
        "ratio of total samples",
        "largest error, published / spear-np",
    )
    what = options.dump.name if options.dump is not None else f"m = {options.m}, Fashion-MNIST, float32"
    return (
        f"{what}; seeds {', '.join(map(str, options.seeds))}; spear-np with method `{options.method}`; "
        f"published algorithm with {options.threads} thread(s). Errors are relative to the data range.\n\n"
        f"{environment.markdown(header, lines)}\n{environment.sentence(setting)}\n"
    )


def solved(runs: list[Row]) -> str:
    return f"{sum(run['solved'] for run in runs)}/{len(runs)}"


def median(runs: list[Row], key: str) -> float:
    return float(statistics.median(run[key] for run in runs))


def total(runs: Iterable[Row], key: str) -> float:
    return float(sum(run[key] for run in runs))


def pairwise(cell: list[Row], key: str) -> list[float]:
    """Return the ratio for every problem of a cell."""
    return [row["published"][key] / row["spear_np"][key] for row in cell]


def largest(runs: list[Row]) -> str:
    errors = [run["error"] for run in runs if run["error"] is not None]
    return f"{max(errors):.1e}" if errors else "–"


if __name__ == "__main__":
    main()
