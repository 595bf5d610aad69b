"""From files to what a page shows, as plain data: every text in it may come from a stranger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

import spear_np

from ...files.inversion import InversionFile, RecoveredLayer
from ...files.limits import working
from ...files.sight import Sight
from ...files.storage import Floats, check_finite
from ...problems import printable
from ..advice import advice, findings
from ..beside import Beside, Comparison
from ..looks import Look, look_of
from . import plots
from .content import CheckRow, Fact, Line, Plot, Premise, Report, Section
from .inputs import Room, unit_of, with_inputs
from .words import (
    EVIDENCE,
    VERDICTS,
    date_text,
    decibels,
    headline,
    label_text,
    number_text,
    premise_words,
    seconds_text,
)

MOST_SECTIONS = 200
"""Layers that have a section of their own."""
MOST_PLOTTED = 24
"""Layers whose figures are plotted."""
MOST_SUMMARISED = 5_000
"""Layers in the table at the top."""


def gather(inversion: InversionFile, beside: Beside, *, title: str | None = None) -> Report:
    """Read everything that a page shows.

    Raises
    ------
    FileError
        If a file holds NaN, infinity or anything else that cannot be shown, or what stands beside it does not fit.
    """
    layers = inversion.layers
    shown = layers[:MOST_SECTIONS]
    counted = sum(layer.found for layer in shown)
    room = Room(counted * (2 if beside.dump or beside.truth else 1))
    sections, lines = [], []
    for number, layer in enumerate(layers[:MOST_SUMMARISED]):
        comparison = beside.compare(layer) if number < MOST_SECTIONS else None
        anchor = f"layer-{number + 1}" if number < MOST_SECTIONS else None
        lines.append(_line(layer, comparison, anchor))
        if anchor is not None:
            with working():
                sections.append(
                    _section(layer, beside, comparison, anchor, room, plotted=number < MOST_PLOTTED)
                )
    found, wanted = (
        sum(layer.found for layer in layers),
        sum(max(layer.batch_size, layer.found) for layer in layers),
    )
    source = printable(inversion.source or "an unnamed dump", 200)
    return Report(
        title=printable(title or "What this update gives away", 200),
        headline=headline([layer.status for layer in layers], found, wanted),
        source=source,
        facts=_facts_of_file(inversion, beside),
        lines=tuple(lines),
        more_lines=max(0, len(layers) - MOST_SUMMARISED),
        clients=any(line.client or line.round for line in lines),
        truth=any(section.truth for section in sections),
        sections=tuple(sections),
    )


def _facts_of_file(inversion: InversionFile, beside: Beside) -> tuple[Fact, ...]:
    facts = [
        Fact("Source", printable(inversion.source or "not stated", 200)),
        Fact("Result file", printable(inversion.path.name, 200)),
        Fact("Inverted by", f"spear-np {printable(inversion.version or 'of an unknown version')}"),
        Fact("Inverted on", date_text(inversion.created)),
    ]
    if beside.dump is not None and beside.dump.producer:
        facts.append(Fact("Written by", printable(beside.dump.producer)))
    if beside.truth is not None:
        facts.append(Fact("Truth", printable(beside.truth.rows.place.file.name, 200)))
    return tuple(facts)


def _line(layer: RecoveredLayer, comparison: Comparison | None, anchor: str | None) -> Line:
    rows = comparison.evaluation.rows if comparison else ()
    psnr = [row.psnr for row in rows if row.psnr is not None]
    return Line(
        anchor=anchor,
        record=printable(layer.record),
        layer=printable(layer.layer),
        client="" if layer.display.client is None else printable(str(layer.display.client)),
        round="" if layer.display.round is None else printable(str(layer.display.round)),
        status=str(layer.status),
        claim=printable(layer.claim, 300),
        found=f"{layer.found} of {layer.batch_size or '?'}",
        bound=_worst_bound(layer),
        psnr=decibels(min(psnr)) if psnr else "–",
    )


def _worst_bound(layer: RecoveredLayer) -> str:
    if layer.error_bound is None or not layer.found:
        return "–"
    return number_text(float(np.max(layer.error_bound[:])) * unit_of(layer))


def _section(
    layer: RecoveredLayer,
    beside: Beside,
    comparison: Comparison | None,
    anchor: str,
    room: Room,
    *,
    plotted: bool,
) -> Section:
    check_finite(layer.inputs, "run 'spear-np invert' again")
    details, look = layer.details, look_of(layer)
    verdict, explanation = VERDICTS[layer.status]
    order = _order(layer, comparison)
    seen = layer.seen.sentence(layer.layer)
    certificate = details.certificate
    names, figures = _figures(layer, comparison, order[: room.rows(layer.found)])
    section = Section(
        anchor=anchor,
        title=f"{printable(layer.record)}, layer {printable(layer.layer)}",
        status=str(layer.status),
        claim=printable(layer.claim, 500),
        verdict=verdict,
        explanation=explanation,
        shared=_shared(layer, beside),
        seen=seen,
        kind=str(look.kind),
        units=_units(layer, look),
        truth=comparison is not None,
        premises=tuple(
            Premise(printable(short, 300), printable(long, 2000))
            for short, long in map(premise_words, certificate.rests_on)
        ),
        checks=tuple(_check(check) for check in certificate.checks),
        caveats=tuple(printable(caveat, 2000) for caveat in certificate.caveats),
        figure_names=names,
        figures=figures,
        missing=_missing(layer, comparison),
        contradiction=_contradiction(comparison),
        reason=printable(layer.reason, 3000),
        notes=tuple(printable(note, 2000) for note in details.notes),
        plots=_plots(layer, comparison, anchor) if plotted else (),
        advice=_advice(layer, beside),
    )
    if not layer.found:
        return section
    return with_inputs(section, layer, look, comparison, order, room)


def _contradiction(comparison: Comparison | None) -> str | None:
    """What to say if the truth beside the inputs is not what they are claimed to be."""
    rows = comparison.evaluation.rows if comparison else ()
    off = sum(row.within_bound is False and not row.exact for row in rows)
    if not off:
        return None
    return (
        f"{off} of these inputs differ from the truth beside them by more than their bounds allow. Either that truth is of other "
        "inputs or in other units (is the normalisation known?), or a premise of the certificate does not hold."
    )


def _order(layer: RecoveredLayer, comparison: Comparison | None) -> list[int]:
    """Rows in the order in which they are shown: those farthest from the truth first, or as they come."""
    if comparison is None:
        return list(range(layer.found))
    rows = comparison.evaluation.rows
    return [
        row.row
        for row in sorted(rows, key=lambda row: (-math.inf if row.psnr is None else row.psnr, row.row))
    ]


def _units(layer: RecoveredLayer, look: Look) -> str:
    if look.normalisation is not None:
        return "the units of the data, normalisation undone"
    if layer.seen.sight is Sight.FEATURES:
        return "the units of the features that the layer sees"
    return "the units in which the layer sees them"


def _shared(layer: RecoveredLayer, beside: Beside) -> tuple[Fact, ...]:
    details, display = layer.details, layer.display
    m, n = layer.units, layer.inputs.shape[1]
    size = f"{m} × {n} numbers, from {m} units and {n} features" if m else f"of {n} features"
    facts = [Fact("Gradient", size)]
    if details.activation:
        facts.append(Fact("Activation", printable(details.activation)))
    if layer.chain:
        facts.append(Fact("Layers used together", printable(" → ".join(map(printable, layer.chain)), 300)))
    if layer.batch_size:
        facts.append(Fact("Inputs that show (rank)", str(layer.batch_size)))
    if details.relative_noise is not None and math.isfinite(details.relative_noise):
        facts.append(Fact("Noise of an entry", f"{number_text(details.relative_noise)} of its row"))
    if details.weight_decay is not None:
        facts.append(Fact("Weight decay taken out", number_text(details.weight_decay)))
    if display.input_shape:
        facts.append(Fact("Shape of an input", " × ".join(map(str, display.input_shape[:8]))))
    for name, value in (("Client", display.client), ("Round", display.round)):
        if value is not None:
            facts.append(Fact(name, printable(str(value))))
    facts += _from_dump(layer, beside)
    if details.method:
        how = f"{details.method}, seed {details.seed}" if details.seed is not None else details.method
        facts.append(Fact("Method", printable(how)))
    if details.seconds is not None and math.isfinite(details.seconds):
        on = f" on {printable(details.device)}" if details.device else ""
        facts.append(Fact("Search took", f"{seconds_text(details.seconds)}{on}"))
    return tuple(facts)


def _from_dump(layer: RecoveredLayer, beside: Beside) -> list[Fact]:
    """What only the dump says of the update."""
    found = beside.layer(layer)
    if found is None:
        return []
    record, one = found
    info = record.info
    model = [
        f"{printable(each.name)} ({each.kind if each.kind != 'linear' else printable(str(each.activation))})"
        for each in record.layers[:12]
    ]
    more = ["…"] if len(record.layers) > len(model) else []
    facts = [
        Fact("Layers of the model in the file", " → ".join([*model, *more])),
        Fact("Stored", ", ".join(one.arrays)),
        Fact("Precision", one.arrays["weight_grad"].precision),
        Fact("Kind of update", info.update.replace("_", " ")),
    ]
    if info.batch_size is not None:
        facts.append(Fact("Batch, as stated", str(info.batch_size)))
    if info.loss:
        facts.append(Fact("Loss", printable(info.loss)))
    if info.local_steps is not None:
        facts.append(Fact("Local steps", str(info.local_steps)))
    return facts


def _missing(layer: RecoveredLayer, comparison: Comparison | None) -> str | None:
    """One sentence on what is not there; None if nothing is."""
    sentences = []
    if layer.batch_size > layer.found:
        sentences.append(
            f"{layer.batch_size - layer.found} of the {layer.batch_size} inputs that show in the gradient were not recovered."
        )
    elif not layer.found:
        sentences.append("Nothing was recovered, and how many inputs the gradient holds could not be told.")
    if comparison is not None:
        distinct, total = comparison.evaluation.distinct_truth or 0, comparison.evaluation.truth_inputs or 0
        if distinct < total:
            sentences.append(f"Of the {total} true inputs only {distinct} differ: identical ones count once.")
        unseen = distinct - max(layer.batch_size, layer.found)
        if unseen > 0:
            sentences.append(
                f"{unseen} true inputs do not show in the gradient at all: they leave no trace in this layer."
            )
    return " ".join(sentences) or None


def _advice(layer: RecoveredLayer, beside: Beside) -> tuple[Fact, ...]:
    found = beside.layer(layer)
    info = None if found is None else found[0].info
    return tuple(Fact(one.cause, one.attempt) for one in advice(findings(layer, info)))


def _check(check: spear_np.Check) -> CheckRow:
    return CheckRow(
        name=printable(check.name.replace("_", " ")),
        value="missing" if check.value is None else number_text(check.value),
        demand=f"{'at most' if check.relation == '<=' else 'at least'} {number_text(check.threshold)}",
        passed=check.passed,
        meaning=printable(check.meaning, 1000),
    )


def _figures(
    layer: RecoveredLayer, comparison: Comparison | None, order: Sequence[int]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Names of the figures of every input, and one row of them for each input of `order`."""
    details = layer.details
    columns: list[tuple[str, list[str]]] = [("Input", [str(row) for row in order])]

    def add(name: str, values: Iterable[str]) -> None:
        columns.append((name, list(values)))

    titles = {
        "error_bound": "Bound",
        "zero_count": "Zeros",
        "redundancy": "To spare",
        "sign_agreement": "Signs that agree",
        "false_probability": "Chance",
    }
    if layer.labels is not None:
        labels = layer.labels[:]
        add("Label", (label_text(labels[row]) or "–" for row in order))
    for name, title in titles.items():
        values = details.figures.get(name)
        if values is not None and not np.all(np.isnan(values)):
            unit = unit_of(layer) if name == "error_bound" else 1.0
            add(title, (number_text(values[row] * unit) for row in order))
    marks = {1.0: "yes", 0.0: "no"}
    for fact, words in EVIDENCE.items():
        evidence = details.evidence.get(fact)
        if evidence is not None and np.any(evidence >= 0):
            add(words[:1].upper() + words[1:], (marks.get(float(evidence[row]), "–") for row in order))
    if comparison is not None:
        rows = {row.row: row for row in comparison.evaluation.rows}
        span = comparison.evaluation.data_range or 1.0
        add("PSNR", ("–" if (p := rows[row].psnr) is None else decibels(p) for row in order))
        add(
            "Largest error",
            ("–" if (e := rows[row].max_error) is None else number_text(e * span) for row in order),
        )
    return tuple(name for name, _ in columns), tuple(zip(*(values for _, values in columns), strict=True))


