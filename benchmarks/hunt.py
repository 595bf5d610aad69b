"""Thousands of layers, most of them awkward or tampered with, in search of an answer that breaks its promise.

    python -m benchmarks.hunt --count 10000 --workers 2 --save hunt
    python -m benchmarks.hunt --first-seed 935 --count 1 --kinds random

Every seed is one layer of every kind chosen. What an answer promises, and the judge that holds it against the truth,
are in tests/promises.py: `exact` rows are distinct true inputs within 1e-4 of the data range, none is missing, and
whatever the status, no row is further from the truth than its bound says. The exit status is 1 if an answer was
wrongly called exact, or the solver crashed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import environment
from tests.altered import altered_case
from tests.awkward import AWKWARD, LIMIT, tiny_case
from tests.cases import Case, random_case
from tests.promises import broken_promises

Row = dict[str, Any]


def awkward(seed: int) -> Case:
    names = list(AWKWARD)
    return AWKWARD[names[seed % len(names)]](np.random.default_rng([seed, 192]))


KINDS: dict[str, Callable[[int], Case | None]] = {
    "random": random_case,
    "awkward": awkward,
    "altered": altered_case,
    "tiny float32": lambda seed: tiny_case(seed, np.float32),
    "tiny float64": lambda seed: tiny_case(seed, np.float64),
}


def main() -> int:
    options = parse()
    start, rows = time.perf_counter(), []
    jobs = [
        (kind, seed)
        for seed in range(options.first_seed, options.first_seed + options.count)
        for kind in options.kinds
    ]
    with ProcessPoolExecutor(options.workers) as pool:
        for row in pool.map(run, jobs, chunksize=8):
            rows.append(row)
            if row["broken"]:
                print(f"{row['kind']}, seed {row['seed']}, {row['status']}: {row['broken']}", flush=True)
    table = report(rows, options, time.perf_counter() - start)
    print("\n" + table)
    if options.save:
        broken = [row for row in rows if row["broken"]]
        counts = [
            {"kind": kind, "status": status, "runs": runs} for (kind, status), runs in count(rows).items()
        ]
        setting = {**vars(options), "environment": environment.describe()}
        environment.save(
            environment.RESULTS / options.save, {**setting, "counts": counts, "broken": broken}, table
        )
    return 1 if any(row["broken"] and row["status"] in ("exact", "crash") for row in rows) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first-seed", type=int, default=100_000)
    parser.add_argument("--count", type=int, default=1000, help="seeds")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    return parser.parse_args()


def run(job: tuple[str, int]) -> Row:
    """Invert one layer and judge the answer."""
    kind, seed = job
    case = KINDS[kind](seed)
    row = {"kind": kind, "seed": seed, "status": "no layer", "broken": ""}
    if case is None:
        return row
    try:
        with threadpool_limits(limits=1):
            result = case.invert(max_proposals=LIMIT, time_limit=60)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the hunt is for
        return row | {"status": "crash", "broken": f"{case.name}: {type(error).__name__}: {error}"}
    broken = broken_promises(result, case.truth, tampered=case.tampered)
    return row | {"status": str(result.status), "broken": "; ".join([case.name, *broken]) if broken else ""}


def count(rows: list[Row]) -> Counter[tuple[str, str]]:
    return Counter((row["kind"], row["status"]) for row in rows)


def report(rows: list[Row], options: argparse.Namespace, seconds: float) -> str:
    """Return the table: one line for each kind."""
    statuses = ("exact", "approximate", "partial", "failed", "crash")
    lines: list[tuple[Any, ...]] = []
    for kind in options.kinds:
        members = [row for row in rows if row["kind"] == kind and row["status"] != "no layer"]
        broken = [row for row in members if row["broken"] and row["status"] != "crash"]
        false = sum(row["status"] == "exact" for row in broken)
        lines.append(
            (
                kind,
                len(members),
                *(sum(row["status"] == status for row in members) for status in statuses),
                false,
                len(broken) - false,
            )
        )
    header = ("layers", "runs", *statuses, "false `exact`", "other broken bounds")
    last = options.first_seed + options.count - 1
    return (
        f"Seeds {options.first_seed} to {last}, at most {LIMIT:,} proposals each, {seconds / 60:.0f} minutes.\n\n"
        f"{environment.markdown(header, lines)}\n{environment.sentence(environment.describe())}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
