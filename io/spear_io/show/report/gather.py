"""From files to what a page shows, as plain data: every text in it may come from a stranger."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

import spear_np

from ...files.inversion import InversionFile, RecoveredLayer
from ...files.limits import working
from ...files.storage import Floats, check_finite, row_blocks
from ...problems import printable
from ..advice import advice, findings
from ..beside import Beside, Comparison
from ..looks import look_of
from ..titles import titles
from .check_words import told, words_of
from .content import CheckRow, Fact, Line, Premise, Report, Section
from .figures import figures_of, plots_of, tells_by
from .inputs import Room, with_inputs
from .units import units_of
from .words import (
    VERDICTS,
    date_text,
    decibels,
    headline,
    number_text,
    premise_words,
    seconds_text,
    share_text,
)

MOST_SECTIONS = 200
"""Layers that have a section of their own."""
MOST_PLOTTED = 24
"""Layers whose figures are plotted."""
MOST_SUMMARISED = 5_000
"""Layers in the table at the top."""
MORE_THAN_SHOW = (
    "Nothing that shows in the gradient on its own. The batch may have had more inputs all the same: identical ones show as one, and those "
    "fainter than the noise do not show at all."
)
"""What is missing where all inputs that show were recovered."""


def gather(inversion: InversionFile, beside: Beside, *, title: str | None = None) -> Report:
    """Read everything that a page shows.

    Raises
    ------
    FileError
        If a file holds NaN, infinity or anything else that cannot be shown, or what stands beside it does not fit.
    """
    layers = inversion.layers
    names = titles(layers)
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
                    _section(
                        layer, names[number], beside, comparison, anchor, room, plotted=number < MOST_PLOTTED
                    )
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
        nothing_compared=_nothing_compared(beside, any(section.truth for section in sections)),
        lines=tuple(lines),
        more_lines=max(0, len(layers) - MOST_SUMMARISED),
        clients=any(line.client for line in lines),
        rounds=any(line.round for line in lines),
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


def _nothing_compared(beside: Beside, compared: bool) -> str | None:
    """What to say if no original stands beside any input."""
    if compared:
        return None
    if beside.dump is not None:
        name = printable(beside.dump.path.name, 200)
        return (
            f"{name} holds no originals of these layers, so nothing on this page was compared with the truth."
        )
    if beside.truth is not None:
        return "The originals fit none of these layers, so nothing on this page was compared with the truth."
    return "No originals were given, so nothing on this page was compared with the truth."


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
    """The largest bound as a share of the range of all recovered values, as the certificate has it."""
    if layer.error_bound is None or not layer.found or not layer.inputs.shape[1]:
        return "–"
    ends = [(float(np.min(block)), float(np.max(block))) for block in _blocks(layer)]
    span = max(high for _, high in ends) - min(low for low, _ in ends)
    return share_text(float(np.max(layer.error_bound[:])) / span) if span > 0 else "–"


def _blocks(layer: RecoveredLayer) -> Iterator[Floats]:
    return (layer.inputs[rows, :] for rows in row_blocks(layer.inputs.shape))


def _section(
    layer: RecoveredLayer,
    title: str,
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
    units = units_of(layer, look)
    names, figures = figures_of(layer, units, comparison, order[: room.rows(layer.found)])
    section = Section(
        anchor=anchor,
        title=title,
        status=str(layer.status),
        claim=printable(layer.claim, 500),
        verdict=verdict,
        explanation=explanation,
        shared=_shared(layer, beside),
        seen=seen,
        kind=str(look.kind),
        units=units.sentence,
        tells_by=tells_by(layer),
        truth=comparison is not None,
        untold=None if comparison is not None else _without_truth(layer, beside),
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
        plots=plots_of(layer, units, comparison, anchor) if plotted else (),
        labels=_labels(layer),
        advice=_advice(layer, beside),
    )
    if not layer.found:
        return section
    return with_inputs(section, layer, look, comparison, order, room)


def _contradiction(comparison: Comparison | None) -> str | None:
    """What to say if the truth beside the inputs is not what they are claimed to be."""
    rows = comparison.evaluation.rows if comparison else ()
    off = sum(row.within_bound is False for row in rows)
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


def _without_truth(layer: RecoveredLayer, beside: Beside) -> str | None:
    """Why the inputs of a layer stand alone although something was given beside them; None if nothing was."""
    if beside.dump is not None:
        return "The dump holds no originals of this layer: nothing here was compared with the truth."
    if beside.truth is not None:
        return f"The originals that were given do not have the {layer.inputs.shape[1]} features of this layer: nothing here was compared."
    return None


def _labels(layer: RecoveredLayer) -> str | None:
    """Why inputs have no label: one sentence; None if all have one, or there are none."""
    if not layer.found:
        return None
    if layer.labels is not None:
        unknown = int(np.sum(layer.labels[:] < 0))
        return (
            f"{unknown} of {layer.found} inputs have no label: what came back from the output does not look like that of one class."
            if unknown
            else None
        )
    if layer.chain:
        last = printable(layer.chain[-1])
        return (
            f"The labels are not known: only the gradient of the output layer tells them, and the layers that were used end before it, "
            f"with {last}."
        )
    return "The labels are not known: only the gradient of the output layer tells them, and this layer was inverted by itself."


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
    elif layer.found:
        sentences.append(MORE_THAN_SHOW)
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
    words = words_of(check)
    value, demand = told(check)
    return CheckRow(
        name=printable(check.name),
        title=printable(words.title),
        value=value,
        demand=demand,
        passed=check.passed,
        meaning=printable(words.meaning, 1000),
    )
