"""How often `invert` is exact on fresh batches, and whether it ever says so wrongly.

    python -m benchmarks.success_rate 200,4 200,8 200,12 200,16 --method sampling
    python -m benchmarks.success_rate 200,12 --source digits --dtype float64 --batches 5

Every batch has new images and a new network. Results go to a file of JSON lines as they come, and what is already in
it is not run again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

import spear_np
from benchmarks import environment
from benchmarks.problems import Source, make_problem
from benchmarks.runs import Results, Row, exit_status, measure

DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
SETTING = ("m", "b", "source", "depth", "dtype", "method", "device")
"""What makes a cell."""
FIELDS = (*SETTING, "seed")
"""What tells two lines of the results apart."""


def main() -> int:
    options = parse()
    results = Results.read(options.results, FIELDS)
    rows = []
    for m, b in options.cells:
        for seed in range(options.first_seed, options.first_seed + options.batches):
            values = (m, b, *(getattr(options, name) for name in SETTING[2:]), seed)
            setting = dict(zip(FIELDS, values, strict=True))
            row = results.once(setting, partial(run, setting, options.time_limit))
            rows.append(row)
            print(line(row), flush=True)
    print("\n" + report(rows))
    return exit_status(rows, line)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cells", nargs="+", type=cell, metavar="M,B", help="units and batch size")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1001)
    parser.add_argument("--method", choices=spear_np.METHODS, default="auto")
    parser.add_argument("--device", default="cpu", help="cpu, gpu or gpu:N")
    parser.add_argument("--source", choices=get_args(Source), default="fashion-mnist")
    parser.add_argument("--depth", type=int, default=6, help="layers of the network")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds a batch")
    parser.add_argument("--results", type=Path, default=environment.RESULTS / "success_rate.jsonl")
    return parser.parse_args()


def cell(text: str) -> tuple[int, int]:
    """Read "200,16"."""
    m, b = text.split(",")
    return int(m), int(b)


def run(setting: Row, time_limit: float) -> Row:
    """Invert one fresh batch and hold the answer against the truth."""
    m, b, source, depth, dtype, method, device, seed = (setting[name] for name in FIELDS)
    problem = make_problem(m, b, seed, source=source, depth=depth, dtype=DTYPES[dtype])
    return measure(problem, precision=dtype, method=method, device=device, seed=seed, time_limit=time_limit)


def line(row: Row) -> str:
    """One finished batch for the terminal."""
    error = "–" if row["error"] is None else f"{row['error']:.1e}"
    return (
        f"m = {row['m']}, b = {row['b']}, {row['source']}, {row['dtype']}, {row['method']}, seed {row['seed']}: "
        f"{row['status']} {row['found']}/{row['b']}, error {error}, {row['seconds']:.2f} s, "
        f"{row['proposals']:,} proposals"
    )


def report(rows: list[Row]) -> str:
    """Return the table: one line for each cell."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cells.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    lines = []
    for setting, members in cells.items():
        exact = [row for row in members if row["status"] == "exact"]
        errors = [row["error"] for row in exact if row["error"] is not None]
        seconds = [row["seconds"] for row in members]
        lines.append(
            (
                *setting,
                f"{len(exact)}/{len(members)}",
                sum(row["wrong"] for row in members),
                f"{max(errors):.1e}" if errors else "–",
                f"{statistics.median(seconds):.2f}",
                f"{max(seconds):.2f}",
                f"{statistics.median(row['proposals'] for row in members):,.0f}",
            )
        )
    header = (
        *SETTING,
        "exact",
        "wrongly exact",
        "largest error",
        "median s",
        "maximum s",
        "median proposals",
    )
    return environment.markdown(header, lines)


if __name__ == "__main__":
    sys.exit(main())
