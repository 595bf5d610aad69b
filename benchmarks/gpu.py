"""Everything there is to say of a card, in one command of less than six minutes on an H100: one page, and its figures as JSON.

    python -m benchmarks.gpu                  # writes benchmarks/results/gpu.md and gpu.json
    python -m benchmarks.gpu --device gpu:1 --save gpu_1
    python -m benchmarks.gpu --dry-run        # every part at its smallest, on the CPU: no figure means anything

The parts: the tests that need a card; the command on the shipped example, with and without compiled kernels; subsets a second,
beside the published search in plain PyTorch; milliseconds a step of every search; whole inversions on both devices; federations
of small records, layers and chains, together on the card and one after the other on the host; where the time of one inversion goes. What no time is left for is named on the page, not left out.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spear_np
from benchmarks import environment, gpu_steps
from benchmarks.chain import judged
from benchmarks.networks import Network, share
from benchmarks.problems import make_problem
from benchmarks.runs import held, measure
from spear_np.backend.devices import Device, device_for
from spear_np.backend.host import to_host

Row = dict[str, Any]
ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "fashion_mnist_b16.h5"
SOLVER = str(ROOT / "spear_np") + os.sep
BUDGET = 345.0
"""Seconds of the whole run, from which single parts are cut short or left out."""
LAST_PARTS = 160.0
"""Seconds of it that whole inversions leave to what comes behind them."""


Judge = Callable[[int, spear_np.Inversion], bool]
"""(number of a record, answer) → whether the answer is called exact and is not."""


@dataclass(frozen=True)
class Whole:
    """One batch that is inverted whole: a layer, or a chain if `activation` is given."""

    m: int
    b: int
    activation: str | None = None
    method: str = "auto"
    wanted: float | None = None
    """Seconds that are aimed at on an H100."""

    @property
    def title(self) -> str:
        """For tables."""
        kind = "" if self.activation is None else f", chain {self.activation}"
        return f"{self.m}/{self.b}{kind}{'' if self.method == 'auto' else f', {self.method}'}"


@dataclass(frozen=True)
class Federation:
    """Many records of one shape: layers, or chains if `activation` is given."""

    m: int
    b: int
    records: int
    batches: int
    """Different ones among them: the others are these again, since making one takes as long as inverting it."""
    activation: str | None = None

    @property
    def title(self) -> str:
        """For tables."""
        return Whole(self.m, self.b, self.activation).title

    def drawn(self) -> tuple[list[spear_np.LayerGradients | spear_np.LayerChain], Judge]:
        """Return the different batches, and what holds the answer of a record, by its number, against the truth."""
        seeds = range(1000, 1000 + self.batches)
        if self.activation is None:
            problems = [make_problem(self.m, self.b, seed) for seed in seeds]
            layers = [spear_np.LayerGradients(**problem.arguments) for problem in problems]
            return [*layers], lambda number, result: held(problems[number % self.batches], result)["wrong"]
        shared = [
            share(Network(widths=(self.m,) * 3, activation=self.activation), self.b, seed) for seed in seeds
        ]
        chains = [spear_np.LayerChain(one.layers, loss="cross_entropy") for one in shared]
        return [
            *chains
        ], lambda number, result: judged(shared[number % self.batches], result, result.seconds).wrong


@dataclass(frozen=True)
class Plan:
    """How large every part is."""

    product: int
    """Size of the matrices of the yardstick."""
    repeats: int
    tests: tuple[str, ...]
    test_seconds: float
    sampling: tuple[tuple[int, int], ...]
    published: int
    """Subsets of a block of the published search."""
    descent: tuple[tuple[int, int], ...]
    descent_steps: int
    chains: tuple[tuple[str, int, int], ...]
    columns: tuple[int, int]
    wholes: tuple[Whole, ...]
    whole_seconds: float
    """Time limit of one inversion on one device."""
    federations: tuple[Federation, ...]
    dissected: Whole


FULL = Plan(
    product=3000,
    repeats=5,
    tests=("-m", "gpu"),
    test_seconds=90.0,
    sampling=((200, 12), (200, 16), (200, 20), (200, 24)),
    published=10_000,
    descent=((200, 20), (200, 60), (1000, 120), (2000, 200), (4000, 400)),
    descent_steps=200,
    chains=(("reflect", 200, 100), ("reflect", 1000, 400), ("levenberg", 200, 100), ("levenberg", 1000, 300)),
    columns=(200, 100),
    wholes=(
        Whole(200, 20),
        Whole(200, 40),
        Whole(200, 24, method="sampling", wanted=3.0),
        Whole(200, 65, wanted=3.0),
        Whole(200, 90, "relu", wanted=1.0),
        Whole(200, 100, "relu", wanted=4.0),
        Whole(1000, 200, wanted=1.5),
        Whole(2000, 200, wanted=0.8),
        Whole(2000, 300, wanted=3.0),
        Whole(4000, 500, wanted=10.0),
        Whole(1000, 400, "gelu", wanted=8.0),
        Whole(1000, 400, "relu", wanted=15.0),
    ),
    whole_seconds=12.0,
    federations=(
        Federation(200, 20, records=1000, batches=50),
        Federation(200, 60, records=100, batches=10, activation="relu"),
        Federation(200, 40, records=100, batches=10, activation="gelu"),
    ),
    dissected=Whole(1000, 200),
)
DRY = Plan(
    product=64,
    repeats=1,
    tests=("-m", "gpu", "tests/test_backend.py"),
    test_seconds=60.0,
    sampling=((60, 6),),
    published=50,
    descent=((60, 6),),
    descent_steps=16,
    chains=(("reflect", 60, 6), ("levenberg", 60, 6)),
    columns=(60, 8),
    wholes=(Whole(60, 6), Whole(60, 6, method="sampling"), Whole(60, 8, "relu")),
    whole_seconds=20.0,
    federations=(
        Federation(60, 6, records=4, batches=2),
        Federation(60, 8, records=3, batches=2, activation="relu"),
    ),
    dissected=Whole(60, 6),
)


@dataclass(frozen=True)
class Run:
    """One run of the benchmark."""

    device: Device
    plan: Plan
    started: float
    budget: float = BUDGET

    def left(self) -> float:
        """Seconds that are left of the budget."""
        return self.budget - (time.perf_counter() - self.started)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    name = "cpu" if options.dry_run else options.device
    if name == "cpu" and not options.dry_run:
        print(
            "benchmarks.gpu: error: --device cpu is no card: see --dry-run, or benchmarks.devices",
            file=sys.stderr,
        )
        return 2
    try:
        device = device_for(name)
    except (spear_np.DeviceError, spear_np.InputError) as error:
        print(f"benchmarks.gpu: error: {error}", file=sys.stderr)
        return 2
    run = Run(device, DRY if options.dry_run else FULL, time.perf_counter())
    figures: Row = {"environment": environment.describe(), "card": card(device), "dry_run": options.dry_run}
    for title, part in PARTS.items():
        begun = time.perf_counter()
        print(f"== {title}, {run.left():.0f} s left", flush=True)
        figures[title] = attempted(run, part)
        print(f"   {time.perf_counter() - begun:.1f} s", flush=True)
    figures["seconds"] = round(time.perf_counter() - run.started, 1)
    text = page(figures, run.plan)
    print("\n" + text)
    target = options.save or (None if options.dry_run else "gpu")
    if target:
        environment.save(environment.RESULTS / target, figures, text)
    parts = ("whole inversions", "federations")
    wrong = [row for part in parts for row in figures[part].get("rows", []) if row["wrong"]]
    return 1 if wrong else 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="gpu", metavar="gpu|gpu:N")
    parser.add_argument("--dry-run", action="store_true", help="every part at its smallest, on the CPU")
    parser.add_argument(
        "--save", metavar="NAME", help="instead of results/gpu; nothing is saved of a dry run otherwise"
    )
    return parser.parse_args(arguments)


def attempted(run: Run, part: Callable[[Run], Row]) -> Row:
    """Return what a part found; one that fails, or comes too late, says so on the page and does not cost the others."""
    if run.left() <= 0:
        return {"failed": "no time left"}
    try:
        with run.device.activate():
            return part(run)
    except Exception as error:  # noqa: BLE001  (the page is worth more than the part)
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def card(device: Device) -> Row:
    """Card, driver and versions; only the name of the device where it is no card."""
    if device.name == "cpu":
        return {"device": "cpu"}
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(device.handle.id)
    return {
        "device": device.name,
        "name": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_gb": round(properties["totalGlobalMem"] / 1e9, 1),
        "driver_cuda": runtime.driverGetVersion(),
        "runtime_cuda": runtime.runtimeGetVersion(),
        "driver": driver_version(),
        "cupy": cupy.__version__,
    }


def driver_version() -> str:
    """Version of the NVIDIA driver as `nvidia-smi` tells it, or "unknown"."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def tests(run: Run) -> Row:
    """The tests that need a card."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *run.plan.tests]
    limit = min(run.plan.test_seconds, run.left())
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        text = error.stdout or b""
        dots = "".join(part for part in text.decode().split() if set(part) <= set(".sFxE"))
        return {
            "rows": [],
            "summary": f"cut short after {limit:.0f} s: {dots.count('.')} passed, {dots.count('F')} failed so far",
        }
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"rows": failed, "summary": lines[-1] if lines else done.stderr.strip()[-300:]}


def first_run(run: Run) -> Row:
    """Seconds of the whole command on the shipped example: with no kernel compiled, and then twice with all."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        variables = os.environ | {
            "CUPY_CACHE_DIR": str(Path(folder) / "kernels"),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "io"))),
        }
        for kind in ("cold", "warm", "warm"):
            command = [
                sys.executable,
                "-m",
                "spear_io",
                "invert",
                str(EXAMPLE),
                "-o",
                str(Path(folder) / "out.h5"),
                "--force",
            ]
            start = time.perf_counter()
            done = subprocess.run(
                [*command, "--device", run.device.name],
                env=variables,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=max(1.0, min(60.0, run.left())),
                check=False,
            )
            seconds = time.perf_counter() - start
            compiled = (
                len(list((Path(folder) / "kernels").glob("*"))) if (Path(folder) / "kernels").exists() else 0
            )
            rows.append(
                {
                    "kind": kind,
                    "seconds": seconds,
                    "status": done.returncode,
                    "kernels": compiled,
                    "said": done.stderr.strip()[-200:],
                }
            )
    return {"rows": rows}


