"""Peak memory of `spear-np invert` on gradients that are much larger than what it may hold.

    python -m benchmarks.memory                 # crops of photographs, m = 200, n = 150,528, b = 10
    python -m benchmarks.memory --times 10      # made-up inputs, ten times as wide

The gradient of the first takes 120 MB on disk, that of the second 1.2 GB, and the weights as much again. Linux only:
the peak is read from /proc.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment
from benchmarks.problems import make_problem
from spear_io import LayerArrays, write_dump

Array = np.ndarray[Any, Any]

PHOTO = 3 * 224 * 224
"""Numbers in one crop of a photograph."""

# VmHWM is the peak of the process image alone; ru_maxrss would start at what this process, the parent, had in use.
CHILD = """
import re, sys
import h5py, numpy, scipy.linalg, rich.progress, spear_np, spear_io.cli.main, spear_io.many.run
target, *arguments = sys.argv[1:]
status = spear_io.cli.main.main(arguments) if arguments else 0
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
open(target, "w").write(peak)
sys.exit(status)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", type=int, default=200, help="units of the layer")
    parser.add_argument("-b", type=int, default=10, help="inputs in the batch")
    parser.add_argument(
        "--times", type=int, default=1, help="width in photographs; above 1 inputs are made up"
    )
    parser.add_argument("--width", type=int, help="width in numbers, of made-up inputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds for the search")
    parser.add_argument("--folder", type=Path, help="where there is room for the files")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    options = parser.parse_args()

    setting = environment.describe()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        dump, inverted = folder / "dump.h5", folder / "inverted.h5"
        if options.width is None and options.times == 1:
            write_photos(dump, options.m, options.b, options.seed)
        else:
            write_made_up(dump, options.m, options.b, options.width or options.times * PHOTO, options.seed)
        imports, _ = peak(folder)
        start = time.perf_counter()
        search = ("--method", options.method, "--seed", options.seed, "--time-limit", options.time_limit)
        whole, status = peak(folder, "invert", dump, "-o", inverted, *search)
        seconds = time.perf_counter() - start
        _, evaluated = peak(folder, "evaluate", inverted, dump)
        size = dump.stat().st_size

    row = {
        "n": options.width or options.times * PHOTO,
        "file_MB": round(size / 1e6),
        "imports_MB": round(imports / 1e6, 1),
        "above_imports_MB": round((whole - imports) / 1e6, 1),
        "seconds": round(seconds, 1),
        "invert_exit_status": status,
        "evaluate_exit_status": evaluated,
    }
    table = (
        f"m = {options.m}, b = {options.b}, float32, method `{options.method}`\n\n"
        f"{environment.markdown(tuple(row), [tuple(row.values())])}\n{environment.sentence(setting)}\n"
    )
    print(table)
    if options.save:
        environment.save(environment.RESULTS / options.save, {"environment": setting, **row}, table)


def peak(folder: Path, *arguments: Any) -> tuple[int, int]:
    """Run `spear-np` with these arguments, or only its imports; return the peak in bytes and the exit status."""
    target = folder / "peak"
    command = [sys.executable, "-c", CHILD, target, *arguments]
    status = subprocess.run([str(part) for part in command], check=False).returncode
    return 1024 * int(target.read_text()), status


def write_photos(path: Path, m: int, b: int, seed: int) -> None:
    """Write the first layer of a network that saw crops of real photographs."""
    problem = make_problem(m, b, seed, source="photos", depth=3)
    inputs = problem.images.inputs.astype(np.float32)
    write_dump(path, {"0": LayerArrays(**problem.arguments, inputs=inputs)}, producer="benchmarks.memory")


class Rows:
    """A float32 matrix (m, n) of which only the rows that are asked for exist."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape

    def row(self, j: int) -> Array:
        """Make row j (n,)."""
        raise NotImplementedError

    def __getitem__(self, rows: slice) -> Array:
        """Make a block of rows."""
        return np.stack([self.row(j) for j in range(*rows.indices(self.shape[0]))]).astype(np.float32)


class Weights(Rows):
    """Uniform in ±1/√n, as PyTorch draws them."""

    def __init__(self, shape: tuple[int, int], seed: int) -> None:
        super().__init__(shape)
        self._seed = seed

    def row(self, j: int) -> Array:
        n = self.shape[1]
        uniform = np.random.default_rng((self._seed, j)).random(n, dtype=np.float32)
        return (2 * uniform - 1) / np.float32(np.sqrt(n))


class Gradient(Rows):
    """D Xᵀ for D = `output_grad` (m, b) and X = `inputs` (b, n), one input per row."""

    def __init__(self, output_grad: Array, inputs: Array) -> None:
        super().__init__((len(output_grad), inputs.shape[1]))
        self._output_grad = output_grad
        self._inputs = inputs

    def row(self, j: int) -> Array:
        return np.asarray(self._output_grad[j] @ self._inputs)


def write_made_up(path: Path, m: int, b: int, n: int, seed: int) -> None:
    """Write a layer of any width with noise for inputs and for the gradients of its active units."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((b, n), dtype=np.float32)
    bias = (0.01 * rng.standard_normal(m)).astype(np.float32)
    weight = Weights((m, n), seed)
    outputs = np.stack([weight.row(j) @ inputs.T for j in range(m)]) + bias[:, None]
    output_grad = np.where(outputs > 0, rng.standard_normal((m, b)), 0).astype(np.float32)
    layer = LayerArrays(Gradient(output_grad, inputs), output_grad.sum(1), weight, bias, inputs=inputs)
    write_dump(path, {"0": layer}, producer="benchmarks.memory")


if __name__ == "__main__":
    main()
