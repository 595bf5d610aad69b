"""Two checkouts of this repository on the same batches, turn by turn in one run: how much faster one is, and as exact.

    git worktree add /tmp/before v1.0
    python -m benchmarks.side_by_side /tmp/before 400,100 sampling:200,16 relu:200,80 --save side_by_side

A cell is M,B, or sampling:M,B with that method, or ACTIVATION:M,B for a chain (`benchmarks/chain.py`). Each checkout has one process for the whole run, and each batch
is inverted by both before the next, the first of them in turn. Ratios are those of the batches, before over after, of which the
median counts: what else the machine does then meets both alike. CPU time tells what work was saved, the time passed what a
caller gains.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
SIDES = ("before", "after")


@dataclass(frozen=True)
class Cell:
    """What is inverted: a layer, by `method`, or the chain that starts with it where `activation` is given."""

    m: int
    b: int
    activation: str | None = None
    method: str = "auto"

    @classmethod
    def read(cls, text: str) -> Cell:
        """Read "400,100", "sampling:200,16" or "relu:200,80"."""
        prefix, _, numbers = text.rpartition(":")
        m, b = (int(number) for number in numbers.split(","))
        if prefix == "sampling":
            return cls(m, b, method=prefix)
        return cls(m, b, prefix or None)

    @property
    def title(self) -> str:
        """For the table."""
        kind = f"chain {self.activation} " if self.activation else f"{self.method} " * (self.method != "auto")
        return f"{kind}{self.m}/{self.b}"


def main() -> int:
    options = parse()
    from benchmarks import environment  # in a worker, this package may be that of the other checkout

    workers = {
        side: Worker(path, options.threads)
        for side, path in zip(SIDES, (options.before, options.after), strict=True)
    }
    rows = []
    for cell in options.cells:
        for number in range(options.batches):
            seed = options.first_seed + number
            order = SIDES if number % 2 == 0 else SIDES[::-1]
            pair = {side: workers[side].invert(cell, seed, options.time_limit) for side in order}
            rows.append({"cell": cell.title, "seed": seed, **pair})
            print(line(rows[-1]), flush=True)
    versions = {side: worker.close() for side, worker in workers.items()}
    table = (
        f"Fashion-MNIST, float32, {options.threads} threads, seeds from {options.first_seed}; before: {versions['before']}, after: "
        f"{versions['after']}.\n\n{report(rows)}\n{environment.sentence(environment.describe())}\n"
    )
    print("\n" + table)
    if options.save:
        data = {"environment": environment.describe(), "versions": versions, "rows": rows}
        environment.save(environment.RESULTS / options.save, data, table)
    return int(any(row[side]["wrong"] for row in rows for side in SIDES))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("cells", nargs="+", type=Cell.read, metavar="[ACTIVATION:|sampling:]M,B")
    parser.add_argument("--after", type=Path, default=HERE, help="this one, unless another is given")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=81001)
    parser.add_argument("--threads", type=int, default=2, help="of BLAS, and of whatever else there is")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds a batch")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    return parser.parse_args()


class Worker:
    """The process of one checkout."""

    def __init__(self, checkout: Path, threads: int) -> None:
        paths = os.pathsep.join(str(checkout.resolve() / folder) for folder in (".", "io"))
        variables = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), "--answer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
            cwd=checkout,
        )
        self._version = f"{self._read()['commit']}"

    def invert(self, cell: Cell, seed: int, time_limit: float) -> dict[str, Any]:
        """Return what came of one batch, see `invert`."""
        assert self._process.stdin is not None
        request = {"cell": asdict(cell), "seed": seed, "time_limit": time_limit}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> str:
        """Return the version, and let the process end."""
        self._process.communicate()
        return self._version

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def answer() -> None:
    """Invert what standard input asks for, one line of JSON each, with the packages of the checkout."""
    from benchmarks import environment

    invert(Cell(200, 16), 1, 60.0)  # what a first call loads is not timed
    print(json.dumps({"commit": environment.describe()["commit"]}), flush=True)
    for text in sys.stdin:
        request = json.loads(text)
        done = invert(Cell(**request["cell"]), request["seed"], request["time_limit"])
        print(json.dumps(done), flush=True)


def invert(cell: Cell, seed: int, time_limit: float) -> dict[str, Any]:
    """Invert one batch: its status, the largest error, whether it is wrongly called exact, rounds and times."""
    import numpy as np

    import spear_np

    if cell.activation is None:
        from benchmarks.problems import make_problem

        problem = make_problem(cell.m, cell.b, seed)
        started = time.perf_counter(), time.process_time()
        result = spear_np.invert(**problem.arguments, method=cell.method, seed=seed, time_limit=time_limit)
        seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
        error, all_visible = problem.error(np.asarray(result.inputs)), bool(np.all(problem.visible))
    else:
        from benchmarks.chain import judged, visible_inputs, wide
        from benchmarks.networks import share

        shared = share(wide(cell.m, cell.activation), cell.b, seed)
        started = time.perf_counter(), time.process_time()
        result = spear_np.invert_chain(
            shared.layers, method="chain", time_limit=time_limit, loss="cross_entropy"
        )
        seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
        error = judged(shared, result, seconds).worst
        all_visible = bool(np.all(visible_inputs(shared, 0)))
    exact = str(result.status) == "exact"
    return {
        "status": str(result.status),
        "error": error if np.isfinite(error) else None,
        "wrong": exact and all_visible and not error < 1e-4,
        "rounds": len(result.history),
        "seconds": round(seconds, 4),
        "cpu_seconds": round(cpu, 4),
    }


def line(row: dict[str, Any]) -> str:
    """One batch for the terminal."""
    sides = (
        f"{side} {row[side]['status']}, {row[side]['rounds']} rounds, {row[side]['seconds']:.2f} s, "
        f"{row[side]['cpu_seconds']:.2f} s of CPU"
        for side in SIDES
    )
    return f"{row['cell']}, seed {row['seed']}: {'; '.join(sides)}"


def report(rows: list[dict[str, Any]]) -> str:
    """Return the table: a line for each cell."""
    from benchmarks import environment

    lines = []
    for title in dict.fromkeys(row["cell"] for row in rows):
        members = [row for row in rows if row["cell"] == title]
        cells: list[str] = [title]
        for side in SIDES:
            exact = [row[side] for row in members if row[side]["status"] == "exact"]
            worst = max((one["error"] for one in exact if one["error"] is not None), default=None)
            cells += [
                f"{len(exact)} of {len(members)}",
                "–" if worst is None else f"{worst:.1e}",
                f"{statistics.median(row[side]['seconds'] for row in members):.2f}",
            ]
        for name in ("seconds", "cpu_seconds"):
            ratios = [row["before"][name] / row["after"][name] for row in members]
            whole = sum(row["before"][name] for row in members) / sum(row["after"][name] for row in members)
            cells.append(f"{statistics.median(ratios):.2f} ({whole:.2f})")
        lines.append(tuple(cells))
    header = (
        "layer",
        *(f"{name} {side}" for side in SIDES for name in ("exact", "worst error", "median s")),
        "times faster: median (of the sums)",
        "the same in CPU time",
    )
    return environment.markdown(header, lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["--answer"]:
        answer()
    else:
        sys.exit(main())