def sampling(run: Run) -> Row:
    """Subsets a second of this search and of the published one in PyTorch."""
    rows = []
    for m, b in run.plan.sampling:
        ours = gpu_steps.sampling_rates(run.device, m, b, run.plan.repeats)
        other = gpu_steps.published_rate(m, b, run.plan.published, run.plan.repeats)
        rows.append({**ours, "published": other["rate"], "published_on": other["on"]})
    return {"rows": rows}


def steps(run: Run) -> Row:
    """Milliseconds a step of every search, and the rate of its products beside the card's own."""
    plan, device = run.plan, run.device
    yardstick = gpu_steps.product_rate(device, plan.product, plan.repeats)
    rows = []
    for m, b in plan.descent:
        for starts in (256, None):
            rows.append(gpu_steps.descent_step(device, m, b, starts, plan.descent_steps, plan.repeats))
    rows += [gpu_steps.chain_step(device, name, m, b, plan.repeats) for name, m, b in plan.chains]
    rows.append(gpu_steps.columns_step(device, *plan.columns, plan.repeats))
    return {"rows": rows, "yardstick": yardstick}


def wholes(run: Run) -> Row:
    """Whole inversions on both devices; the second of two on the card, which finds its kernels compiled."""
    rows: list[Row] = []
    missing = []
    for one in run.plan.wholes:
        devices = [run.device.name] if run.device.name == "cpu" else [run.device.name, "cpu"]
        for name in devices:
            limit = min(run.plan.whole_seconds, (run.left() - LAST_PARTS) / 2)
            if limit < 1:
                missing.append(f"{one.title} on {name}")
                continue
            if name != "cpu":
                inverted(one, name, limit)
            rows.append(
                {"title": one.title, "wanted": one.wanted, "device": name, **inverted(one, name, limit)}
            )
            print(
                f"   {one.title} on {name}: {rows[-1]['status']} in {rows[-1]['seconds']:.2f} s", flush=True
            )
    return {"rows": rows, "missing": missing}


