"""What many records cost: processes against one, time beside the inversions, memory.

    python -m benchmarks.federation --save federation                              # 1,000 records, one process and two
    python -m benchmarks.federation -m 40 -b 3 -n 20 --records 5000 --jobs 2 --save federation_5000
    python -m benchmarks.federation -m 40 -b 3 -n 20 --records 1 --layers 200 --save federation_layers

Makes a dump of so many records (Gaussian inputs, a network that all share), inverts it in one process and with `--jobs`
processes, each time as a program of its own, and prints: wall-clock times and their ratio; the time of one process that
is not spent inside the solver, by record; the memory (RSS, of the largest process) after a tenth and nine tenths of the
records. Linux only. Run it on a machine that does nothing else: the load at the start is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment
from spear_io import DumpWriter, LayerArrays, RecordInfo, open_inversion
from tests.federations import environment as process_environment

LOOKS = 100
"""How often the memory is looked at."""
CHILD = """
import json, re, sys, time
from pathlib import Path
from contextlib import nullcontext
from spear_io.many.executors import hired
from spear_io.many.run import Nobody, Request, invert_request
from spear_io.many.selection import Wanted

dump, out, jobs, target, every = sys.argv[1:]

def resident(process):
    try:
        return int(re.search(r"VmRSS:\\s+(\\d+)", Path(f"/proc/{process}/status").read_text())[1])
    except (OSError, TypeError):
        return 0

class Watches(Nobody):
    def __init__(self):
        self.memory, self.ended = [], 0

    def end(self, task, done):
        self.ended += 1
        if self.ended % int(every):  # to look takes a quarter of a millisecond
            return
        children = Path("/proc/self/task").glob("*/children")
        workers = [child for path in children for child in path.read_text().split()]
        self.memory.append([resident("self"), *map(resident, workers)])

watches = Watches()
started = time.perf_counter()
with hired(int(jobs) or None, None) as crew:
    invert_request(Request([dump], Path(out), wanted=Wanted(layers=["fc*"])), crew, watches, nullcontext(lambda: False))
seconds = time.perf_counter() - started
Path(target).write_text(json.dumps({"seconds": seconds, "memory": watches.memory}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", type=int, default=200, help="units")
    parser.add_argument("-n", type=int, default=784, help="features")
    parser.add_argument("-b", type=int, default=20, help="inputs of a batch")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=1, help="of each record, all of them inverted")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where there is room for the files")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    options = parser.parse_args()

    setting = environment.describe()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_dump(folder / "dump.h5", options)
        tasks = options.records * options.layers
        runs = {jobs: run(folder, jobs, tasks) for jobs in (0, options.jobs)}
    one, several = runs[0], runs[options.jobs]
    rows = [
        (
            "one process" if jobs == 0 else f"--jobs {jobs}",
            f"{result['seconds']:.1f}",
            f"{result['solver']:.1f}",
            f"{result['layers'] / result['seconds']:.2f}",
            f"{result['early'] / 1024:.0f}",
            f"{result['late'] / 1024:.0f}",
            f"{result['late'] / result['early'] - 1:+.1%}",
        )
        for jobs, result in runs.items()
    ]
    beside = 1000 * (one["seconds"] - one["solver"]) / one["layers"]
    header = (
        "",
        "wall clock, s",
        "in the solver, s",
        "layers a second",
        "RSS early, MB",
        "late, MB",
        "change",
    )
    table = (
        f"{options.records} records, {options.layers} layer(s), m = {options.m}, n = {options.n}, b = {options.b}: "
        f"{one['statuses']}\n\n{environment.markdown(header, rows)}\n"
        f"{options.jobs} processes are {one['seconds'] / several['seconds']:.2f} times as fast as one; beside the "
        f"inversions one process takes {beside:.1f} ms a layer. RSS of the largest process, after a tenth and nine "
        f"tenths of the layers.\n\n{environment.sentence(setting)}\n"
    )
    print(table)
    if options.save:
        said = {key: value for key, value in vars(options).items() if key != "folder"}
        data = {
            "environment": setting,
            "options": said,
            "runs": {str(jobs): result for jobs, result in runs.items()},
        }
        environment.save(environment.RESULTS / options.save, data, table)


def write_dump(path: Path, options: argparse.Namespace) -> None:
    """Write records that share their network; each layer has inputs of its own."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((options.m, options.n)) / options.n**0.5 for _ in range(options.layers)]
    bias = 0.1 * rng.standard_normal(options.m)
    with DumpWriter(path) as dump:
        for record in range(options.records):
            layers = {}
            for number, weight in enumerate(weights):
                inputs = rng.standard_normal((options.b, options.n))
                output_grad = rng.standard_normal((options.b, options.m)) * (inputs @ weight.T + bias > 0)
                grads = output_grad.T @ inputs, output_grad.sum(axis=0)
                arrays = [array.astype(np.float32) for array in (*grads, weight, bias)]
                if record:
                    arrays = arrays[:2]
                layers[f"fc{number}"] = LayerArrays(*arrays)
            info = RecordInfo(client=record, round=1, batch_size=options.b)
            dump.add_record(f"record-{record}", layers, info=info, model_of="record-0" if record else None)


def run(folder: Path, jobs: int, tasks: int) -> dict[str, Any]:
    """Invert the layers of the dump, so many `tasks`, in a process of its own, and return what it took."""
    out, target = folder / f"out-{jobs}.h5", folder / "run.json"
    every = max(1, tasks // LOOKS)
    words = [sys.executable, "-c", CHILD, *map(str, (folder / "dump.h5", out, jobs, target, every))]
    subprocess.run(words, check=True, env=process_environment())
    told = json.loads(target.read_text())
    with open_inversion(out) as inversion:
        solver = sum(layer.brief.seconds for layer in inversion.layers)
        statuses = [str(layer.status) for layer in inversion.layers]
    memory = [max(sizes) for sizes in told["memory"]]
    count = len(statuses)
    return {
        "seconds": told["seconds"],
        "solver": solver,
        "layers": count,
        "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
        "early": memory[len(memory) // 10],
        "late": memory[9 * len(memory) // 10],
    }


if __name__ == "__main__":
    main()
