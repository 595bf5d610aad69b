"""Runs of `invert` on problems with known answers, kept in a file of JSON lines as they finish."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import spear_np
from benchmarks import environment
from benchmarks.problems import Problem
from spear_io.evaluate import EXACT
from spear_np.backend import to_host

Row = dict[str, Any]
Key = tuple[Any, ...]


def measure(problem: Problem, **options: Any) -> Row:
    """Invert a problem with these options of `invert`, and return what came of it, held against the truth.

    A batch is wrong if it is called exact although a row is none of the inputs, or an input that left a trace in the
    gradient is missing.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    result = spear_np.invert(**problem.arguments, **options)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
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
        "seconds": round(seconds, 4),
        "cpu_seconds": round(cpu_seconds, 4),
        "proposals": result.proposals,
        "activity": round(problem.activity, 3),
        "reason": result.reason,
        "environment": environment.describe(),
    }


def read(path: Path, key: Callable[[Row], Key]) -> dict[Key, Row]:
    """Return finished runs under what tells them apart; one that was left incomplete is run again."""
    rows = {}
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                row = json.loads(text)
            except json.JSONDecodeError:
                continue
            rows[key(row)] = row
    return rows


def append(path: Path, row: Row) -> None:
    """Write a finished run to the end of the file, on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write(("\n" if torn else "") + json.dumps(row) + "\n")


def exit_status(rows: list[Row], line: Callable[[Row], str]) -> int:
    """Return 1 if a run was wrongly called exact, and say which on standard error; else 0."""
    wrong = [row for row in rows if row["wrong"]]
    for row in wrong:
        print(f"WRONG although marked exact: {line(row)}", file=sys.stderr)
    return 1 if wrong else 0
