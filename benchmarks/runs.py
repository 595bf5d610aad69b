"""Runs of `invert` on problems with known answers, kept in a file of JSON lines as they finish."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import spear_np
from benchmarks import environment
from benchmarks.problems import Problem
from spear_io.show.evaluate import EXACT
from spear_np.backend.host import to_host

Row = dict[str, Any]
Key = tuple[Any, ...]


def measure(problem: Problem, **options: Any) -> Row:
    """Invert a problem with these options of `invert`, and return what came of it, held against the truth."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = spear_np.invert(**problem.arguments, **options)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return {
        **held(problem, result),
        "seconds": round(seconds, 4),
        "cpu_seconds": round(cpu_seconds, 4),
        "proposals": result.proposals,
        "activity": round(problem.activity, 3),
        "reason": result.reason,
        "environment": environment.describe(),
    }


def held(problem: Problem, result: spear_np.Inversion) -> Row:
    """What an answer is worth against the truth.

    A batch is wrong if it is called exact although a row is none of the inputs, or an input that left a trace in the
    gradient is missing.
    """
    inputs = to_host(result.inputs)
    partners = problem.partners(inputs, EXACT)
    matched = partners >= 0
    faithful = len(set(partners[matched].tolist())) == result.found and bool(
        np.all(matched | ~problem.visible)
    )
    error = problem.error(inputs)
    return {
        "status": str(result.status),
        "found": result.found,
        "recovered": int(matched.sum()),
        "visible": int(problem.visible.sum()),
        "error": error if np.isfinite(error) else None,
        "wrong": result.status == "exact" and not faithful,
    }


@dataclass(frozen=True)
class Results:
    """Finished runs in a file of JSON lines; what is already in it is not run again."""

    path: Path
    names: tuple[str, ...]
    """Fields that tell two runs apart."""
    rows: dict[Key, Row]
    """What is in the file."""

    @classmethod
    def read(cls, path: Path, names: tuple[str, ...]) -> Results:
        """Read a file, which need not exist; a line that was left incomplete counts as missing."""
        rows = {}
        for text in path.read_text().splitlines() if path.exists() else ():
            try:
                row = json.loads(text)
            except json.JSONDecodeError:
                continue
            rows[tuple(row[name] for name in names)] = row
        return cls(path, names, rows)

    def get(self, setting: Row) -> Row | None:
        """Return the finished run of a setting."""
        return self.rows.get(tuple(setting[name] for name in self.names))

    def once(self, setting: Row, run: Callable[[], Row]) -> Row:
        """Return the run of a setting: from the file, or by running it and writing it there."""
        row = self.get(setting)
        if row is None:
            row = {**setting, **run()}
            self._append(row)
            self.rows[tuple(setting[name] for name in self.names)] = row
        return row

    def _append(self, row: Row) -> None:
        """Write a finished run to the end of the file, on a line of its own."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = (
            self.path.exists() and self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
        )
        with self.path.open("a") as file:
            file.write(("\n" if torn else "") + json.dumps(row) + "\n")


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """Return an argument type that takes one of `names`; unlike `choices`, it leaves `nargs="*"` its empty list."""

    def read(text: str) -> str:
        if text not in names:
            msg = f"unknown: {text!r}; expected one of {', '.join(names)}"
            raise argparse.ArgumentTypeError(msg)
        return text

    return read


def concluded(path: Path, rows: list[Row], table: str, line: Callable[[Row], str]) -> int:
    """Print the table, store it with the rows and the machine beside `path`, and return the `exit_status`."""
    print("\n" + table)
    environment.save(path, {"environment": environment.describe(), "rows": rows}, table)
    return exit_status(rows, line)


def exit_status(rows: list[Row], line: Callable[[Row], str]) -> int:
    """Return 1 if a run was wrongly called exact, and say which on standard error; else 0."""
    wrong = [row for row in rows if row["wrong"]]
    for row in wrong:
        print(f"WRONG although marked exact: {line(row)}", file=sys.stderr)
    return 1 if wrong else 0