def inverted(one: Whole, device: str, time_limit: float) -> Row:
    """Invert a fresh batch, the same each time: status, found, wrong, seconds and proposals."""
    if one.activation is None:
        row = measure(make_problem(one.m, one.b, 1), device=device, method=one.method, time_limit=time_limit)
        return {key: row[key] for key in ("status", "found", "wrong", "seconds", "proposals", "error")}
    shared = share(Network(widths=(one.m,) * 3, activation=one.activation), one.b, 1)
    start = time.perf_counter()
    result = spear_np.invert_chain(shared.layers, method="chain", device=device, time_limit=time_limit)
    seconds = time.perf_counter() - start
    outcome = judged(shared, result, seconds)
    return {
        "status": outcome.status,
        "found": outcome.found,
        "wrong": outcome.wrong,
        "seconds": round(seconds, 4),
        "proposals": result.proposals,
        "error": outcome.worst,
    }


def federations(run: Run) -> Row:
    """Records a second through `invert_many`, on the device and, of each batch one, on the host."""
    rows = []
    for plan in run.plan.federations:
        batches, wrong = plan.drawn()
        many = [batches[record % plan.batches] for record in range(plan.records)]
        spear_np.invert_many(batches[:2], device=run.device.name)  # compiles
        for device, chosen in ((run.device.name, many), ("cpu", batches)):
            row = _inverted_all(chosen, device, wrong, run.left() / 2)
            rows.append({"title": plan.title, "device": device, **row})
    return {"rows": rows}


