"""How much noise hides the batch of the shipped dump, measured directly, beside what `spear-np audit` says.

    python -m benchmarks.audit_break_even --save audit_break_even

Independent of `spear_io.audit`: the arrays are read with h5py, noise is added here at levels that the sweep does not share, with
several seeds each, the attacker is told the batch size or not, and rows are matched to the truth by PSNR. The audit agrees if its break-even lies within
one step of its sweep of that of the direct measurement.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits

import spear_np
from benchmarks import environment
from spear_io.audit.defences import NOISE
from spear_io.audit.document import document_of
from spear_io.audit.result import Asked
from spear_io.audit.run import audit
from spear_io.audit.sweep import Budget

DUMP = Path(__file__).parent.parent / "examples" / "fashion_mnist_b16.h5"
LEVELS = tuple(float(f"{level:.3g}") for level in np.geomspace(0.02, 1.0, 18))
GOOD = 20.0
"""dB."""


def main() -> int:
    options = parse()
    with h5py.File(DUMP) as file:
        record = file["records/client-0"]
        arrays = {name: dataset[:] for name, dataset in record["layers/0"].items()}
        truth = record["truth/0/inputs"][:].astype(np.float64)
    with threadpool_limits(limits=1):
        rows = [measured(arrays, truth, level, options) for level in LEVELS]
        found = audit(DUMP, None, Asked(defences=("noise",)), Budget(options.time_limit, options.first_seed))
    leaks, enough = found.curves[0].break_even
    hidden = next((level for level, counts in rows if not any(counts)), None)
    beneath = max((level for level, counts in rows if any(counts)), default=None)
    agrees = within_a_step(enough, hidden)
    table = environment.markdown(
        ("noise, of the root mean square", *(f"recovered, seed {seed}" for seed in seeds(options))),
        [(f"{level:g}", *(f"{count} of {len(truth)}" for count in counts)) for level, counts in rows],
    )
    text = (
        f"{DUMP.name}, inputs above {GOOD:g} dB, at most {options.time_limit:g} s an inversion.\n\n{table}\n"
        f"Direct: some recovered up to {beneath}, none from {hidden} on. Audit: leaks at {leaks}, enough from {enough} on. "
        f"Within one step of the sweep: {'yes' if agrees else 'no'}.\n\n{environment.sentence(environment.describe())}\n"
    )
    print(text)
    if options.save:
        data = {"rows": rows, "audit": document_of(found), "environment": environment.describe()}
        environment.save(environment.RESULTS / options.save, data, text)
    return 0 if agrees else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--time-limit", type=float, default=5.0, help="seconds an inversion")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json and results/NAME.md")
    return parser.parse_args()


def seeds(options: argparse.Namespace) -> range:
    return range(options.first_seed, options.first_seed + options.seeds)


def measured(
    arrays: dict[str, Any], truth: np.ndarray[Any, Any], level: float, options: argparse.Namespace
) -> tuple[float, list[int]]:
    """Count the inputs recovered at one level of noise, for each seed."""
    deviation = level * np.sqrt(np.mean(arrays["weight_grad"].astype(np.float64) ** 2))
    counts = []
    for seed in seeds(options):
        rng = np.random.default_rng([seed, round(1e6 * level)])
        noised = {
            name: (arrays[name] + deviation * rng.standard_normal(arrays[name].shape)).astype(np.float32)
            for name in ("weight_grad", "bias_grad")
        }
        best = 0
        for batch in (None, len(truth)):
            result = spear_np.invert(
                **{**arrays, **noised}, batch_size=batch, seed=seed, time_limit=options.time_limit
            )
            best = max(best, recovered(np.asarray(result.inputs), truth))
            if best:
                break
        counts.append(best)
    print(f"{level:g}: {counts}", file=sys.stderr, flush=True)
    return level, counts


def recovered(rows: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> int:
    """How many true inputs have a row of their own within `GOOD`."""
    if not len(rows):
        return 0
    error = np.stack([np.mean((truth - row) ** 2, axis=1) for row in rows], axis=1)
    psnr = 10 * np.log10(np.ptp(truth) ** 2 / np.maximum(error, 1e-300))
    return int(np.sum(psnr[linear_sum_assignment(error)] >= GOOD))


def within_a_step(audited: float | None, direct: float | None) -> bool:
    """Whether no more than one strength of the sweep lies between two break-even points."""
    if audited is None or direct is None:
        return audited is direct
    low, high = sorted((audited, direct))
    return sum(low < strength < high for strength in NOISE) <= 1


if __name__ == "__main__":
    sys.exit(main())
