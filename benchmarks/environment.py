"""What the figures of a benchmark depend on, and the files they go to."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy

import spear_np

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Return machine, versions, date and how busy the machine is, as plain data."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": f"{blas['name']} {blas['version']}",
        "spear_np": spear_np.__version__,
        "commit": _commit(),
    }


def sentence(environment: dict[str, Any]) -> str:
    """Return the same as one line under a table."""
    return (
        f"{environment['cpu']}, {environment['cores']} cores (load {environment['load']} at the start), "
        f"Python {environment['python']}, NumPy {environment['numpy']} with {environment['blas']}, "
        f"spear-np {environment['spear_np']} at {environment['commit']}, {environment['date'][:10]}"
    )


def save(path: Path, data: Any, table: str) -> None:
    """Write the data as JSON and the table for people beside it: `path` with other suffixes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    path.with_suffix(".md").write_text(table)


def markdown(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return a table; numbers in its cells are formatted by the caller."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else "unknown"


def _commit() -> str:
    """Return the short hash of the source tree, with a + if it has changes."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