def _plots(layer: RecoveredLayer, comparison: Comparison | None, anchor: str) -> tuple[Plot, ...]:
    details = layer.details
    drawn = []
    values = details.singular_values[np.isfinite(details.singular_values)]
    if len(values):
        rank = layer.batch_size
        words = (
            f"{len(values)} singular values, the first {rank} above the noise: the batch has {rank} inputs."
            if rank
            else f"{len(values)} singular values: none stands clearly above the others, so that the size of the batch cannot be told."
        )
        drawn.append(Plot("How many inputs show", plots.spectrum(f"{anchor}-spectrum", values, rank), words))
    if details.history:
        last = details.history[-1]
        words = f"{len(details.history)} rounds in {seconds_text(last.seconds)}; {last.found} of {layer.batch_size} candidates found at the end."
        drawn.append(
            Plot("The search", plots.timeline(f"{anchor}-search", details.history, layer.batch_size), words)
        )
    zeros = details.figures.get("zero_count")
    if zeros is not None and 0 < len(zeros) <= plots.MOST_MARKS:
        spare = details.figures.get("redundancy")
        words = f"Units that each input leaves off: {int(np.min(zeros))} to {int(np.max(zeros))}."
        if spare is not None:
            words += f" Of the equations that determine it, at least {int(np.min(spare))} could be missing."
        drawn.append(Plot("What tells each input", plots.residuals(f"{anchor}-zeros", zeros, spare), words))
    bound = details.figures.get("error_bound")
    if bound is not None and 0 < len(bound) <= plots.MOST_MARKS and np.any(np.isfinite(bound) & (bound > 0)):
        bound = bound * unit_of(layer)
        error = _errors(layer, comparison)
        words = f"Bounds on the largest error of each input: up to {number_text(float(np.max(bound)))}."
        drawn.append(Plot("How far off it may be", plots.bounds(f"{anchor}-bounds", bound, error), words))
    return tuple(drawn)


def _errors(layer: RecoveredLayer, comparison: Comparison | None) -> Floats | None:
    """(k,): largest errors in the units that are shown; NaN without a counterpart."""
    if comparison is None:
        return None
    span = comparison.evaluation.data_range or 1.0
    errors = np.full(layer.found, np.nan)
    for row in comparison.evaluation.rows:
        errors[row.row] = np.nan if row.max_error is None else row.max_error * span
    return errors
