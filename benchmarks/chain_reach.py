"""The largest batches found whole, by what is shared: one layer, one hidden layer with its output layer, chains of K layers.

    python -m benchmarks.chain_reach --widths 100 200 400 --batches 5 --save chain_reach

For every width the batch grows by a twentieth of it until fewer than four in five batches are found whole: every input within
1e-4 of the data range in the time allowed, whatever the certificate says. The picture goes to docs/chain_reach.png.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import spear_np
from benchmarks import environment
from benchmarks.chain import Cell, Outcome, judged, run
from benchmarks.networks import Network, share
from spear_np.theory import hit_probability

SHARE = 0.8
"""Of the batches that must be whole."""
STEP = 0.05
"""By which the batch grows, as a share of the width."""
PICTURE = Path(__file__).parent.parent / "docs" / "chain_reach.png"


@dataclass(frozen=True)
class Way:
    """One way to the inputs."""

    title: str
    activation: str
    hidden: int
    """Layers of the network before the output layer."""
    method: str | None
    """None for the first layer alone."""
    counting: float | None = None
    """What counting equations allows, as a share of the width."""
    start: float = 0.3


WAYS = (
    Way("ReLU, zeros of one layer", "relu", 5, None, start=0.1),
    Way("ReLU, one hidden layer and the output layer", "relu", 1, "auto", start=0.4),
    Way("ReLU, chain of K = 1", "relu", 2, "chain", 1 / 2),
    Way("ReLU, chain of K = 2", "relu", 3, "chain", 2 / 3, start=0.4),
    Way("ReLU, chain of K = 3", "relu", 4, "chain", 3 / 4, start=0.4),
    Way("GELU, chain of K = 1", "gelu", 2, "chain", 1 / 2),
    Way("GELU, chain of K = 2", "gelu", 3, "chain", 2 / 3, start=0.4),
    Way("GELU, chain of K = 3", "gelu", 4, "chain", 3 / 4, start=0.4),
)


def alone(cell: Cell, seed: int) -> Outcome:
    """Invert the first layer as if nothing were known of the others."""
    shared = share(cell.network, cell.b, seed)
    started = time.perf_counter()
    result = spear_np.invert_layer(shared.layers[0], time_limit=cell.time_limit)
    return judged(shared, result, time.perf_counter() - started)


def largest(way: Way, m: int, options: argparse.Namespace) -> int:
    """The largest batch of which enough are whole; zero if even the first is not."""
    reached, step = 0, max(1, round(STEP * m))
    for b in range(round(way.start * m), m, step):
        network = Network(widths=(m,) * way.hidden, activation=way.activation)
        cell = Cell(way.title, network, b, time_limit=options.time_limit)
        lost, allowed = 0, int((1 - SHARE) * options.batches + 1e-9)
        for seed in range(options.first_seed, options.first_seed + options.batches):
            outcome = alone(cell, seed) if way.method is None else run(cell, seed, way.method)
            lost += outcome.right < b or outcome.seconds > 1.5 * options.time_limit
            if lost > allowed:
                return reached
        reached = b
        print(f"  {way.title}, m = {m}: {b} ({outcome.seconds:.1f} s)", flush=True)
    return reached


def published(m: int, submatrices: float = 4e5) -> int:
    """The largest batch that the published sampling is expected to find within so many submatrices."""
    b = 2
    while sum(1 / i for i in range(1, b + 1)) <= submatrices * hit_probability(m, b):
        b += 1
    return b - 1


def report(table: dict[Way, dict[int, int]], options: argparse.Namespace) -> str:
    """The figures as Markdown."""
    header = ("what is used", *(f"m = {m}" for m in options.widths), "by counting")
    lines = [
        (way.title, *reached.values(), "–" if way.counting is None else f"{way.counting:.2f} m")
        for way, reached in table.items()
    ]
    first, last = options.first_seed, options.first_seed + options.batches - 1
    return (
        f"Largest batch of which four in five are whole, {options.batches} batches a size, seeds {first} to {last}, "
        f"{options.time_limit:g} seconds a batch.\n\n{environment.markdown(header, lines)}\n"
        f"{environment.sentence(environment.describe())}\n"
    )


def draw(table: dict[Way, dict[int, int]], path: Path) -> None:
    """Batch size as a share of the width: a group of bars for each way, one a width, and what counting allows."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    widths = sorted({m for reached in table.values() for m in reached})
    rows = np.arange(len(table) + 1)
    thick = 0.8 / len(widths)
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for number, m in enumerate(widths):
        values = [published(m), *(reached[m] for reached in table.values())]
        places = rows + (number - (len(widths) - 1) / 2) * thick
        bars = axis.barh(places, [b / m for b in values], thick * 0.9, color=f"C{number}", label=f"m = {m}")
        axis.bar_label(bars, [f"b = {b}" for b in values], padding=3, fontsize=8)
    for row, way in enumerate(table, start=1):
        if way.counting is not None:
            axis.plot([way.counting] * 2, [row - 0.45, row + 0.45], color="black", linewidth=1.5)
    axis.plot([], [], color="black", linewidth=1.5, label="by counting")
    axis.set_yticks(rows, ["published sampling, expected", *(way.title for way in table)])
    axis.invert_yaxis()
    axis.set(xlabel="largest batch found whole, as a share of the units", xlim=(0, 0.85))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 0.62))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=86001)
    parser.add_argument("--time-limit", type=float, default=30.0, help="seconds a batch")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.md and the picture")
    options = parser.parse_args()
    table = {way: {m: largest(way, m, options) for m in options.widths} for way in WAYS}
    text = report(table, options)
    print("\n" + text)
    if options.save:
        (environment.RESULTS / f"{options.save}.md").write_text(text)
        draw(table, PICTURE)


if __name__ == "__main__":
    main()
