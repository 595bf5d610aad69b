"""How large a batch comes back whole from a layer of m units within a time limit, and a picture of it.

    python -m benchmarks.reach                              # hours; goes on where it was stopped
    python -m benchmarks.reach --widths 200 400 --grid 200:50,60,70 --batches 20
    python -m benchmarks.reach --draw-only                  # tables and picture of what has been measured so far

Every cell is a width m and a batch size b, every batch in it has new images and a new network. A cell is left as soon
as 80 % of its batches can no longer be whole, and a width as soon as fewer than half of a cell were. Results go to a
file of JSON lines as they come, and what is already in it is not run again. One file holds one device and one time
limit; the tables (.md, .json) go beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import spear_np
from benchmarks import environment
from benchmarks.problems import make_problem
from benchmarks.runs import Results, Row, exit_status
from benchmarks.success_rate import FIELDS, line, run
from spear_io.show.evaluate import EXACT
from spear_np.theory import expected_submatrices

GRID: dict[int, tuple[int, ...]] = {
    200: (10, 20, 30, 40, 50, 60, 65, 70, 75),
    400: (20, 40, 70, 100, 110, 120, 130),
    1000: (50, 100, 150, 200, 220, 240, 260),
    2000: (100, 200, 250, 300, 350, 400),
    4000: (200, 300, 400, 500),
}
"""Batch sizes for each width, unless `--grid` has others."""
FIXED: Row = {"source": "fashion-mnist", "depth": 6, "dtype": "float32", "method": "auto"}
SETTING = (*FIXED, "device", "time_limit")
"""What all rows of one file share."""
REACHES = (95, 80)
"""Per cent of the batches of a cell that count as reaching it. The last decides when a cell is left."""
GO_ON = 50
"""Per cent of the batches of a cell without which no larger batch of this width is tried."""
PUBLISHED = environment.RESULTS / "against_published.json"
"""Where `benchmarks.against_published` leaves how many submatrices a second the published algorithm draws."""

PICTURE = Path(__file__).parent.parent / "docs" / "reach.png"
OURS = {95: {"color": "#0072B2", "lw": 1.6, "zorder": 3}, 80: {"color": "#8CCBEF", "lw": 5.0, "zorder": 2}}
"""Lines of the picture. One is drawn upon the other, which stays visible where the two are the same."""
THEIRS = {"color": "#D55E00", "lw": 1.6, "ls": "--", "zorder": 3}
BOUND = {"color": "0.45", "lw": 1.2, "ls": ":", "zorder": 1}


@dataclass(frozen=True)
class Cell:
    """What came of the batches of one width and batch size."""

    m: int
    b: int
    batches: int
    whole: int
    median_seconds: float
    maximum_seconds: float


@dataclass(frozen=True)
class Rate:
    """How fast the published algorithm draws submatrices, and where that was measured."""

    submatrices_per_second: float
    m: int
    b: int
    threads: int
    environment: Row


@dataclass(frozen=True)
class Reach:
    """How far a width goes; the picture has one line for each of these."""

    m: int
    ours: dict[int, int | None]
    """Largest measured b for each of `REACHES`; None if no cell reached it."""
    open_ended: dict[int, bool]
    """Whether that b was the largest measured, so that the reach may be larger."""
    published: int | None
    """Largest b that the published algorithm is expected to solve; None if its rate is not known."""
    bound: int
    """m/2. Beyond it a direction is expected to have fewer zeros, about m/2, than the b - 1 that determine it."""


def main() -> int:
    options = parse()
    results = Results.read(options.results, FIELDS)
    done = results.rows
    setting = {**FIXED, "device": options.device, "time_limit": options.time_limit}
    if options.draw_only:
        if not done:
            msg = f"{options.results} holds no results to draw"
            raise SystemExit(msg)
        first = next(iter(done.values()))
        setting |= {name: first[name] for name in ("device", "time_limit") if name in first}
    foreign = [row for row in done.values() if any(row.get(name) != setting[name] for name in SETTING)]
    if foreign:
        held = {name: foreign[0].get(name) for name in SETTING}
        msg = f"{options.results} holds results of {held}, not of {setting}: give another file with --results"
        raise SystemExit(msg)
    if not options.draw_only:
        measure(options, setting, results)

    rows = list(done.values())
    cells = summarise(rows, setting["time_limit"])
    rate = published_rate()
    reaches = [reach(m, cells, options.batches, rate, setting["time_limit"]) for m in widths(cells)]
    table = report(rows, cells, reaches, rate, setting)
    print("\n" + table)
    environment.save(
        options.results,
        {
            "setting": setting,
            "cells": [asdict(cell) for cell in cells],
            "reaches": [asdict(reach) for reach in reaches],
            "published": asdict(rate) if rate else None,
            "environments": environments(rows),
        },
        table,
    )
    draw(cells, reaches, setting, machines(rows), options.picture)
    return exit_status(rows, line)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=list(GRID), metavar="M")
    parser.add_argument(
        "--grid", type=sizes, nargs="+", default=[], metavar="M:B,B", help="other batch sizes for a width"
    )
    parser.add_argument("--batches", type=int, default=5, help="batches a cell")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds a batch")
    parser.add_argument("--device", default="cpu", help="cpu, gpu or gpu:N")
    parser.add_argument("--first-seed", type=int, default=5001)
    parser.add_argument("--results", type=Path, default=environment.RESULTS / "reach.jsonl")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--draw-only", action="store_true", help="measure nothing")
    options = parser.parse_args()

    given = dict(options.grid)
    options.grid = {**GRID, **given}
    if unused := sorted(given.keys() - set(options.widths)):
        parser.error(f"--grid has batch sizes for {unused}, which --widths does not name")
    if missing := sorted(set(options.widths) - options.grid.keys()):
        parser.error(f"no batch sizes for {missing}: give them as --grid {missing[0]}:B,B,B")
    if options.batches < 1:
        parser.error(f"--batches is {options.batches}, but must be at least 1")
    if options.results.suffix != ".jsonl":
        parser.error(f"--results is {options.results}, but must end in .jsonl")
    return options


def sizes(text: str) -> tuple[int, tuple[int, ...]]:
    """Read "200:10,20,30"."""
    m, _, batch_sizes = text.partition(":")
    return int(m), tuple(sorted({int(b) for b in batch_sizes.split(",")}))


def measure(options: argparse.Namespace, setting: Row, results: Results) -> None:
    """Run what is not yet among the results, every width from small batches up to where it ends."""
    runner = Runner(results, setting)
    for m in options.widths:
        for b in options.grid[m]:
            rows: list[Row] = []
            for seed in range(options.first_seed, options.first_seed + options.batches):
                rows.append(runner.row(m, b, seed))
                possible = options.batches - sum(not whole(row, options.time_limit) for row in rows)
                if 100 * possible < REACHES[-1] * options.batches:
                    break
            if 100 * sum(whole(row, options.time_limit) for row in rows) < GO_ON * len(rows):
                break


class Runner:
    """Gives the row of a batch: from the file, or by running it and writing it there."""

    def __init__(self, results: Results, setting: Row) -> None:
        self._results = results
        self._setting = setting
        self._accelerator: str | None = None
        self._warm = False

    def row(self, m: int, b: int, seed: int) -> Row:
        """Return what came of one batch."""
        setting = {"m": m, "b": b, **self._setting, "seed": seed}
        row = self._results.once(setting, lambda: self._run(setting))
        print(line(row), flush=True)
        return row

    def _run(self, setting: Row) -> Row:
        if not self._warm:
            self._warm_up()
        return {**run(setting, setting["time_limit"]), "accelerator": self._accelerator}

    def _warm_up(self) -> None:
        """Let libraries load and kernels compile what they do once, on a problem that takes no time."""
        device = self._setting["device"]
        self._accelerator = accelerator(device)
        spear_np.invert(**make_problem(50, 3, seed=0).arguments, device=device, time_limit=60)
        self._warm = True


def accelerator(device: str) -> str | None:
    """Return the name of the GPU, None for the processor."""
    if not device.startswith("gpu"):
        return None
    import cupy

    number = int(device.partition(":")[2] or cupy.cuda.runtime.getDevice())
    return str(cupy.cuda.runtime.getDeviceProperties(number)["name"].decode())


def whole(row: Row, time_limit: float) -> bool:
    """Return whether the whole batch was recovered, truly and in time."""
    return row["status"] == "exact" and not row["wrong"] and bool(row["seconds"] <= time_limit)


def summarise(rows: Iterable[Row], time_limit: float) -> list[Cell]:
    """Return the cells, by width and batch size."""
    members: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        members.setdefault((row["m"], row["b"]), []).append(row)
    cells = []
    for (m, b), cell in sorted(members.items()):
        seconds = [row["seconds"] for row in cell]
        recovered = sum(whole(row, time_limit) for row in cell)
        cells.append(Cell(m, b, len(cell), recovered, statistics.median(seconds), max(seconds)))
    return cells


def widths(cells: list[Cell]) -> list[int]:
    return sorted({cell.m for cell in cells})


def reach(m: int, cells: list[Cell], batches: int, rate: Rate | None, time_limit: float) -> Reach:
    """Return how far width m goes; cells with fewer than so many batches were left, or are not finished."""
    column = [cell for cell in cells if cell.m == m]
    ours, open_ended = {}, {}
    for share in REACHES:
        reached = [
            cell.b for cell in column if cell.batches >= batches and 100 * cell.whole >= share * cell.batches
        ]
        ours[share] = max(reached, default=None)
        open_ended[share] = ours[share] == max(cell.b for cell in column)
    return Reach(m, ours, open_ended, published_reach(m, rate, time_limit), m // 2)


def published_rate() -> Rate | None:
    """Return the measured rate at the largest batch, where it is closest to that of batches yet larger."""
    if not PUBLISHED.exists():
        return None
    data = json.loads(PUBLISHED.read_text())
    b = max(row["b"] for row in data["rows"])
    runs = [row["published"] for row in data["rows"] if row["b"] == b]
    submatrices, seconds = (sum(run[name] for run in runs) for name in ("samples", "seconds"))
    options = data["options"]
    return Rate(submatrices / seconds, options["m"], b, options["threads"], data["environment"])


def published_reach(m: int, rate: Rate | None, time_limit: float) -> int | None:
    """Return the largest b for which the expected number of submatrices can be drawn in time.

    The rate is taken for that of all widths and batch sizes. As larger submatrices of wider layers take longer, this
    favours the published algorithm.
    """
    if rate is None:
        return None
    affordable = rate.submatrices_per_second * time_limit
    return max((b for b in range(1, m) if expected_submatrices(m, b) <= affordable), default=None)


def report(rows: list[Row], cells: list[Cell], reaches: list[Reach], rate: Rate | None, setting: Row) -> str:
    """Return what was measured, the table of all cells and that of the widths."""
    limit, seeds = setting["time_limit"], [row["seed"] for row in rows]
    measured = environment.markdown(
        ("m", "b", "whole / batches", "median s", "maximum s"),
        [
            (
                cell.m,
                cell.b,
                f"{cell.whole}/{cell.batches}",
                f"{cell.median_seconds:.2f}",
                f"{cell.maximum_seconds:.2f}",
            )
            for cell in cells
        ],
    )
    summary = environment.markdown(
        ("m", *(f"largest b, {share} %" for share in REACHES), "published algorithm, expected", "m/2"),
        [
            (
                reach.m,
                *(largest(reach, share) for share in REACHES),
                "–" if reach.published is None else reach.published,
                reach.bound,
            )
            for reach in reaches
        ],
    )
    return (
        f"Fashion-MNIST, first of {setting['depth']} layers, {setting['dtype']}, method `{setting['method']}`, device "
        f"`{setting['device']}`, {limit:g} s a batch, seeds {min(seeds)} to {max(seeds)}. A batch is whole if it is "
        f"`exact` in that time and no entry of it is off by more than {EXACT:g} of the data range. A cell is left as "
        f"soon as {REACHES[-1]} % cannot be whole any more, a width as soon as fewer than {GO_ON} % of a cell were.\n\n"
        f"{measured}\n"
        f"The largest batch sizes of which at least {' and '.join(f'{share} %' for share in REACHES)} of the batches "
        "were whole (of fewer than 20, 95 % are all); ≥ where no larger one was tried. At b = m/2 an input leaves off "
        "about as many units as it takes to tell it from the others.\n\n"
        f"{summary}\n{published_note(rate, limit)}\n\n"
        f"{''.join(f'{environment.sentence(each)}{on(rows, each)}{chr(10)}' for each in environments(rows))}"
    )


def largest(reach: Reach, share: int) -> str:
    """Return a cell of the table of widths."""
    b = reach.ours[share]
    return "–" if b is None else f"{'≥ ' if reach.open_ended[share] else ''}{b}"


def published_note(rate: Rate | None, time_limit: float) -> str:
    """Say where the reach of the published algorithm comes from."""
    if rate is None:
        return f"How fast the published algorithm is has not been measured: {PUBLISHED.name} is not there."
    return (
        f"Published algorithm: the largest b whose expected number of submatrices "
        f"(`spear_np.theory.expected_submatrices`) is drawn within {time_limit:g} s at "
        f"{rate.submatrices_per_second:,.0f} a second. That is the rate of `benchmarks/published.py` at m = {rate.m}, "
        f"b = {rate.b} with {rate.threads} thread(s) on {rate.environment['cpu']} (`results/{PUBLISHED.name}`). "
        "It is kept for wider layers and larger batches, which favours the published algorithm."
    )


def environments(rows: list[Row]) -> list[Row]:
    """Return where and with what the rows were measured, the first of those that differ in date and load alone."""
    distinct: dict[str, Row] = {}
    for row in rows:
        same = {name: value for name, value in row["environment"].items() if name not in ("date", "load")}
        distinct.setdefault(json.dumps(same), row["environment"])
    return list(distinct.values())


def on(rows: list[Row], setting: Row) -> str:
    """Return the GPU that was used in these surroundings, as the end of a sentence."""
    names = {row["accelerator"] for row in rows if row["environment"] == setting and row["accelerator"]}
    return "".join(f", on {name}" for name in sorted(names))


def machines(rows: list[Row]) -> str:
    """Return what did the work, for the title of the picture."""
    names = [
        row["accelerator"] or f"{row['environment']['cpu']}, {row['environment']['cores']} cores"
        for row in rows
    ]
    return " and ".join(dict.fromkeys(names))


def draw(cells: list[Cell], reaches: list[Reach], setting: Row, machine: str, path: Path) -> None:
    """Write batch size against width as a PNG: every cell a dot, the reach of either method a line."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    axis.set(xscale="log", yscale="log", xlabel="width of the layer m", ylabel="batch size b")
    dots = axis.scatter(
        [cell.m for cell in cells],
        [cell.b for cell in cells],
        c=[100 * cell.whole / cell.batches for cell in cells],
        cmap="Greys",
        vmin=0,
        vmax=100,
        s=34,
        edgecolors="0.35",
        linewidths=0.7,
        zorder=4,
    )
    plot(axis, [(each.m, each.bound) for each in reaches], "counting bound m/2", BOUND)
    for share in reversed(REACHES):
        label = f"spear-np, {share} % of the batches"
        plot(axis, [(each.m, each.ours[share]) for each in reaches], label, OURS[share])
    plot(axis, [(each.m, each.published) for each in reaches], "published algorithm, expected", THEIRS)

    ticks(axis.xaxis, widths(cells))
    low, high = axis.get_ylim()
    ticks(axis.yaxis, [b for power in range(6) for b in (10**power, 2 * 10**power, 5 * 10**power)])
    axis.set_ylim(low, high)
    axis.margins(x=0.08)
    axis.grid(color="0.92", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper left", frameon=False, fontsize=9)
    bar = figure.colorbar(dots, ax=axis, shrink=0.5, aspect=14, ticks=[0, 50, 100])
    bar.set_label("batches recovered whole, %", fontsize=9)
    bar.outline.set_linewidth(0.5)
    axis.set_title(f"Whole batches recovered within {setting['time_limit']:g} s", loc="left", pad=24)
    most = max(cell.batches for cell in cells)
    about = (
        f"{machine}; Fashion-MNIST, {setting['depth']} layers, {setting['dtype']}, up to {most} batches a dot"
    )
    axis.text(0, 1.025, about, transform=axis.transAxes, fontsize=9, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot(axis: Any, points: list[tuple[int, int | None]], label: str, style: dict[str, Any]) -> None:
    """Join the points that are there, with a mark on a single one, which makes no line."""
    there = [(m, b) for m, b in points if b is not None]
    if there:
        mark = {"marker": "_", "ms": 16, "mew": style["lw"]} if len(there) == 1 else {}
        axis.plot(*zip(*there, strict=True), label=label, solid_capstyle="round", **style, **mark)


def ticks(axis: Any, values: list[int]) -> None:
    """Put ticks at these values and nowhere else, with plain numbers."""
    axis.set_ticks(values, labels=[f"{value:,}" for value in values])
    axis.set_ticks([], minor=True)


if __name__ == "__main__":
    sys.exit(main())
