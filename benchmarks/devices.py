"""What a processor makes of the search: matrix products, the descent's share of their speed, whole inversions.

    python -m benchmarks.devices --save devices_cpu
    python -m benchmarks.devices --device gpu --save devices_gpu

One call measures everything on one device, and on the CPU beside it if the device is a GPU.
"""

from __future__ import annotations

import argparse

from benchmarks import environment
from benchmarks.gpu_steps import descent_step, product_rate
from benchmarks.problems import make_problem
from benchmarks.runs import Row, measure
from benchmarks.success_rate import cell
from spear_np.backend.devices import Device, device_for
from spear_np.backend.work import suitable_threads

CELLS = ((200, 20), (200, 50), (400, 100), (1000, 120), (2000, 200))
STARTS, STEPS = 256, 100
REPEATS = 5
SQUARE = 3000
"""Size of the matrices whose product is the yardstick."""


def main() -> None:
    options = parse()
    devices = ["cpu"] if options.device == "cpu" else ["cpu", options.device]
    peaks = {name: sgemm_rate(device_for(name)) for name in devices}
    for name in devices:
        # The first call on a device compiles and loads.
        measure(make_problem(80, 8, options.seed), device=name, seed=options.seed)
    rows: list[Row] = []
    for m, b in options.cells:
        for name in devices:
            row = {"device": name, "m": m, "b": b, "sgemm": peaks[name], **descent_rate(name, m, b)}
            problem = make_problem(m, b, options.seed)
            row |= measure(problem, device=name, seed=options.seed, time_limit=options.time_limit)
            rows.append(row)
            print(line(row), flush=True)
    setting = environment.describe()
    table = (
        f"Fashion-MNIST, float32, seed {options.seed}; the descent with {STARTS} starts; yardstick the product of two "
        f"float32 matrices of {SQUARE} x {SQUARE}. Small layers use one core, the yardstick all.\n\n"
        f"{report(rows)}\n{environment.sentence(setting)}\n"
    )
    print("\n" + table)
    if options.save:
        environment.save(environment.RESULTS / options.save, {"environment": setting, "rows": rows}, table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, gpu or gpu:N")
    parser.add_argument("--cells", nargs="+", type=cell, default=CELLS, metavar="M,B")
    parser.add_argument("--seed", type=int, default=9001)
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds a batch")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    return parser.parse_args()


def sgemm_rate(device: Device) -> float:
    """Floating-point operations a second of a product of two large float32 matrices, which stays on the device."""
    with device.activate():
        return product_rate(device, SQUARE, REPEATS)


def descent_rate(name: str, m: int, b: int) -> Row:
    """Run the loop of the descent without merging, and count the operations of its matrix products."""
    device = device_for(name)
    with device.activate(), suitable_threads(device, m * b):
        step = descent_step(device, m, b, STARTS, STEPS, REPEATS)
    return {"descent": step["rate"], "descent_seconds": step["milliseconds"] * STEPS / 1e3}


def line(row: Row) -> str:
    """One cell on one device for the terminal."""
    return (
        f"{row['device']}, m = {row['m']}, b = {row['b']}: descent at {row['descent'] / 1e9:.0f} of "
        f"{row['sgemm'] / 1e9:.0f} GFLOP/s, {row['status']} in {row['seconds']:.2f} s"
    )


def report(rows: list[Row]) -> str:
    """Return the table: one line for each cell and device."""
    header = ("device", "m", "b", "sgemm GFLOP/s", "descent GFLOP/s", "share", "status", "seconds in invert")
    return environment.markdown(
        header,
        [
            (
                row["device"],
                row["m"],
                row["b"],
                f"{row['sgemm'] / 1e9:.0f}",
                f"{row['descent'] / 1e9:.0f}",
                f"{row['descent'] / row['sgemm']:.2f}",
                row["status"],
                f"{row['seconds']:.2f}",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
