"""What each ingredient of the search contributes: the same batches, one ingredient taken out at a time.

    python -m benchmarks.ablation
    python -m benchmarks.ablation "everything" "no deflation" --cells 200,60 --batches 10

Every variant sees the same gradients, b not given, the same seeds. Results go to a file of JSON lines as they come, and
what is already in it is not run again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.problems import make_problem
from benchmarks.runs import Results, Row, concluded, measure, one_of
from benchmarks.success_rate import cell
from spear_np.factors.factorize import Factors
from spear_np.factors.signs import SignModel
from spear_np.search import Search
from spear_np.search.blocks import Settings
from spear_np.search.completion import Completion
from spear_np.search.descent import Descent
from spear_np.search.sampling import Sampling
from spear_np.search.schedule import Schedule

CELLS = ((200, 50), (200, 60), (400, 100), (1000, 120))
SETTING = ("variant", "m", "b", "seed", "time_limit")


def whole(factors: Factors, model: SignModel | None, **settings: Any) -> Search:
    """All searches in turn, as by default, the descent with other settings."""
    descent = Descent.prepare(factors.space, model, Settings(**settings))
    return Schedule(descent, Sampling(), Completion.prepare(factors, model))


def descent_alone(factors: Factors, model: SignModel | None) -> Search:
    """Neither sampling nor completion."""
    return Descent.prepare(factors.space, model)


def no_completion(factors: Factors, model: SignModel | None) -> Search:
    """Descent and sampling."""
    return Schedule(Descent.prepare(factors.space, model), Sampling())


def blind(factors: Factors, model: SignModel | None) -> Search:
    """Descent as if W were unknown: the norm alone, no signs, no deflation."""
    return Descent.prepare(factors.space, model, Settings(sign_weights=False, deflation=False))


VARIANTS: dict[str, Callable[[Factors, SignModel | None], Search]] = {
    "everything": whole,
    "no deflation": partial(whole, deflation=False),
    "no signs in the descent": partial(whole, sign_weights=False),
    "signs without the prior": partial(whole, prior=False),
    "ℓ1 instead of the logarithm": partial(whole, concave=False),
    "no merging of starts": partial(whole, thinning=False),
    "no row weights": partial(whole, alpha=0.0),
    "row weights to the power 1.5": partial(whole, alpha=1.5),
    "half of the starts": partial(whole, starts=128),
    "twice the steps": partial(whole, steps=400),
    "last step 20 times shorter": partial(whole, last_step=5e-5),
    "signs twice as often": partial(whole, sign_interval=4),
    "descent alone": descent_alone,
    "no completion": no_completion,
    "neither signs nor deflation": blind,
}


def main() -> int:
    options = parse()
    results = Results.read(options.results, SETTING)
    names = options.variants or list(VARIANTS)
    for name, (m, b), seed in runs(options, names):
        setting = dict(zip(SETTING, (name, m, b, seed, options.time_limit), strict=True))
        print(line(results.once(setting, partial(run, setting))), flush=True)
    rows = [row for row in results.rows.values() if row["time_limit"] == options.time_limit]
    return concluded(options.results, rows, report(rows), line)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "variants", nargs="*", type=one_of(VARIANTS), metavar="VARIANT", help="all if none is given"
    )
    parser.add_argument("--cells", nargs="+", type=cell, default=CELLS, metavar="M,B")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=7001)
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds a batch")
    parser.add_argument("--results", type=Path, default=environment.RESULTS / "ablation.jsonl")
    return parser.parse_args()


def runs(options: argparse.Namespace, names: list[str]) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Yield variant, cell and seed; the variants of one batch one after the other."""
    for where in options.cells:
        for seed in range(options.first_seed, options.first_seed + options.batches):
            for name in names:
                yield name, where, seed


def run(setting: Row) -> Row:
    """Invert one fresh batch with one variant and hold the answer against the truth."""
    name, m, b, seed, time_limit = (setting[field] for field in SETTING)
    return measure(make_problem(m, b, seed), method=VARIANTS[name], seed=seed, time_limit=time_limit)


def line(row: Row) -> str:
    """One finished batch for the terminal."""
    return (
        f"m = {row['m']}, b = {row['b']}, seed {row['seed']}, {row['variant']}: {row['status']}, "
        f"{row['recovered']}/{row['b']} recovered, {row['seconds']:.2f} s"
    )


def report(rows: list[Row]) -> str:
    """Return the table: one line for each variant, whole batches and median seconds for each cell."""
    cells = sorted({(row["m"], row["b"]) for row in rows})
    lines: list[tuple[Any, ...]] = []
    for name in [name for name in VARIANTS if any(row["variant"] == name for row in rows)]:
        entries: list[str] = []
        for m, b in cells:
            members = [row for row in rows if (row["variant"], row["m"], row["b"]) == (name, m, b)]
            if not members:
                entries.append("–")
                continue
            good = sum(row["status"] == "exact" and not row["wrong"] for row in members)
            seconds = statistics.median(row["seconds"] for row in members)
            entries.append(f"{good}/{len(members)}, {seconds:.2f} s")
        lines.append((name, *entries))
    return environment.markdown(("variant", *(f"m = {m}, b = {b}" for m, b in cells)), lines)


if __name__ == "__main__":
    sys.exit(main())
