"""An audit from a dump to plain data: for JSON, and for a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import spear_np

from ..files.atomic import new_file
from ..files.dump import Dump, Layer, Record, named, open_dump
from ..files.limits import working
from ..problems import FileError, printable
from ..show.progress import power_of_ten
from ..show.report import plots
from ..show.report.page import MARK, WHAT, rendered
from .defences import MULTIPLIERS, Defence, PerExample, clip_examples, dp_sgd, summed, usual_defences
from .privacy import Training
from .sweep import RECOGNISED, Budget, Curve, Point, as_dp, measured, sweep, target_of
from .update import Shared, read_update

ONLY_THIS = (
    "An input counts as recovered where it comes back with {good:g} dB or more. What this method does not recover is not shown to "
    "be safe: noise and rounding leave traces from which other methods may guess parts of an input, and what one update hides, "
    "several may give away together."
)
NAMES = (
    "noise",
    "dp_sgd",
    "clip_norm",
    "clip_examples",
    "clip_values",
    "top_k",
    "bits",
    "no_bias",
    "fewer_layers",
    "records",
)


@dataclass(frozen=True)
class Asked:
    """What a user asks of an audit."""

    record: str | None = None
    layer: str | None = None
    defences: tuple[str, ...] = ()
    """Some of `NAMES`; all that are possible if empty."""
    clip_norm: float | None = None
    """C of DP-SGD; by default the median norm of the gradients of the inputs in this layer."""
    training: Training | None = None
    """Without a batch size of its own it has that of the update."""
    refine: bool = True


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    source: str
    record: str
    layer: str
    batch: int
    truth: bool
    """Whether the dump held the true inputs; else what the update gives away without a defence stands for them."""
    baseline: Point
    curves: tuple[Curve, ...]
    not_tried: dict[str, str]
    """Defences that were left out, and why."""
    complete: bool
    clip_norm: float | None
    epsilon_known: bool
    training: Training | None

    @property
    def sentence(self) -> str:
        """How much of the first defence of noise would have been enough."""
        curve = next((one for one in self.curves if one.defence.name == "noise"), None)
        if not self.baseline.recovered:
            return "Nothing is recovered from this update, even without a defence."
        if curve is None:
            return f"{self.baseline.recovered} of {self.batch} inputs are recovered without a defence."
        leaks, enough = curve.break_even
        if enough is None and not curve.complete:
            return f"Noise of {text(leaks or 0)} of the size of the gradient still gives inputs away; stronger noise was not tried."
        if enough is None:
            return f"Noise of {text(leaks or 0)} of the size of the gradient was not enough: inputs are still recovered."
        return f"Noise of {text(enough)} of the size of the gradient would have been enough here; {text(leaks or 0)} would not."

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "source": self.source,
            "record": self.record,
            "layer": self.layer,
            "batch": self.batch,
            "truth": self.truth,
            "complete": self.complete,
            "sentence": self.sentence,
            "recovered_from_db": RECOGNISED,
            "clip_norm": self.clip_norm,
            "training": None if self.training is None else asdict(self.training),
            "baseline": asdict(self.baseline),
            "defences": [
                {
                    "name": curve.defence.name,
                    "title": curve.defence.title,
                    "unit": curve.defence.unit,
                    "limits": curve.defence.limits,
                    "still_leaks": curve.break_even[0],
                    "enough": curve.break_even[1],
                    "complete": curve.complete,
                    "points": [asdict(point) for point in curve.points],
                }
                for curve in self.curves
            ],
            "not_tried": self.not_tried,
        }


def audit(
    dump: Path, output: Path | None, asked: Asked, budget: Budget, *, replace_any: bool = False
) -> Audit:
    """Sweep the defences over one update of a dump, write the page if there is an `output`, and return what was found.

    When `budget.stop` says so, the audit ends with what is finished, and that is written.

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
    truth = None if layer.truth is None else layer.truth[:, :]
    others, reason = _others(dump, record, layer, update)
    with working():
        try:
            baseline = update.invert(
                time_limit=max(budget.time_limit, 60.0),
                seed=budget.seed,
                device=budget.device,
                stop=budget.stop,
                callback=budget.say("no defence"),
            )
        except spear_np.InputError as error:
            raise FileError(str(error), layer.place) from error
        target = target_of(truth, baseline)
        if target is None:
            msg = f"gives nothing away without a defence, and holds no true inputs to look for: {baseline.reason}"
            raise FileError(msg, layer.place, "there is nothing that a defence could protect here")
        scale = _inputs_in_mean(record, baseline)
        defences, left, norm = _defences(update, baseline, others, asked, scale)
        if others is None and reason and (not asked.defences or "records" in asked.defences):
            left["records"] = reason
        plain = measured(baseline, target, 0.0, baseline.seconds)
        curves = []
        for curve in sweep(update, target, defences, budget, refine=asked.refine):
            deviation = _multiplier_of(curve.defence, update, norm, scale)
            training = _training(asked, baseline.batch_size)
            curves.append(as_dp(curve, deviation, training))
    finished = {curve.defence.name for curve in curves}
    unfinished = [one.name for one in defences if one.name not in finished]
    left |= dict.fromkeys(unfinished, "stopped before it began")
    return Audit(
        source=dump.path.name,
        record=record.name,
        layer=layer.name,
        batch=len(target.inputs),
        truth=target.true,
        baseline=plain,
        curves=tuple(curves),
        not_tried=left,
        complete=not unfinished and all(curve.complete for curve in curves),
        clip_norm=norm,
        epsilon_known=any(point.epsilon is not None for curve in curves for point in curve.points),
        training=_training(asked, baseline.batch_size),
    )


