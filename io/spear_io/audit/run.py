"""An audit, from a dump to what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import spear_np

from ..files.atomic import new_file
from ..files.dump import Dump, Layer, Record, named, open_dump
from ..files.limits import working
from ..files.storage import TRUTH_AGAIN, check_finite
from ..problems import FileError
from ..show.report.page import MARK, WHAT
from .defences import Defence
from .page import page_of
from .possible import Known, Possible, possible_defences, updates_to_sum
from .privacy import MEANINGFUL, multiplier_for
from .result import Asked, Audit
from .sweep import Budget, as_dp, measured, sweep, target_of
from .update import Shared, read_update

BASELINE_SECONDS = 60.0
"""For the inversion without a defence, at least: what is searched for behind every defence rests on it."""


def audit(
    dump: Path,
    output: Path | None,
    asked: Asked,
    budget: Budget,
    *,
    replace_any: bool = False,
    finished: Callable[[Audit], None] = lambda found: None,
) -> Audit:
    """Sweep the defences over one update of a dump, write the page if there is an `output`, and return what was found.

    When `budget.stop` says so, the audit ends with what is finished, and that is written. `finished` is called with what was found
    before the page is, so that a disk that is full does not lose it.

    Raises
    ------
    FileError
        If the dump cannot be used, gives nothing away that could be protected, or the page cannot be written.
    """
    with open_dump(dump) as opened:
        record, layer = _chosen(opened, asked)
        if output is None:
            return _audited(opened, record, layer, asked, budget)
        with new_file(output, what=WHAT, mark=MARK, sources=[dump], replace=replace_any) as write:
            found = _audited(opened, record, layer, asked, budget)
            finished(found)
            with working():
                write(page_of(found).encode())
            return found


def _chosen(dump: Dump, asked: Asked) -> tuple[Record, Layer]:
    """The record and the layer that are audited: those asked for, or the first that can be inverted."""
    records = (
        dump.records if asked.record is None else (named(dump.records, asked.record, dump.place, "record"),)
    )
    for record in records:
        layers = record.layers
        if asked.layer is not None:
            layers = (named(layers, asked.layer, record.place, "layer"),)
        for layer in layers:
            problem = record.problem_of(layer)
            if problem is None:
                return record, layer
            if asked.layer is not None:
                msg = f"a layer that cannot be inverted: {problem}"
                raise FileError(msg, layer.place, "choose another layer with --layer")
    msg = "no layer can be inverted"
    raise FileError(msg, dump.place, "spear-np inspect says why")


def _audited(dump: Dump, record: Record, layer: Layer, asked: Asked, budget: Budget) -> Audit:
    update = read_update(record, layer)
    truth = None
    if layer.truth is not None:
        check_finite(layer.truth, TRUTH_AGAIN)
        truth = layer.truth[:, :]
    summed = not asked.defences or "records" in asked.defences
    others = updates_to_sum(dump, record, layer, update) if summed else []
    labels = record.labels
    known_labels = None if labels is None else labels[:]
    with working():
        baseline = _baseline(update, layer, budget)
        target = target_of(truth, baseline, record, layer)
        if target is None:
            if budget.stop():
                msg = "was stopped before it was known what there is to protect: nothing is written"
                raise FileError(msg, layer.place)
            msg = f"gives nothing away without a defence, and holds no true inputs to look for: {baseline.reason}"
            raise FileError(msg, layer.place, "there is nothing that a defence could protect here")
        known = Known(record.info, truth, known_labels, baseline)
        possible = possible_defences(update, known, others, asked)
        training = asked.training
        if not training.batch_size:
            training = replace(training, batch_size=known.batch_size)
        curves = [
            as_dp(curve, _multiplier_of(curve.defence, update, possible), training)
            for curve in sweep(update, target, possible.defences, budget, refine=asked.refine)
        ]
        needed = multiplier_for(MEANINGFUL, training)
    finished = {curve.defence.name for curve in curves}
    unfinished = [one.name for one in possible.defences if one.name not in finished]
    return Audit(
        source=dump.path.name,
        record=record.name,
        layers=update.names,
        batch=len(target.inputs),
        truth=target.true,
        baseline=measured(baseline, target, 0.0, baseline.seconds),
        curves=tuple(curves),
        not_tried={**possible.not_tried, **dict.fromkeys(unfinished, "stopped before it began")},
        complete=not unfinished and all(curve.complete for curve in curves),
        clip_norm=possible.clip_norm,
        training=training,
        multiplier_needed=needed,
    )


def _baseline(update: Shared, layer: Layer, budget: Budget) -> spear_np.Inversion:
    """The inversion of the update as it is, which takes as long as it must up to a minute."""
    try:
        return update.invert(
            time_limit=max(budget.time_limit, BASELINE_SECONDS),
            seed=budget.seed,
            device=budget.device,
            stop=budget.stop,
            callback=budget.say("no defence"),
        )
    except spear_np.InputError as error:
        raise FileError(str(error), layer.place) from error


def _multiplier_of(defence: Defence, update: Shared, possible: Possible) -> float | None:
    """What a strength of one is as a noise multiplier of DP-SGD."""
    if defence.name == "dp_sgd":
        return 1.0
    if defence.name != "noise" or possible.clip_norm is None:
        return None
    return update.size * possible.in_mean / possible.clip_norm
