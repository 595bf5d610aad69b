"""From files to what a page shows, as plain data: every text in it may come from a stranger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import spear_np

from ...files.inversion import InversionFile, RecoveredLayer
from ...files.limits import working
from ...files.sight import Sight
from ...files.storage import Floats, check_finite
from ...problems import printable
from ..advice import advice, findings
from ..beside import Beside, Comparison
from ..evaluate import distinct_rows
from ..looks import Kind, Look, look_of, own_range, pixel_range, read_rows
from ..progress import duration, power_of_ten
from . import plots
from .pictures import Inline, curve, fitted, inline, largest_side, sheet
from .words import EVIDENCE, VERDICTS, headline, premise_words

CARDS = 48
"""Inputs of a layer that have a card of their own; those after them are on sheets."""
SHEET = 100
"""Inputs on one sheet."""
ACROSS = 10
"""Pictures in a row of a sheet."""
MOST_LISTED = 20_000
"""Rows of figures on a page, over all layers; the rest is for `spear-np export`."""
MOST_SECTIONS = 200
"""Layers that have a section of their own."""
MOST_PLOTTED = 24
"""Layers whose figures are plotted."""
MOST_SUMMARISED = 5_000
"""Layers in the table at the top."""
MOST_CURVES = 600
"""Curves on a page, over all layers."""
MOST_TABLE_ROWS = 200
"""Rows of a table of recovered records."""
MISSED = 24
"""True inputs that were not recovered and are shown."""


@dataclass(frozen=True)
class Fact:
    """A name and what it is."""

    name: str
    value: str


@dataclass(frozen=True)
class Card:
    """One recovered input, beside the true one if there is one."""

    row: int
    picture: Inline | None = None
    original: Inline | None = None
    lines: tuple[str, ...] = ()
    """Points of the curve, then of the true one."""
    label: str | None = None
    true_label: str | None = None
    bound: str | None = None
    psnr: str | None = None
    error: str | None = None
    good: bool | None = None
    """Whether it is as near to the truth as it says; None without a truth."""


@dataclass(frozen=True)
class Sheet:
    """Many recovered inputs in one picture."""

    first: int
    last: int
    """Positions, from 1."""
    picture: Inline
    original: Inline | None
    rows: str
    """Which they are, for those who cannot see it."""


@dataclass(frozen=True)
class Record:
    """One row of a table of recovered records."""

    name: str
    cells: tuple[str, ...]
    true: bool
    """Whether it is the original."""


@dataclass(frozen=True)
class Plot:
    """A plot with what it says."""

    title: str
    svg: str
    words: str


@dataclass(frozen=True)
class CheckRow:
    """One check of the certificate."""

    name: str
    value: str
    demand: str
    passed: bool | None
    meaning: str


@dataclass(frozen=True)
class Premise:
    """What the answer takes for granted."""

    short: str
    long: str


@dataclass(frozen=True)
class Section:
    """One layer."""

    anchor: str
    title: str
    status: str
    claim: str
    verdict: str
    explanation: str
    shared: tuple[Fact, ...]
    seen: str | None
    kind: str
    units: str
    truth: bool
    cards: tuple[Card, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    missed: tuple[Inline, ...] = ()
    missed_count: int = 0
    columns: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    omitted: str | None = None
    """What was left out for want of room."""
    premises: tuple[Premise, ...] = ()
    checks: tuple[CheckRow, ...] = ()
    caveats: tuple[str, ...] = ()
    figure_names: tuple[str, ...] = ()
    figures: tuple[tuple[str, ...], ...] = ()
    missing: str | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    advice: tuple[Fact, ...] = ()
    """Likely causes of what is missing, and what to try."""


@dataclass(frozen=True)
class Line:
    """One layer in the table at the top."""

    anchor: str | None
    record: str
    layer: str
    client: str
    round: str
    status: str
    claim: str
    found: str
    bound: str
    psnr: str


@dataclass(frozen=True)
class Report:
    """A whole page."""

    title: str
    headline: str
    source: str
    facts: tuple[Fact, ...]
    lines: tuple[Line, ...]
    more_lines: int
    clients: bool
    truth: bool
    sections: tuple[Section, ...]


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
    room = _Room(counted * (2 if beside.dump or beside.truth else 1))
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


class _Room:
    """What of a page is left: pictures, rows of figures and curves."""

    def __init__(self, pictures: int) -> None:
        self._pictures = pictures
        self._rows = MOST_LISTED
        self._curves = MOST_CURVES

    def side(self, channels: int) -> int:
        """Largest side of a picture; 0 if there is no room for any."""
        return largest_side(self._pictures, channels)

    def rows(self, wanted: int) -> int:
        """How many of `wanted` rows of figures there is room for; they are taken."""
        taken = min(wanted, self._rows)
        self._rows -= taken
        return taken

    def curves(self, wanted: int) -> int:
        """Likewise of curves."""
        taken = min(wanted, self._curves)
        self._curves -= taken
        return taken


def _facts_of_file(inversion: InversionFile, beside: Beside) -> tuple[Fact, ...]:
    facts = [
        Fact("Source", printable(inversion.source or "not stated", 200)),
        Fact("Result file", printable(inversion.path.name, 200)),
        Fact("Inverted by", f"spear-np {printable(inversion.version or 'of an unknown version')}"),
        Fact("Inverted on", _date(inversion.created)),
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
        psnr=_decibel(min(psnr)) if psnr else "–",
    )


def _worst_bound(layer: RecoveredLayer) -> str:
    if layer.error_bound is None or not layer.found:
        return "–"
    return _number(float(np.max(layer.error_bound[:])) * _unit(layer))


def _unit(layer: RecoveredLayer) -> float:
    """What a bound on the error of an input is multiplied by to hold in the units that are shown."""
    normalisation = look_of(layer).normalisation
    return 1.0 if normalisation is None else float(np.max(normalisation.std))


def _section(
    layer: RecoveredLayer,
    beside: Beside,
    comparison: Comparison | None,
    anchor: str,
    room: _Room,
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
        reason=printable(layer.reason, 3000),
        notes=tuple(printable(note, 2000) for note in details.notes),
        plots=_plots(layer, comparison, anchor) if plotted else (),
        advice=_advice(layer, beside),
    )
    if not layer.found:
        return section
    if look.kind is Kind.PICTURE:
        return _with_pictures(section, layer, look, comparison, order, room)
    if look.kind is Kind.TABLE:
        return _with_table(section, layer, look, comparison, order)
    return _with_curves(section, layer, look, comparison, order, room)


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
    facts = [Fact("Gradient", f"{m} × {n} numbers" if m else f"of {n} features")]
    facts[0] = replace(
        facts[0], value=f"{facts[0].value}, from {m} units and {n} features" if m else facts[0].value
    )
    if details.activation:
        facts.append(Fact("Activation", printable(details.activation)))
    if layer.chain:
        facts.append(Fact("Layers used together", printable(" → ".join(map(printable, layer.chain)), 300)))
    if layer.batch_size:
        facts.append(Fact("Inputs that show (rank)", str(layer.batch_size)))
    if details.relative_noise is not None and math.isfinite(details.relative_noise):
        facts.append(Fact("Noise of an entry", f"{_number(details.relative_noise)} of its row"))
    if details.weight_decay is not None:
        facts.append(Fact("Weight decay taken out", _number(details.weight_decay)))
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
        facts.append(Fact("Search took", f"{_seconds(details.seconds)}{on}"))
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
        value="missing" if check.value is None else _number(check.value),
        demand=f"{'at most' if check.relation == '<=' else 'at least'} {_number(check.threshold)}",
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
        add("Label", (_label(labels[row]) or "–" for row in order))
    for name, title in titles.items():
        values = details.figures.get(name)
        if values is not None and not np.all(np.isnan(values)):
            unit = _unit(layer) if name == "error_bound" else 1.0
            add(title, (_number(values[row] * unit) for row in order))
    marks = {1.0: "yes", 0.0: "no"}
    for fact, words in EVIDENCE.items():
        evidence = details.evidence.get(fact)
        if evidence is not None and np.any(evidence >= 0):
            add(words[:1].upper() + words[1:], (marks.get(float(evidence[row]), "–") for row in order))
    if comparison is not None:
        rows = {row.row: row for row in comparison.evaluation.rows}
        span = comparison.evaluation.data_range or 1.0
        add("PSNR", ("–" if (p := rows[row].psnr) is None else _decibel(p) for row in order))
        add(
            "Largest error",
            ("–" if (e := rows[row].max_error) is None else _number(e * span) for row in order),
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
        words = f"{len(details.history)} rounds in {_seconds(last.seconds)}; {last.found} of {layer.batch_size} candidates found at the end."
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
        bound = bound * _unit(layer)
        error = _errors(layer, comparison)
        words = f"Bounds on the largest error of each input: up to {_number(float(np.max(bound)))}."
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


def _cards(layer: RecoveredLayer, comparison: Comparison | None, order: Sequence[int]) -> list[Card]:
    """Everything of the cards but what is drawn."""
    labels = None if layer.labels is None else layer.labels[:]
    bound, unit = layer.details.figures.get("error_bound"), _unit(layer)
    span = (comparison.evaluation.data_range or 1.0) if comparison else 1.0
    rows = {row.row: row for row in comparison.evaluation.rows} if comparison else {}
    cards = []
    for row in order:
        card = Card(
            row=row,
            label=None if labels is None else _label(labels[row]),
            bound=None if bound is None else _number(float(bound[row]) * unit),
        )
        match = rows.get(row)
        if comparison is not None and match is not None:
            true = (
                None if match.truth is None or comparison.labels is None else comparison.labels[match.truth]
            )
            card = replace(
                card,
                true_label=None if true is None else _label(true),
                psnr="no counterpart" if match.psnr is None else _decibel(match.psnr),
                error=None if match.max_error is None else _number(match.max_error * span),
                good=match.exact or bool(match.within_bound),
            )
        cards.append(card)
    return cards


def _partners(comparison: Comparison | None, order: Sequence[int]) -> list[int | None]:
    if comparison is None:
        return [None] * len(order)
    rows = {row.row: row.truth for row in comparison.evaluation.rows}
    return [rows[row] for row in order]


def _scaled(layer: RecoveredLayer, comparison: Comparison | None, order: Sequence[int], look: Look) -> Floats:
    """Rows in the units of the data, at the scale at which they were compared."""
    values = read_rows(layer.inputs, order, replace(look, normalisation=None))
    if comparison is not None:
        scales = {row.row: row.scale for row in comparison.evaluation.rows}
        values = values * np.asarray([scales[row] for row in order])[:, None]
    return look.in_units(values)


def _with_pictures(
    section: Section,
    layer: RecoveredLayer,
    look: Look,
    comparison: Comparison | None,
    order: list[int],
    room: _Room,
) -> Section:
    side = room.side(look.shape[look.channel_axis])
    if not side:
        return replace(
            section,
            omitted="There are too many inputs on this page to draw them: spear-np export writes all of them.",
        )
    sample = _scaled(layer, comparison, order[:CARDS], look)
    span = pixel_range(sample)
    cards = _cards(layer, comparison, order[:CARDS])
    partners = _partners(comparison, order)

    def drawn(values: Floats) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if span is not None:
            return fitted(look.pictures(values, *span), side)
        own = [look.pictures(one[None], *own_range(one)) for one in values]
        return fitted(np.concatenate(own), side) if own else look.pictures(values, 0.0, 1.0)

    def originals(places: Sequence[int | None]) -> dict[int, np.ndarray[Any, np.dtype[np.uint8]]]:
        there = [place for place in places if place is not None]
        if comparison is None or not there:
            return {}
        return dict(zip(there, drawn(read_rows(comparison.truth, there, look)), strict=True))

    true = originals(partners[:CARDS])
    cards = [
        replace(
            card,
            picture=inline(pixels),
            original=inline(true[partner]) if partner is not None and partner in true else None,
        )
        for card, pixels, partner in zip(cards, drawn(sample), partners, strict=False)
    ]
    sheets = []
    for start in range(CARDS, len(order), SHEET):
        rows = order[start : start + SHEET]
        pixels = drawn(_scaled(layer, comparison, rows, look))
        others = originals(partners[start : start + SHEET])
        blank = np.full_like(pixels[0], 128)
        beside = [blank if place is None else others[place] for place in partners[start : start + SHEET]]
        sheets.append(
            Sheet(
                first=start + 1,
                last=start + len(rows),
                picture=inline(sheet(pixels, ACROSS)),
                original=inline(sheet(np.stack(beside), ACROSS)) if comparison else None,
                rows=f"inputs {', '.join(map(str, rows[:8]))}{' …' if len(rows) > 8 else ''}",
            )
        )
    section = replace(
        section,
        cards=tuple(cards),
        sheets=tuple(sheets),
        omitted=None
        if span
        else "The range of the pixels is not known: each picture is stretched to its own, darkest to brightest.",
    )
    return _with_missed(section, layer, look, comparison, drawn)


def _with_missed(
    section: Section, layer: RecoveredLayer, look: Look, comparison: Comparison | None, drawn: Any
) -> Section:
    """Add the true inputs that nothing was matched to."""
    if comparison is None or (comparison.evaluation.distinct_truth or 0) <= comparison.evaluation.matched:
        return section
    matched = {row.truth for row in comparison.evaluation.rows}
    left = [place for place in distinct_rows(comparison.truth) if place not in matched]
    values = read_rows(comparison.truth, left[:MISSED], look)
    return replace(section, missed=tuple(inline(one) for one in drawn(values)), missed_count=len(left))


def _with_table(
    section: Section, layer: RecoveredLayer, look: Look, comparison: Comparison | None, order: list[int]
) -> Section:
    shown = order[:MOST_TABLE_ROWS]
    values = _scaled(layer, comparison, shown, look)[:, : 2 * MOST_TABLE_ROWS]
    partners = _partners(comparison, shown)
    records = []
    for row, cells, partner in zip(shown, values, partners, strict=True):
        records.append(Record(f"input {row}", tuple(map(_number, cells)), true=False))
        if comparison is not None and partner is not None:
            (original,) = read_rows(comparison.truth, [partner], look)
            records.append(Record("original", tuple(map(_number, original[: len(cells)])), true=True))
    left = len(order) - len(shown)
    return replace(
        section,
        columns=tuple(printable(name, 60) for name in look.names[: values.shape[1]]),
        records=tuple(records),
        cards=(),
        omitted=f"{left} more inputs are not on this page: spear-np export writes all of them."
        if left
        else None,
    )


def _with_curves(
    section: Section,
    layer: RecoveredLayer,
    look: Look,
    comparison: Comparison | None,
    order: list[int],
    room: _Room,
) -> Section:
    shown = order[: room.curves(min(len(order), 2 * CARDS))]
    values = _scaled(layer, comparison, shown, look)
    cards = []
    for card, one, partner in zip(
        _cards(layer, comparison, shown), values, _partners(comparison, shown), strict=True
    ):
        both = [one]
        if comparison is not None and partner is not None:
            both.append(read_rows(comparison.truth, [partner], look)[0])
        cards.append(replace(card, lines=tuple(curve(both))))
    left = len(order) - len(shown)
    return replace(
        section,
        cards=tuple(cards),
        omitted=f"{left} more inputs are not on this page: spear-np export writes all of them."
        if left
        else None,
    )


def _label(value: Any) -> str | None:
    number = float(value)
    if not math.isfinite(number) or number < 0:
        return None
    return str(int(number)) if number == int(number) else _number(number)


def _number(value: float) -> str:
    number = float(value)
    if math.isnan(number):
        return "–"
    if math.isinf(number):
        return "unbounded" if number > 0 else "−∞"
    if number == int(number) and abs(number) < 1e6:
        return str(int(number))
    if 1e3 <= abs(number) < 1e6:
        return f"{number:.0f}"
    return power_of_ten(f"{number:.3g}")


def _decibel(value: float) -> str:
    return "identical" if math.isinf(value) else f"{value:.1f} dB"


def _date(text: str | None) -> str:
    """A date as the file has it, in the form that people read."""
    return printable((text or "not stated").replace("T", " ").replace("+00:00", " UTC"))


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if 0 <= seconds < 60 else duration(seconds)