def _others(dump: Dump, record: Record, layer: Layer, update: Shared) -> tuple[list[Shared] | None, str]:
    """Other updates of the dump whose sum with this one can be taken, or None and why there are none."""
    found: list[Shared] = []
    for other in dump.records:
        if other is record or len(found) >= MOST_SUMMED - 1:
            continue
        twin = next((one for one in other.layers if one.name == layer.name and one.kind == "linear"), None)
        if twin is None or other.problem_of(twin) is not None:
            continue
        read = read_update(other, twin)
        same_shapes = [one.shape for one in read.layers] == [one.shape for one in update.layers]
        if same_shapes and _same_model(read, update):
            found.append(read)
    return (found, "") if found else (None, "the dump holds no other update of the same model")


MOST_SUMMED = 32
"""Updates that are summed, at most."""


def _same_model(one: Shared, other: Shared) -> bool:
    return all(
        (a.weight is None and b.weight is None)
        or (a.weight is not None and b.weight is not None and np.array_equal(a.weight[...], b.weight[...]))
        for a, b in zip(one.layers, other.layers, strict=True)
    )


def _defences(
    update: Shared, baseline: spear_np.Inversion, others: list[Shared] | None, asked: Asked, scale: float
) -> tuple[list[Defence], dict[str, str], float | None]:
    """The defences that are tried, why others are not, and the clipping norm of DP-SGD."""
    found = {one.name: one for one in usual_defences(update)}
    left: dict[str, str] = {}
    norm = asked.clip_norm
    if baseline.status is spear_np.Status.EXACT and len(update.layers) == 1 and baseline.scale_known:
        examples = PerExample.of(baseline)
        norm = norm or scale * float(np.median(examples.norms))
        found["clip_examples"] = Defence(
            "clip_examples",
            "Clipping the gradient of each input",
            f"times {text(norm)}, the clipping norm",
            (1.0, 0.1, 0.01),
            clip_examples(examples, norm / scale),
            "Each input keeps its direction in the sum: clipping without noise hides nobody.",
        )
        found["dp_sgd"] = Defence(
            "dp_sgd",
            "DP-SGD: each input clipped, then noise",
            f"noise multiplier, at a clipping norm of {text(norm)}",
            MULTIPLIERS,
            dp_sgd(examples, norm / scale),
            "The guarantee is that of ε, over all steps of the training together, and only if every step has this noise. A noise "
            "multiplier that stops this method can still have an ε that promises nothing.",
        )
    else:
        why = "needs the gradient of each input, which only an exact inversion of a single layer tells"
        left |= {"clip_examples": why, "dp_sgd": why}
    if others is not None:
        counts = [float(2**power) for power in range(MOST_SUMMED.bit_length()) if 2**power <= len(others) + 1]
        found["records"] = Defence(
            "records",
            "Sums of several updates",
            "updates in the sum",
            tuple(counts),
            summed(others),
            "A sum is a larger batch. What protects is that it has more inputs than the layer has room to tell apart.",
            keeps_batch=False,
            graded=False,
        )
    for name, reason in (
        ("no_bias", "the gradient of the bias is not shared already"),
        ("fewer_layers", "only one layer is used"),
    ):
        if name not in found:
            left[name] = reason
    wanted = asked.defences or NAMES
    chosen = [found[name] for name in NAMES if name in wanted and name in found]
    return chosen, {name: why for name, why in left.items() if name in wanted}, norm


def _inputs_in_mean(record: Record, baseline: spear_np.Inversion) -> float:
    """How many times larger the gradient of one input is than its share of the update: b for a mean, 1 for a sum.

    A record that does not say is taken to hold a mean, as losses usually do.
    """
    if record.info.loss_reduction == "sum":
        return 1.0
    return float(record.info.batch_size or baseline.batch_size or 1)


