"""How much of a batch `invert` recovers from data and networks other than those it is usually measured on.

    python -m benchmarks.robustness                    # every scenario, 5 batches each
    python -m benchmarks.robustness digits depth-2     # these alone
    python -m benchmarks.robustness --time-limit 10 --results elsewhere.jsonl

Every batch has new inputs and a new network, and the size of the batch is not given away. Results go to a file of JSON
lines as they come, and what is already in it is not run again; the table beside it shows all of it.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import Counter
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.problems import Loss, Problem, Source, make_problem
from benchmarks.runs import Results, Row, exit_status, measure, one_of


@dataclass(frozen=True)
class Scenario:
    """A kind of problem; the options are those of `make_problem`."""

    name: str
    """Several may share one, and are run together."""
    m: int = 200
    b: int = 20
    source: Source = "fashion-mnist"
    normalised: bool = True
    depth: int = 6
    layer: int = 0
    share_on: float | None = None
    weight_std: float | None = None
    steps: int = 0
    loss: Loss = "cross-entropy"

    def problem(self, seed: int) -> Problem:
        """Return a batch of this kind."""
        options = asdict(self)
        del options["name"]
        return make_problem(**options, seed=seed)


SCENARIOS = (
    # Other data.
    Scenario("digits", source="digits"),
    Scenario("photos", source="photos", b=25),
    Scenario("adult", source="adult"),
    # All alike: at the brightness of pixels, some turn on what others do but for a unit or two.
    Scenario("faces", m=150, b=10, source="faces"),
    Scenario("faces", source="faces"),
    Scenario("face-pixels", m=100, b=10, source="faces", normalised=False),
    Scenario("face-pixels", m=150, b=10, source="faces", normalised=False),
    Scenario("face-pixels", source="faces", normalised=False),
    Scenario("gaussian", source="gaussian"),
    Scenario("gaussian", source="gaussian", b=40),
    Scenario("pixels", normalised=False),
    Scenario("pixels", normalised=False, b=40),
    # Other networks, and layers that are not the first.
    *(Scenario(f"depth-{depth}", depth=depth) for depth in range(2, 9)),
    Scenario("layer-1", layer=1),
    Scenario("layer-2", layer=2),
    # Biases that turn few or most units on.
    Scenario("20-percent-on", share_on=0.2),
    Scenario("80-percent-on", share_on=0.8, b=10),
    Scenario("80-percent-on", share_on=0.8, b=15),
    Scenario("80-percent-on", share_on=0.8),
    # Other weights and losses.
    Scenario("trained", steps=300, b=10),
    Scenario("trained", steps=300),
    Scenario("saturated", weight_std=0.5, b=10),
    Scenario("saturated", weight_std=0.5),
    Scenario("squared-error", loss="squared-error"),
)
FIELDS = (*(field.name for field in fields(Scenario)), "time_limit", "seed")
"""What tells two lines of the results apart."""
NAMES = tuple(dict.fromkeys(scenario.name for scenario in SCENARIOS))


def main() -> int:
    options = parse()
    results = Results.read(options.results, FIELDS)
    rows = []
    for scenario in SCENARIOS:
        for seed in range(options.first_seed, options.first_seed + options.batches):
            setting = {**asdict(scenario), "time_limit": options.time_limit, "seed": seed}
            row = results.get(setting)
            if scenario.name in (options.names or NAMES):
                row = results.once(setting, partial(run, scenario, setting))
                print(line(row), flush=True)
            if row is not None:
                rows.append(row)
    summaries = [
        summary(scenario, members)
        for scenario in SCENARIOS
        if (members := [row for row in rows if asdict(scenario).items() <= row.items()])
    ]
    machine = measured_on(rows)
    table = report(summaries, options, machine)
    print("\n" + table)
    environment.save(
        options.results, {"environment": machine, "time_limit": options.time_limit, "rows": summaries}, table
    )
    return exit_status(rows, line)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        type=one_of(NAMES),
        metavar="NAME",
        help=f"one of {', '.join(NAMES)}; all if none is given",
    )
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=3001)
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds a batch")
    parser.add_argument("--results", type=Path, default=environment.RESULTS / "robustness.jsonl")
    return parser.parse_args()


def run(scenario: Scenario, setting: Row) -> Row:
    """Invert one fresh batch and hold the answer against the truth."""
    problem = scenario.problem(setting["seed"])
    answer = measure(problem, seed=setting["seed"], time_limit=setting["time_limit"])
    return {"n": problem.images.inputs.shape[1], **answer}


def line(row: Row) -> str:
    """One finished batch for the terminal."""
    return (
        f"{row['name']}, m = {row['m']}, b = {row['b']}, n = {row['n']}, seed {row['seed']}: {row['status']}, "
        f"{row['recovered']}/{row['b']} recovered ({row['visible']} visible, {row['found']} handed out), "
        f"{row['seconds']:.2f} s"
    )


def summary(scenario: Scenario, rows: list[Row]) -> Row:
    """Return the figures of a scenario."""
    short = [row for row in rows if row["status"] != "exact"]
    reasons = Counter(f"{row['status']}: {without_counts(row['reason'])}" for row in short)
    inputs = sum(row["b"] for row in rows)
    seconds = [row["seconds"] for row in rows]
    return {
        "scenario": scenario.name,
        "m": scenario.m,
        "b": scenario.b,
        "n": rows[0]["n"],
        "activity": statistics.mean(row["activity"] for row in rows),
        "batches": len(rows),
        "exact": len(rows) - len(short),
        "visible": sum(row["visible"] for row in rows) / inputs,
        "recovered": sum(row["recovered"] for row in rows) / inputs,
        "wrong": sum(row["wrong"] for row in rows),
        "median_seconds": statistics.median(seconds),
        "max_seconds": max(seconds),
        "reason": reasons.most_common(1)[0][0] if reasons else None,
    }


def without_counts(reason: str) -> str:
    """Return a reason without how many inputs it is about, in which batches may differ."""
    return re.sub(r"\b\d+(?= of \d+ (?:inputs|directions)\b| inputs are\b)", "…", reason)


def measured_on(rows: list[Row]) -> dict[str, Any]:
    """Return what the rows were measured on, as `environment.describe` does; they may differ in some of it."""
    settings = [row["environment"] for row in rows]
    values = {key: list(dict.fromkeys(setting[key] for setting in settings)) for key in settings[0]}
    joined = {
        key: found[0] if len(found) == 1 else ", ".join(map(str, found)) for key, found in values.items()
    }
    return {**joined, "date": max(values["date"]), "load": max(values["load"])}


def report(summaries: list[Row], options: argparse.Namespace, setting: dict[str, Any]) -> str:
    """Return the table: one line for each scenario."""
    header = (
        "scenario",
        "m",
        "b",
        "n",
        "units on",
        "exact",
        "inputs that left a trace",
        "inputs recovered",
        "wrongly exact",
        "median s",
        "maximum s",
        "most often, where not exact",
    )
    lines = [
        (
            *(row[key] for key in ("scenario", "m", "b", "n")),
            f"{row['activity']:.0%}",
            f"{row['exact']}/{row['batches']}",
            f"{row['visible']:.1%}",
            f"{row['recovered']:.1%}",
            row["wrong"],
            f"{row['median_seconds']:.2f}",
            f"{row['max_seconds']:.2f}",
            row["reason"] or "–",
        )
        for row in summaries
    ]
    return (
        f"float32, up to {options.batches} batches each, seeds from {options.first_seed}, "
        f"at most {options.time_limit:g} s a batch. "
        "Recovered is an input of which no entry is off by 1e-4 of the data range, in any batch, exact or not.\n\n"
        f"{environment.markdown(header, lines)}\n{environment.sentence(setting)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