def _inverted_all(
    chosen: Sequence[spear_np.LayerGradients | spear_np.LayerChain], device: str, wrong: Judge, limit: float
) -> Row:
    """Invert what was chosen for at most so many seconds: how many are finished, exact and wrong, and the seconds."""
    counts, begun = {"finished": 0, "exact": 0, "wrong": 0}, time.perf_counter()

    def done(number: int, result: spear_np.Inversion) -> None:
        counts["finished"] += not result.reason.startswith("stopped")
        counts["exact"] += result.status == "exact"
        counts["wrong"] += wrong(number, result)

    spear_np.invert_many(chosen, device=device, done=done, stop=lambda: time.perf_counter() - begun > limit)
    return {"records": len(chosen), **counts, "seconds": time.perf_counter() - begun}


def dissected(run: Run) -> Row:
    """Where the time of one warm inversion goes: own kernels by events on the card, and the host by function of the solver."""
    one = run.plan.dissected
    limit = min(run.plan.whole_seconds, run.left() / 2)
    inverted(one, run.device.name, limit)
    kernels = gpu_steps.KernelTimes(run.device)
    module: Any = sys.modules["spear_np.invert"]
    profile, plain = cProfile.Profile(), module.device_for
    module.device_for = lambda *_: kernels.watched
    try:
        start = time.perf_counter()
        profile.enable()
        problem = make_problem(one.m, one.b, 1)
        result = spear_np.invert(**problem.arguments, time_limit=limit)
        to_host(result.inputs)
        profile.disable()
        seconds = time.perf_counter() - start
    finally:
        module.device_for = plain
    return {"title": one.title, "seconds": seconds, "kernels": kernels.rows(), "rows": by_function(profile)}


