"""Is `exact` right on updates that were altered, and does the line that says it state what it rests on?

    python -m benchmarks.alterations --layers 100 --workers 2 --save alterations
    python -m benchmarks.alterations "Muon, exact" --layers 1 --first-seed 17
    python -m benchmarks.alterations --chain --layers 20          # with the layer behind

Every seed is one layer of every family of `benchmarks.families`. An answer is held against the inputs as the user knows them.
Where it differs, the premises that it states (`Certificate.rests_on`) are held against what was done to the update: an answer is
*unstated* wrong if all of them are true and it is wrong all the same. Results go to a file of JSON lines as they come, and what is already
in it is not run again. The exit status is 1 if an answer is unstated wrong, or the solver crashed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits

import spear_np
from benchmarks import environment
from benchmarks.families import FAMILIES, Array, Update
from benchmarks.runs import Results, Row, one_of
from spear_np.backend.host import to_host
from spear_np.checks.specification import EXACT_TOLERANCE

FIELDS = ("family", "chain", "time_limit", "max_proposals", "seed")
STATUSES = ("exact", "approximate", "partial", "failed")


def main() -> int:
    options = parse()
    results = Results.read(options.results, FIELDS)
    seeds = range(options.first_seed, options.first_seed + options.layers)
    settings = [
        dict(zip(FIELDS, (name, options.chain, options.time_limit, options.max_proposals, seed), strict=True))
        for seed in seeds
        for name in options.families or FAMILIES
    ]
    missing = [setting for setting in settings if results.get(setting) is None]
    with ProcessPoolExecutor(options.workers) as pool:
        for setting, row in zip(missing, pool.map(run, missing, chunksize=4), strict=True):
            results.once(setting, partial(dict, row))
            if is_broken(row):
                print(
                    f"{setting['family']}, seed {setting['seed']}, {row['status']}: {row['what']}", flush=True
                )
    rows = [{**setting, **(results.get(setting) or {})} for setting in settings]
    table = report(rows, options)
    print("\n" + table)
    if options.save:
        broken = [row for row in rows if is_broken(row)]
        setting = {name: getattr(options, name) for name in ("layers", "first_seed", "chain", "time_limit")}
        data = {**setting, "environment": environment.describe(), "broken": broken}
        environment.save(environment.RESULTS / options.save, data, table)
    return 1 if any(row["unstated"] or row["status"] == "crash" for row in rows) else 0


def is_broken(row: Row) -> bool:
    """Whether an answer is wrong, or a row beyond its bound, and what is stated does not cover it."""
    return bool(row["unstated"] or row["unstated_beyond"] or row["status"] == "crash")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", type=one_of(FAMILIES), metavar="FAMILY", help="all if none")
    parser.add_argument("--layers", type=int, default=20, help="of each family")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--chain", action="store_true", help="hand over the layer behind as well")
    parser.add_argument("--time-limit", type=float, default=5.0, help="seconds a layer")
    parser.add_argument("--max-proposals", type=int, default=3000, help="candidates a layer")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=environment.RESULTS / "alterations.jsonl")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    return parser.parse_args()


def drawn(name: str, seed: int) -> Update:
    """Return one update of a family: the same for the same seed, whatever other families there are."""
    return FAMILIES[name](np.random.default_rng([seed, *name.encode()]))


def invert(update: Update, *, chain: bool = False, **options: Any) -> spear_np.Inversion:
    """Invert the first layer of an `update`, alone or with the one behind it."""
    layers = [one.handed_over("relu" if number == 0 else "none") for number, one in enumerate(update.layers)]
    if chain:
        return spear_np.invert_chain(layers, loss="cross_entropy", **options)
    return spear_np.invert_layer(layers[0], **options)


def run(setting: Row) -> Row:
    """Invert one layer and judge the answer."""
    update = drawn(setting["family"], setting["seed"])
    options = {name: setting[name] for name in ("chain", "time_limit", "max_proposals")}
    try:
        with threadpool_limits(limits=1):
            result = invert(update, **options)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        nothing = dict.fromkeys(("wrong", "unstated", "rows", "beyond", "unstated_beyond"), 0)
        return nothing | {"status": "crash", "what": f"{type(error).__name__}: {error}"}
    return judged(result, update)


def judged(result: spear_np.Inversion, update: Update) -> Row:
    """Hold an answer against the truth, and its premises against what was done to the update."""
    rows, bounds = to_host(result.inputs), np.asarray(result.certificate.error_bound)
    stated = {premise.name for premise in result.certificate.rests_on}
    span = float(np.ptp(update.inputs)) or 1.0
    inputs, seen = _errors(rows, update.inputs), _errors(rows, update.seen)
    missing = len(np.unique(update.seen, axis=0)) - result.found
    exact = result.status is spear_np.Status.EXACT
    off = EXACT_TOLERANCE * span
    wrong = exact and (bool(np.any(inputs > off)) or missing > 0)
    excused = (
        (any("plain" in name for name in stated) and not update.plain)
        or ("layers linked" in stated and not update.one_step)
        or ("inputs without mean" in stated and not update.with_mean)
    )
    if excused:
        unstated, unstated_beyond = False, 0
    else:
        hidden = missing > 0 and not any("hidden" in name for name in stated)
        unstated = exact and (bool(np.any(seen > off)) or hidden)
        unstated_beyond = int(np.sum(seen > bounds))
        if update.alike and "none alike" in stated:
            unstated, unstated_beyond = False, 0
        if not update.as_given and "layer as given" in stated:
            unstated_beyond = 0
    return {
        "status": str(result.status),
        "wrong": wrong,
        "unstated": unstated,
        "rows": result.found,
        "beyond": int(np.sum(inputs > bounds)),
        "unstated_beyond": unstated_beyond,
        "what": f"off by up to {np.max(seen, initial=0) / span:.1e} of the range, bounds up to "
        f"{np.max(bounds, initial=0) / span:.1e}, {missing} missing; {', '.join(sorted(stated))}; {result.reason}",
    }


def _errors(rows: Array, truth: Array) -> Array:
    """(k,): largest error of each row (k, n) against the true input (b, n) that it is matched to; infinite without one."""
    distance = np.max(np.abs(rows[:, None, :] - truth[None, :, :]), axis=2)
    errors = np.full(len(rows), np.inf)
    at, to = linear_sum_assignment(distance)
    errors[at] = distance[at, to]
    return errors


def report(rows: list[Row], options: argparse.Namespace) -> str:
    """Return the table, one line for each family, and the sums."""
    names = list(dict.fromkeys(row["family"] for row in rows))
    lines = [_line(name, [row for row in rows if row["family"] == name]) for name in names]
    lines.append(_line("**all**", rows))
    header = (
        "family",
        "layers",
        *STATUSES,
        "exact, but not the user's inputs",
        "of these not by what the line states",
        "rows",
        "beyond their bound",
        "of these not by what is stated",
    )
    last = options.first_seed + options.layers - 1
    how = "with the layer behind" if options.chain else "one layer alone"
    return (
        f"{len(rows):,} layers, {how}, seeds {options.first_seed} to {last}, at most {options.max_proposals:,} proposals and "
        f"{options.time_limit:g} s each.\n\n{environment.markdown(header, lines)}\n"
        f"{environment.sentence(environment.describe())}\n"
    )


def _line(name: str, rows: list[Row]) -> tuple[Any, ...]:
    statuses = Counter(row["status"] for row in rows)
    sums = [
        int(sum(row[key] for row in rows))
        for key in ("wrong", "unstated", "rows", "beyond", "unstated_beyond")
    ]
    return (name, len(rows), *(statuses[status] for status in STATUSES), *sums)


if __name__ == "__main__":
    sys.exit(main())
