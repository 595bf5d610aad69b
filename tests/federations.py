"""Dumps of many small records, and inversions compared to the last byte but for times."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from spear_io import DumpWriter, LayerArrays, RecordInfo

ROOT = Path(__file__).parent.parent
RUN = "import sys; from spear_io.cli.main import main; sys.exit(main())"

Floats = np.ndarray[Any, np.dtype[Any]]


def gradients_of(inputs: Floats, m: int, seed: int) -> LayerArrays:
    """Return what a ReLU layer of `m` units with random weights and an arbitrary loss shares of `inputs` (b, n)."""
    rng = np.random.default_rng(seed)
    b, n = inputs.shape
    weight, bias = rng.standard_normal((m, n)) / np.sqrt(n), 0.1 * rng.standard_normal(m)
    output_grad = rng.standard_normal((b, m)) * (inputs @ weight.T + bias > 0)
    return LayerArrays(output_grad.T @ inputs, output_grad.sum(axis=0), weight, bias, inputs=inputs)


def write_federation(
    path: Path, records: int, *, m: int = 40, n: int = 20, b: int = 3, first: int = 0, round_: int = 1
) -> None:
    """Write a dump of `records` clients; inputs and network of each follow from its number and the round."""
    with DumpWriter(path) as dump:
        for number in range(first, first + records):
            rng = np.random.default_rng([number, round_])
            layer = gradients_of(rng.standard_normal((b, n)), m, number)
            info = RecordInfo(client=f"client-{number}", round=round_)
            dump.add_record(f"record-{number}", {"fc1": layer}, info=info)


def timeless(path: Path) -> bytes:
    """Return the bytes of an inversion with zeros in the place of all times that it holds."""
    data = path.read_bytes()
    with h5py.File(path) as file:
        times = [file.attrs["created"].encode()]
        for record in file["records"].values():
            for layer in record["layers"].values():
                times.append(struct.pack("<d", layer.attrs["seconds"]))
                if "history" in layer:
                    times += [struct.pack("<d", seconds) for seconds in layer["history"][:, 3]]
    for stamp in set(times):  # a search of one round ends when its round does, to the last bit at times
        if stamp.strip(b"\0"):
            assert stamp in data
            data = data.replace(stamp, bytes(len(stamp)))
    return data


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'io'}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def spear_process(*arguments: Any, code: str = RUN, **options: Any) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, text=True, env=environment(), **{**streams, **options})


def beside(output: Path, others: Sequence[Path]) -> list[str]:
    """What lies beside an output that should not."""
    return sorted({path.name for path in output.parent.iterdir()} - {path.name for path in (output, *others)})