def _multiplier_of(defence: Defence, update: Shared, norm: float | None, scale: float) -> float | None:
    """What a strength of one is as a noise multiplier of DP-SGD."""
    if defence.name == "dp_sgd":
        return 1.0
    if defence.name != "noise" or norm is None:
        return None
    return update.size * scale / norm


def _training(asked: Asked, batch: int) -> Training | None:
    if asked.training is None:
        return None
    return asked.training if asked.training.batch_size else replace(asked.training, batch_size=max(1, batch))


def text(value: float) -> str:
    """Return a strength as people read it."""
    return power_of_ten(f"{value:.2g}") if value else "0"


@dataclass(frozen=True)
class Row:
    """One line of a table of the page."""

    strength: str
    share: str
    worst: str
    median: str
    bound: str
    status: str
    multiplier: str
    epsilon: str
    seconds: str


@dataclass(frozen=True)
class Panel:
    """One defence on the page."""

    anchor: str
    title: str
    unit: str
    verdict: str
    good: bool
    limits: str
    rows: tuple[Row, ...]
    shares: str
    quality: str
    stopped: bool
    multipliers: bool
    epsilons: bool


def page_of(audit: Audit) -> str:
    """Return the page of an audit."""
    panels = [_panel(number, curve) for number, curve in enumerate(audit.curves, 1)]
    return rendered(
        "audit.html",
        audit=audit,
        panels=panels,
        source=printable(audit.source, 200),
        record=printable(audit.record),
        layer=printable(audit.layer),
        caveat=ONLY_THIS.format(good=RECOGNISED),
        baseline=_row(audit.baseline),
        not_tried={name.replace("_", " "): printable(why, 500) for name, why in audit.not_tried.items()},
    )


def _panel(number: int, curve: Curve) -> Panel:
    anchor = f"defence-{number}"
    names = [text(point.strength) for point in curve.points]
    along = np.arange(len(names), dtype=np.float64)
    shares = plots.curves(
        f"{anchor}-share",
        curve.defence.unit,
        "recovered",
        [("share of the inputs", along, np.asarray([point.share for point in curve.points]))],
        ticks=names,
        top=1.0,
    )
    quality = plots.curves(
        f"{anchor}-psnr",
        curve.defence.unit,
        "PSNR (dB)",
        [
            ("median", along, np.asarray([point.median_psnr for point in curve.points])),
            ("worst", along, np.asarray([point.worst_psnr for point in curve.points])),
        ],
        ticks=names,
    )
    verdict, good = verdict_of(curve)
    return Panel(
        anchor=anchor,
        title=curve.defence.title,
        unit=curve.defence.unit,
        verdict=verdict,
        good=good,
        limits=curve.defence.limits,
        rows=tuple(_row(point) for point in curve.points),
        shares=shares,
        quality=quality,
        stopped=not curve.complete,
        multipliers=any(point.multiplier is not None for point in curve.points),
        epsilons=any(point.epsilon is not None for point in curve.points),
    )


def verdict_of(curve: Curve) -> tuple[str, bool]:
    """Return where a defence begins to protect, in a sentence, and whether it does."""
    leaks, enough = curve.break_even
    if leaks is None:
        return "nothing is recovered at any strength", True
    most = curve.points[-1]
    if curve.defence.switch and curve.complete:
        return (
            "not enough" if enough is None else "enough"
        ) + f": {most.share:.0%} still recovered", enough is not None
    if enough is None and not curve.complete:
        return f"{text(most.strength)} still gives inputs away; nothing stronger was tried", False
    if enough is None:
        return f"not enough at any strength: {most.share:.0%} still recovered at {text(most.strength)}", False
    return f"enough from {text(enough)} on; {text(leaks)} still gives inputs away", True


def _row(point: Point) -> Row:
    bound = point.worst_bound
    shown = "–" if bound is None else "unbounded" if math.isinf(bound) else text(bound)
    worth = point.epsilon
    return Row(
        strength=text(point.strength),
        share=f"{point.share:.0%}",
        worst=f"{point.worst_psnr:.0f} dB",
        median=f"{point.median_psnr:.0f} dB",
        bound=shown,
        status=point.status,
        multiplier="–" if point.multiplier is None else text(point.multiplier),
        epsilon="–" if worth is None else "∞" if math.isinf(worth) else text(worth),
        seconds=f"{point.seconds:.1f} s",
    )


def lines_of(audit: Audit) -> Iterator[tuple[str, str]]:
    """Yield title and verdict of every defence."""
    for curve in audit.curves:
        yield curve.defence.title, verdict_of(curve)[0]


def chosen_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of defences as they are known, whatever hyphens they are written with."""
    return tuple(dict.fromkeys(name.replace("-", "_") for name in names))
