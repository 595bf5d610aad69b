"""Subset sampling in two checkouts of this repository, turn by turn: subsets a second, and until all inputs are found.

    git worktree add /tmp/before v1.0
    python -m benchmarks.sampling_rate /tmp/before --save sampling_rate

Every turn is a process of its own. It times blocks of the search alone with nothing known, and whole inversions with
`method="sampling"`, polish and certificate included; processor time of one thread, so that other processes count little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import environment

HERE = Path(__file__).parent.parent
SIDES = ("before", "after")
TURN = """
import json, sys, time
import numpy as np
import spear_np
from benchmarks.problems import make_problem
from spear_np.backend.devices import CPU
from spear_np.directions.pool import Pool
from spear_np.factors.factorize import factorize
from spear_np.search.sampling import Sampling
m, b, seed, blocks, time_limit = json.loads(sys.argv[1])
problem = make_problem(m, b, seed)
space = factorize(spear_np.LayerGradients(**problem.arguments), CPU).space
pool, search, rng = Pool.empty(b, space.U.shape[0]), Sampling(), np.random.default_rng(seed)
search.propose(space, pool, rng)  # what a first call loads is not timed
start = time.process_time()
examined = sum(search.propose(space, pool, rng).examined for _ in range(blocks))
block_seconds = time.process_time() - start
start = time.process_time()
result = spear_np.invert(**problem.arguments, method="sampling", seed=seed, time_limit=time_limit)
seconds = time.process_time() - start
print(json.dumps({"rate": examined / block_seconds, "status": str(result.status), "proposals": result.proposals,
                  "seconds": seconds, "error": problem.error(np.asarray(result.inputs))}))
"""


def main() -> int:
    options = parse()
    trees = dict(zip(SIDES, (options.before.resolve(), HERE), strict=True))
    rows: list[dict[str, Any]] = []
    for b in options.b:
        for number in range(options.batches):
            order = SIDES if number % 2 == 0 else SIDES[::-1]
            seed = options.first_seed + number
            arguments = (options.m, b, seed, options.blocks, options.time_limit)
            rows.append({"b": b, "seed": seed, **{side: turn(trees[side], *arguments) for side in order}})
            print(
                f"m = {options.m}, b = {b}, seed {seed}: {rows[-1]['before']} {rows[-1]['after']}", flush=True
            )
    commits = {side: commit(tree) for side, tree in trees.items()}
    setting = environment.describe()
    table = (
        f"Fashion-MNIST, float32, m = {options.m}, {options.batches} batches for each b, seeds from {options.first_seed}, one thread; "
        f"before: {commits['before']}, after: {commits['after']}.\n\n{report(rows)}\n{environment.sentence(setting)}\n"
    )
    print("\n" + table)
    if options.save:
        data = {"environment": setting, "commits": commits, "rows": rows}
        environment.save(environment.RESULTS / options.save, data, table)
    return int(
        any(
            row[side]["status"] == "exact" and not row[side]["error"] < 1e-4 for row in rows for side in SIDES
        )
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("-m", type=int, default=200)
    parser.add_argument("-b", type=int, nargs="+", default=[8, 12, 16, 20, 24])
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=20, help="of the search alone")
    parser.add_argument("--first-seed", type=int, default=71001)
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds a batch")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    return parser.parse_args()


def turn(tree: Path, *arguments: float) -> dict[str, Any]:
    """Run `TURN` with the packages of a checkout."""
    paths = os.pathsep.join(str(tree / folder) for folder in (".", "io"))
    variables = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", TURN, json.dumps(arguments)],
        env=variables,
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def commit(tree: Path) -> str:
    """The short hash of a checkout."""
    git = ["git", "-C", str(tree), "describe", "--always", "--dirty=+"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def report(rows: list[dict[str, Any]]) -> str:
    """Return the table: a line for each batch size."""
    lines = []
    for b in dict.fromkeys(row["b"] for row in rows):
        members = [row for row in rows if row["b"] == b]
        cells: list[Any] = [b]
        for name in ("rate", "whole"):
            each = {side: [_rate(row[side], name) for row in members] for side in SIDES}
            cells += [f"{statistics.median(each[side]) / 1e6:.3f}" for side in SIDES]
            ratios = [new / old for old, new in zip(each["before"], each["after"], strict=True)]
            cells.append(f"{statistics.median(ratios):.1f}")
        cells += [
            f"{sum(row[side]['status'] == 'exact' for row in members)} of {len(members)}, "
            f"{statistics.median(row[side]['seconds'] for row in members):.2f} s"
            for side in SIDES
        ]
        lines.append(tuple(cells))
    header = (
        "b",
        "million subsets a second, search alone, before",
        "after",
        "times",
        "inside whole inversions, before",
        "after",
        "times",
        "exact and median CPU time before",
        "after",
    )
    return environment.markdown(header, lines)


def _rate(side: dict[str, Any], name: str) -> float:
    """Subsets a second of the search alone, or inside a whole inversion."""
    rate: float = side["rate"] if name == "rate" else side["proposals"] / side["seconds"]
    return rate


if __name__ == "__main__":
    sys.exit(main())
