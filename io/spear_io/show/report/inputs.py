"""The inputs themselves on a page: cards with pictures or curves, sheets of small pictures, rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...files.inversion import RecoveredLayer
from ...files.storage import Floats
from ...problems import printable
from ..beside import Comparison
from ..evaluate import distinct_rows
from ..looks import EACH_ITS_OWN, Kind, Look, look_of, own_range, read_rows, tones_by_values, tones_of
from .content import Card, Record, Section, Sheet
from .pictures import GREY, curve, fitted, inline, largest_side, sheet
from .units import units_of
from .words import decibels, known_text, label_text, number_text

CARDS = 48
"""Inputs of a layer that have a card of their own; those after them are on sheets."""
SHEET = 100
"""Inputs on one sheet."""
ACROSS = 10
"""Pictures in a row of a sheet."""
MOST_LISTED = 20_000
"""Rows of figures on a page, over all layers; the rest is for `spear-np export`."""
MOST_CURVES = 600
"""Curves on a page, over all layers."""
MOST_TABLE_ROWS = 200
"""Rows of a table of recovered records."""
MOST_TABLE_COLUMNS = 400
"""Columns of one."""
MISSED = 24
"""True inputs that were not recovered and are shown."""


class Room:
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


def with_inputs(
    section: Section,
    layer: RecoveredLayer,
    look: Look,
    comparison: Comparison | None,
    order: list[int],
    room: Room,
) -> Section:
    """`section` with the inputs of its layer in the given `order` of rows, as far as there is room."""
    if look.kind is Kind.PICTURE:
        return _with_pictures(section, layer, look, comparison, order, room)
    if look.kind is Kind.TABLE:
        return _with_table(section, layer, look, comparison, order)
    return _with_curves(section, layer, look, comparison, order, room)


def _cards(layer: RecoveredLayer, comparison: Comparison | None, order: Sequence[int]) -> list[Card]:
    """Everything of the cards but what is drawn."""
    labels = None if layer.labels is None else layer.labels[:]
    bound, unit = layer.details.figures.get("error_bound"), units_of(layer, look_of(layer)).factor
    span = (comparison.evaluation.data_range or 1.0) if comparison else 1.0
    rows = {row.row: row for row in comparison.evaluation.rows} if comparison else {}
    cards = []
    for row in order:
        card = Card(
            row=row,
            label=None if labels is None else label_text(labels[row]),
            bound=None if bound is None else number_text(float(bound[row]) * unit),
        )
        match = rows.get(row)
        if comparison is not None and match is not None:
            true = (
                None if match.truth is None or comparison.labels is None else comparison.labels[match.truth]
            )
            card = replace(
                card,
                true_label=None if true is None else label_text(true),
                psnr="no counterpart" if match.psnr is None else decibels(match.psnr),
                error=None if match.max_error is None else number_text(match.max_error * span),
                good=match.exact if match.within_bound is None else match.within_bound,
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
    room: Room,
) -> Section:
    side = room.side(look.shape[look.channel_axis])
    if not side:
        return replace(
            section,
            omitted="There are too many inputs on this page to draw them: spear-np export writes all of them.",
        )
    sample = _scaled(layer, comparison, order[:CARDS], look)
    tones = tones_of(layer, look)
    if tones is None and comparison is not None:  # beside the truth they have its scale
        tones = tones_by_values(comparison.truth, look)
    cards = _cards(layer, comparison, order[:CARDS])
    partners = _partners(comparison, order)

    def drawn(values: Floats) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if tones is not None:
            return fitted(look.pictures(values, tones.low, tones.high), side)
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
        blank = np.full_like(pixels[0], GREY)
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
        drawn=EACH_ITS_OWN if tones is None else str(tones),
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
    values = _scaled(layer, comparison, shown, look)[:, :MOST_TABLE_COLUMNS]
    partners = _partners(comparison, shown)
    width = values.shape[1]
    bound = layer.details.figures.get("error_bound")
    units = units_of(layer, look)
    spread = np.full(width, units.factor) if units.of_features is None else units.of_features[:width]
    labels = None if layer.labels is None else layer.labels[:]
    records = []
    for row, cells, partner in zip(shown, values, partners, strict=True):
        errors = np.full(width, np.inf) if bound is None else bound[row] * spread
        label = None if labels is None else label_text(labels[row])
        records.append(
            Record(_named(f"input {row}", label), tuple(map(known_text, cells, errors)), true=False)
        )
        if comparison is not None and partner is not None:
            (original,) = read_rows(comparison.truth, [partner], look)
            true = None if comparison.labels is None else label_text(comparison.labels[partner])
            records.append(
                Record(_named("original", true), tuple(map(known_text, original[:width], errors)), true=True)
            )
    left = [
        f"{count} more {what} are not on this page"
        for count, what in ((len(order) - len(shown), "inputs"), (look.shape[0] - width, "columns"))
        if count
    ]
    return replace(
        section,
        columns=tuple(printable(name, 60) for name in look.names[:width]),
        records=tuple(records),
        bounds=() if bound is None else tuple(number_text(float(np.max(bound)) * one) for one in spread),
        cards=(),
        omitted=f"{' and '.join(left)}: spear-np export writes all of them." if left else None,
    )


def _named(row: str, label: str | None) -> str:
    """The head of a row of a table, with the label where it is known: in a table nothing else shows it."""
    return row if label is None else f"{row}, label {label}"


def _with_curves(
    section: Section,
    layer: RecoveredLayer,
    look: Look,
    comparison: Comparison | None,
    order: list[int],
    room: Room,
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
