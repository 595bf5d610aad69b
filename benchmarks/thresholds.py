"""What halving and doubling each threshold does: how many batches are found whole, and how long it takes.

    python -m benchmarks.thresholds -o benchmarks/results/thresholds.md
    python -m benchmarks.thresholds --only ROW_GAP NEAR_ZERO --batches 10
    python -m benchmarks.thresholds --fits

A constant between a half and one is a share or a cosine: its distance to one is halved and doubled. Tuples and tables are left
alone, and so are limits of memory. Results go to a file of JSON lines as they come, and what is already in it is not run again. `--fits` prints how well patterns of inputs and of mixtures are fitted instead, which is
what the cut-offs of that fit rest on. One thread, one machine, one run: the times of small batches vary by a quarter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import spear_np
from benchmarks import environment
from benchmarks.constants import Threshold, thresholds
from benchmarks.problems import Problem, make_problem
from benchmarks.runs import Results, Row, measure
from benchmarks.updates import noised
from spear_np.backend.devices import CPU
from spear_np.factors.factorize import Factors, factorize
from spear_np.factors.signs import fit_signs, sign_model

LIMITS = (
    "BLOCK_NUMBERS",
    "BLOCK_BYTES",
    "CARD_ARRAYS",
    "ALIGNED",
    "SMALL_MATRIX",
    "COVARIANCE_NUMBERS",
    "CALIBRATION",
    "CALIBRATION_NUMBERS",
)
"""What bounds memory or measures time, and changes no answer."""
TABLES = ("checks/specification.py",)
"""Modules whose constants are built into a table when they are imported."""
FIRST_SEED = 7001
NOISE = 1e-3
TRAINED = 300
CASES: dict[str, Callable[[int], Problem]] = {
    "80 x 16": lambda seed: make_problem(80, 16, seed),
    "200 x 20": lambda seed: make_problem(200, 20, seed),
    "200 x 40": lambda seed: make_problem(200, 40, seed),
    "200 x 20, noise of 1e-3": lambda seed: noised(make_problem(200, 20, seed), NOISE, seed),
    "200 x 20, trained 300 steps": lambda seed: make_problem(200, 20, seed, steps=TRAINED),
}
FIELDS = ("constant", "change", "batches", "time_limit")
"""What tells two lines of the results apart."""
FITTED = ((80, 16), (200, 20), (200, 40), (400, 70))


@dataclass(frozen=True)
class Outcome:
    """What became of all batches under one setting."""

    whole: int
    """Found whole, `exact` or `approximate`."""
    exact: int
    recovered: int
    """Inputs that some row is, to `EXACT_TOLERANCE` of the data range."""
    wrong: int
    """Called exact although they are not."""
    seconds: list[float]
    """Processor time of each batch."""


def main() -> int:
    options = parse()
    if options.fits:
        print(fits())
        return 0
    problems = [make(FIRST_SEED + number) for make in CASES.values() for number in range(options.batches)]
    results = Results.read(options.results, FIELDS)

    def once(name: str, change: str) -> Outcome:
        setting = dict(zip(FIELDS, (name, change, options.batches, options.time_limit), strict=True))
        row = results.once(setting, lambda: asdict(outcome_of(problems, options.time_limit)))
        outcome = Outcome(**{field.name: row[field.name] for field in fields(Outcome)})
        print(f"{name} {change}: {outcome}", file=sys.stderr, flush=True)
        return outcome

    outcome_of(problems, options.time_limit)  # warms up
    usual = once("nothing", "as it is")
    rows: list[tuple[Threshold, str, Outcome]] = []
    for threshold in thresholds():
        fixed = threshold.name in LIMITS or threshold.kind == "Definition" or threshold.module in TABLES
        if fixed or (options.only and threshold.name not in options.only):
            continue
        for label, value in changes(threshold):
            change = f"{label}: {value:g}"
            with changed(threshold, value):
                rows.append((threshold, change, once(threshold.name, change)))
    text = report(usual, rows, options.batches)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text)
    return int(any(outcome.wrong for _, _, outcome in rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these constants")
    parser.add_argument("--batches", type=int, default=2, help="of each kind")
    parser.add_argument("--time-limit", type=float, default=4.0, help="seconds a batch")
    parser.add_argument("--fits", action="store_true", help="fits of patterns instead")
    parser.add_argument("--results", type=Path, default=environment.RESULTS / "thresholds.jsonl")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file to write")
    return parser.parse_args()


def changes(threshold: Threshold) -> Iterator[tuple[str, Any]]:
    """Yield what to call the halved and the doubled value, and the value itself."""
    value = value_of(threshold)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if isinstance(value, int):
        if value // 2 >= 1:
            yield "halved", value // 2
        yield "doubled", 2 * value
    elif 0.5 < value < 1:
        yield "half as far from one", 1 - (1 - value) / 2
        yield "twice as far from one", 1 - 2 * (1 - value)
    else:
        yield "halved", value / 2
        yield "doubled", 2 * value


def value_of(threshold: Threshold) -> Any:
    """Return the value that the module has."""
    name = "spear_np." + threshold.module.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    return getattr(sys.modules[name], threshold.name)


@contextmanager
def changed(threshold: Threshold, value: Any) -> Iterator[None]:
    """Give the constant another value, in every module that has imported it."""
    usual = value_of(threshold)
    holders = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("spear_np.") and threshold.name in vars(module)
    ]
    for module in holders:
        setattr(module, threshold.name, value)
    try:
        yield
    finally:
        for module in holders:
            setattr(module, threshold.name, usual)


def outcome_of(problems: list[Problem], time_limit: float) -> Outcome:
    """Invert all problems; a value that the code cannot work with at all finds nothing."""
    rows: list[Row] = []
    for number, problem in enumerate(problems):
        with np.errstate(all="ignore"):
            try:
                rows.append(measure(problem, seed=number, time_limit=time_limit))
            except (ValueError, np.linalg.LinAlgError):
                rows.append({"status": "failed", "recovered": 0, "wrong": False, "cpu_seconds": 0.0})
    return Outcome(
        whole=sum(row["status"] in ("exact", "approximate") for row in rows),
        exact=sum(row["status"] == "exact" for row in rows),
        recovered=sum(row["recovered"] for row in rows),
        wrong=sum(row["wrong"] for row in rows),
        seconds=[row["cpu_seconds"] for row in rows],
    )


def slowdown(outcome: Outcome, usual: Outcome) -> float:
    """Median over the batches of how many times longer they took."""
    return statistics.median(a / max(b, 1e-4) for a, b in zip(outcome.seconds, usual.seconds, strict=True))


def report(usual: Outcome, rows: list[tuple[Threshold, str, Outcome]], batches: int) -> str:
    """Return the tables: what changed something, and what changed nothing."""
    total = len(usual.seconds)
    introduction = (
        f"`python -m benchmarks.thresholds`: {batches} batches each of {'; '.join(CASES)}: {total} in all. As they are, "
        f"{usual.whole} are found whole, {usual.exact} of them `exact`, {usual.recovered} inputs to 1e-4 of the data range, in "
        f"{sum(usual.seconds):.1f} s. Times are medians over the batches, relative to that; on a busy machine they vary by a "
        "third. Definitions, limits of memory, tuples and the thresholds of the checks are not varied. These batches are well within "
        "reach: nearer to its edge more will be felt. And a threshold that guards the certificate is no better for letting more pass."
    )
    lines = [
        "# What thresholds change",
        "",
        introduction,
        "",
        "## Changes that are felt",
        "",
        "| constant | kind | change | whole | exact | inputs | wrongly exact | time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    silent: dict[str, int] = {}
    for threshold, change, outcome in rows:
        same = (outcome.whole, outcome.exact, outcome.recovered) == (
            usual.whole,
            usual.exact,
            usual.recovered,
        )
        factor = slowdown(outcome, usual)
        if same and not outcome.wrong and 0.67 < factor < 1.5:
            silent[threshold.name] = silent.get(threshold.name, 0) + 1
            continue
        lines.append(
            f"| `{threshold.name}` | {threshold.kind.lower()} | {change} | {outcome.whole} | {outcome.exact} | "
            f"{outcome.recovered} | {outcome.wrong} | {factor:.2g} |"
        )
    both = sorted(
        {t.name for t, _, _ in rows if silent.get(t.name) == sum(o.name == t.name for o, _, _ in rows)}
    )
    lines += [
        "",
        "## Changes that are not felt",
        "",
        "Halved and doubled, nothing changed but the time, and that by less than a half: "
        + ", ".join(f"`{name}`" for name in both)
        + ".",
        "",
        environment.sentence(environment.describe()),
        "",
    ]
    return "\n".join(lines)


def fits() -> str:
    """Return how well the layer explains patterns of inputs and of sums of two and three directions."""
    lines = ["| m x b | pattern of | least | 5 % | median | 95 % |", "| --- | --- | --- | --- | --- | --- |"]
    for m, b in FITTED:
        found: dict[str, list[Any]] = {"one input": [], "two inputs": [], "three inputs": []}
        for seed in range(5):
            problem = make_problem(m, b, FIRST_SEED + seed)
            factors = factorize(spear_np.LayerGradients(**problem.arguments), CPU, b)
            assert isinstance(factors, Factors)
            space, model = factors.space, sign_model(factors)
            assert model is not None
            coordinates = problem.images.inputs @ (problem.weight_grad.astype(np.float64).T @ space.to_basis)
            q = np.linalg.inv(coordinates).T * space.S
            q /= np.linalg.norm(q, axis=1, keepdims=True)
            two = q + np.roll(q, 1, axis=0)
            for name, vectors in zip(found, (q, two, two + np.roll(q, 2, axis=0)), strict=True):
                found[name].append(fit_signs(space, model, ~space.zeros(vectors))[0])
        for name, values in found.items():
            least, low, median, high = np.quantile(np.concatenate(values), [0, 0.05, 0.5, 0.95])
            lines.append(f"| {m} x {b} | {name} | {least:.3f} | {low:.3f} | {median:.3f} | {high:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
