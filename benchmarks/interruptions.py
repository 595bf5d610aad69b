"""Whatever ends a run of many records, nothing that was finished is lost: kills, signals of schedulers, a full disk.

    python -m benchmarks.interruptions --save interruptions                     # all three, as below
    python -m benchmarks.interruptions --kills 100 --terms 20 --records 50

*Kills*: `spear-np invert` on a dump of many records is killed (SIGKILL) at a random moment and taken up with `--resume`;
the file must equal that of an undisturbed run to the last byte, but for times, and nothing may lie beside it. *Signals*:
SIGTERM at a random moment; everything that was finished must be in the file, `--resume` must lead to the same one.
*Full disk*: the output on a file system of half its size (tmpfs; needs the right to mount): one line, whole entries, and
the same file once there is room. The exit status is 1 if anything of this is not so.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import environment
from spear_io import open_inversion
from tests.federations import spear_process, timeless, write_federation

EARLIEST = 0.2
"""Seconds after its start from which a run is killed: the interpreter is hardly loaded then."""

UNITS, INPUTS = 60, 3

ENOUGH = "size=200m"


class Bench:
    """A dump, the undisturbed answer to it, and how long that took."""

    def __init__(self, folder: Path, records: int, jobs: int | None) -> None:
        self.folder = folder
        self.dump = folder / "dump.h5"
        self.records = records
        self.jobs = [] if jobs is None else ["--jobs", str(jobs)]
        self.faults: list[str] = []
        write_federation(self.dump, records, m=UNITS, b=INPUTS)
        started = time.monotonic()
        self.status, _ = self.run(folder / "undisturbed.h5")
        self.seconds = time.monotonic() - started
        self.answer = timeless(folder / "undisturbed.h5")

    def start(self, out: Path, *more: str) -> subprocess.Popen[str]:
        """Start the command."""
        return spear_process("invert", self.dump, "-o", out, *self.jobs, *more)

    def run(self, out: Path, *more: str) -> tuple[int, str]:
        """Run the command to its end; return exit status and standard error."""
        process = self.start(out, *more)
        _, error = process.communicate(timeout=600)
        return process.returncode, error

    def expect(self, holds: bool, what: str) -> None:
        """Note a fault unless `holds`."""
        if not holds:
            self.faults.append(what)
            print(f"FAULT: {what}", flush=True)

    def expect_answer(self, out: Path, what: str) -> None:
        """The file must be that of an undisturbed run, and alone."""
        self.expect(out.exists() and timeless(out) == self.answer, f"{what}: another file than undisturbed")
        left = [path.name for path in out.parent.iterdir() if path != out]
        self.expect(not left, f"{what}: left beside it: {left}")

    def place(self, name: str) -> Path:
        """A new folder with the name of an output in it."""
        (self.folder / name).mkdir()
        return self.folder / name / "out.h5"


def finished(out: Path) -> int:
    return len(list(out.with_name(out.name + ".journal").glob("*.h5")))


def kills(bench: Bench, count: int, rng: random.Random) -> dict[str, Any]:
    """Kill `count` runs, and take each up."""
    moments: Counter[str] = Counter()
    for number in range(count):
        out = bench.place(f"kill-{number}")
        process = bench.start(out)
        time.sleep(rng.uniform(EARLIEST, bench.seconds))
        process.kill()
        process.communicate(timeout=60)
        kept = finished(out)
        if process.returncode == 0:
            moments["after its end"] += 1
        else:
            moments[
                "before the first record"
                if kept == 0
                else "with some finished"
                if not out.exists()
                else "while it ended"
            ] += 1
        status, error = bench.run(out, "--resume")
        bench.expect(status == bench.status, f"kill {number}: --resume ended with {status}: {error.strip()}")
        bench.expect_answer(out, f"kill {number}, {kept} finished")
    return {"runs": count, "killed": dict(moments)}


def terms(bench: Bench, count: int, rng: random.Random) -> dict[str, Any]:
    """End `count` runs with SIGTERM, and take each up."""
    stopped = ended = nothing = 0
    for number in range(count):
        out = bench.place(f"term-{number}")
        process = bench.start(out)
        time.sleep(rng.uniform(EARLIEST, bench.seconds))
        before = finished(out)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        if out.exists():
            with open_inversion(out) as inversion:
                whole = sum(layer.reason != "stopped before it began" for layer in inversion.layers)
            bench.expect(whole >= before, f"term {number}: {whole} in the file, {before} were finished")
            began = [layer.reason != "stopped before it began" for layer in inversion.layers]
            stopped += not all(began)
            ended += all(began)
        else:
            nothing += 1
            bench.expect(before == 0, f"term {number}: no file, though {before} were finished")
        status, error = bench.run(out, "--resume")
        bench.expect(status == bench.status, f"term {number}: --resume ended with {status}: {error.strip()}")
        bench.expect_answer(out, f"term {number}, {before} finished")
    return {"runs": count, "stopped in the middle": stopped, "ended before": ended, "nothing begun": nothing}


def full_disk(bench: Bench) -> dict[str, Any]:
    """Let the disk fill up in the middle; then make room."""
    out = bench.place("disk")
    disk = str(out.parent)
    little = f"size={len(bench.answer) // 2}"  # half of what the output takes
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", little, "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        return {"skipped": "no right to mount a tmpfs"}
    try:
        status, error = bench.run(out)
        bench.expect(status == 2 and error.count("\n") == 1, f"full disk: status {status}, {error!r}")
        bench.expect("No space left on device" in error, f"full disk: {error!r}")
        kept = finished(out)
        bench.expect(0 < kept < bench.records, f"full disk: {kept} finished")
        for path in out.with_name(out.name + ".journal").glob("*.h5"):
            with open_inversion(path) as inversion:
                bench.expect(len(inversion.layers) == 1, f"full disk: {path.name}")
        subprocess.run(["mount", "-o", f"remount,{ENOUGH}", disk], check=True)
        again, _ = bench.run(out, "--resume")
        bench.expect(again == bench.status, f"full disk: --resume ended with {again}")
        bench.expect_answer(out, "full disk")
    finally:
        subprocess.run(["umount", disk], check=False)
    return {"status": status, "said": error.strip(), "finished before": kept}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=50)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--jobs", type=int, help="processes; by default one after the other")
    parser.add_argument("--seed", type=int, default=11, help="of the moments")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    options = parser.parse_args()

    setting = environment.describe()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.records, options.jobs)
        results = {
            "kills": kills(bench, options.kills, rng),
            "SIGTERM": terms(bench, options.terms, rng),
            "full disk": full_disk(bench),
        }
    rows = [
        (name, "; ".join(f"{key}: {value}" for key, value in result.items()))
        for name, result in results.items()
    ]
    table = (
        f"{options.records} records, m = {UNITS}, b = {INPUTS}, undisturbed {bench.seconds:.1f} s, seed {options.seed}, "
        f"{' '.join(bench.jobs) or 'one process'}: {len(bench.faults)} faults\n\n"
        f"{environment.markdown(('what ends it', 'result'), rows)}\n{environment.sentence(setting)}\n"
    )
    print(table)
    if options.save:
        data = {"environment": setting, "options": vars(options), "results": results, "faults": bench.faults}
        environment.save(environment.RESULTS / options.save, data, table)
    return 1 if bench.faults else 0


if __name__ == "__main__":
    sys.exit(main())