def by_function(profile: cProfile.Profile) -> list[Row]:
    """Seconds on the host of each function of the solver, with what it calls of libraries, the longest first."""
    times: dict[str, float] = {}
    for (file, _, name), (_, _, own, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file.startswith(SOLVER):
            key = f"{file.removeprefix(SOLVER)}:{name}"
            times[key] = times.get(key, 0.0) + own
            continue
        for (calling, _, caller), (_, _, _, total) in callers.items():
            if calling.startswith(SOLVER):
                key = f"{calling.removeprefix(SOLVER)}:{caller}"
                times[key] = times.get(key, 0.0) + total
    longest = sorted(times.items(), key=lambda item: -item[1])[:20]
    return [{"function": name, "seconds": seconds} for name, seconds in longest]


PARTS: dict[str, Callable[[Run], Row]] = {
    "first run": first_run,
    "sampling": sampling,
    "steps": steps,
    "whole inversions": wholes,
    "federations": federations,
    "where the time goes": dissected,
    "tests": tests,
}


def page(figures: Row, plan: Plan) -> str:
    """Return the page for people."""
    head = figures["card"]
    setting = environment.sentence(figures["environment"])
    where = ", ".join(f"{key} {value}" for key, value in head.items())
    title = (
        "# A dry run on the CPU: no figure means anything\n" if figures["dry_run"] else f"# {head['name']}\n"
    )
    sections = [title, f"{where}.\n\n{setting}. The whole run took {figures['seconds']} s.\n"]
    for name in PARTS:
        part = figures[name]
        body = f"Failed: {part['failed']}\n" if "failed" in part else TABLES[name](part)
        sections.append(f"## {name.capitalize()}\n\n{body}")
    return "\n".join(sections)


def _first_run_table(part: Row) -> str:
    header = ("kernels", "seconds of the whole command", "exit status", "kernels on disk")
    return environment.markdown(
        header,
        [(row["kind"], f"{row['seconds']:.1f}", row["status"], row["kernels"]) for row in part["rows"]],
    )


def _sampling_table(part: Row) -> str:
    header = (
        "m",
        "b",
        "subsets of a block",
        "million a second",
        "published, PyTorch, million a second",
        "on",
        "times",
    )
    return environment.markdown(
        header,
        [
            (
                row["m"],
                row["b"],
                row["subsets"],
                f"{row['rate'] / 1e6:.2f}",
                f"{row['published'] / 1e6:.3f}",
                row["published_on"],
                f"{row['rate'] / row['published']:.1f}",
            )
            for row in part["rows"]
        ],
    )


def _steps_table(part: Row) -> str:
    header = ("search", "m", "b", "starts", "ms a step", "TFLOP/s of its products", "share of the yardstick")
    rows = [
        (
            row["search"],
            row["m"],
            row["b"],
            row["starts"] or "–",
            f"{row['milliseconds']:.3f}",
            "–" if row["rate"] is None else f"{row['rate'] / 1e12:.2f}",
            "–" if row["rate"] is None else f"{row['rate'] / part['yardstick']:.2f}",
        )
        for row in part["rows"]
    ]
    return (
        f"Yardstick, a float32 product in place: {part['yardstick'] / 1e12:.2f} TFLOP/s.\n\n"
        + environment.markdown(header, rows)
    )


def _wholes_table(part: Row) -> str:
    header = (
        "batch",
        "device",
        "status",
        "found",
        "seconds",
        "wanted on an H100",
        "million proposals a second",
    )
    rows = [
        (
            row["title"],
            row["device"],
            row["status"] + (" WRONG" if row["wrong"] else ""),
            row["found"],
            f"{row['seconds']:.2f}",
            row["wanted"] or "–",
            f"{row['proposals'] / row['seconds'] / 1e6:.3f}",
        )
        for row in part["rows"]
    ]
    missing = f"\nNo time left for: {', '.join(part['missing'])}.\n" if part["missing"] else ""
    return environment.markdown(header, rows) + missing


def _federations_table(part: Row) -> str:
    header = ("batch", "device", "records", "finished", "exact", "wrong", "seconds", "ms a record")
    rows = [
        (
            row["title"],
            row["device"],
            row["records"],
            row["finished"],
            row["exact"],
            row["wrong"],
            f"{row['seconds']:.1f}",
            f"{1e3 * row['seconds'] / max(1, row['finished']):.1f}",
        )
        for row in part["rows"]
    ]
    return f"Each is judged against its truth meanwhile.\n\n{environment.markdown(header, rows)}"


def _dissected_table(part: Row) -> str:
    kernels = environment.markdown(
        ("kernel", "launches", "seconds on the card"),
        [(row["kernel"], row["launches"], f"{row['seconds']:.3f}") for row in part["kernels"]],
    )
    functions = environment.markdown(
        ("function, with what it calls of libraries", "seconds on the host"),
        [(f"`{row['function']}`", f"{row['seconds']:.3f}") for row in part["rows"]],
    )
    return f"{part['title']}, warm, {part['seconds']:.2f} s under a profiler.\n\n{kernels}\n{functions}"


def _tests_table(part: Row) -> str:
    return "\n".join([part["summary"], "", *(f"- {line}" for line in part["rows"])]).rstrip() + "\n"


TABLES: dict[str, Callable[[Row], str]] = {
    "first run": _first_run_table,
    "sampling": _sampling_table,
    "steps": _steps_table,
    "whole inversions": _wholes_table,
    "federations": _federations_table,
    "where the time goes": _dissected_table,
    "tests": _tests_table,
}


if __name__ == "__main__":
    sys.exit(main())
