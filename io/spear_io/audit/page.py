"""The page of an audit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..problems import printable
from ..show.report import plots
from ..show.report.glossary import PSNR
from ..show.report.page import rendered
from .defences import text
from .result import Audit
from .sweep import LARGEST_PSNR, RECOGNISED, Curve, Point
from .words import headline_of, privacy_of, training_of, verdict_of

ONLY_THIS = (
    "An input counts as recovered where it comes back with {good:g} dB or more: an error of a tenth of the range of the data, over all its "
    "values, which hides no picture, and in a table little of the columns that are large. What this method does not recover is not shown "
    "to be safe: noise and rounding leave traces from which other methods may guess parts of an input, and what one update hides, several "
    "may give away together."
)
AUDIT_WORDS = (
    (
        "Root mean square of the gradient",
        "The size of its typical number: noise is measured against it, as 0.1 of it is a tenth of what is shared.",
    ),
    (
        "Clipping norm",
        "The length to which the gradient of one input is cut before noise is added, so that no single input can weigh more.",
    ),
    (
        "Noise multiplier",
        "The standard deviation of the noise, divided by the clipping norm: what the accountants of differential privacy count with.",
    ),
    (
        "ε and δ",
        (
            "How much more likely any outcome may become because one record takes part: at most e^ε times, but for a chance of δ. At ε = 1 that is "
            "some three times, at ε = 10 twenty thousand times. Protection of one record, and not of everything a person contributes."
        ),
    ),
)
"""Words of an audit that a report does not have."""


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
    strength: str
    """What a strength is, and which are stronger."""
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
    panels = [_panel(number, curve, leaky=audit.leaky) for number, curve in enumerate(audit.curves, 1)]
    return rendered(
        "audit.html",
        audit=audit,
        panels=panels,
        source=printable(audit.source, 200),
        record=printable(audit.record),
        layer=" → ".join(printable(name) for name in audit.layers),
        headline=headline_of(audit),
        privacy=privacy_of(audit),
        training=training_of(audit),
        glossary=(*AUDIT_WORDS, PSNR),
        caveat=ONLY_THIS.format(good=RECOGNISED),
        baseline=_row(audit.baseline),
        not_tried={name.replace("_", " "): printable(why, 500) for name, why in audit.not_tried.items()},
    )


def _panel(number: int, curve: Curve, *, leaky: bool) -> Panel:
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
    verdict, good = verdict_of(curve, leaky=leaky)
    return Panel(
        anchor=anchor,
        title=curve.defence.title,
        strength=curve.defence.scale,
        verdict=f"{verdict[0].upper()}{verdict[1:]}.",
        good=good,
        limits=curve.defence.limits,
        rows=tuple(_row(point) for point in curve.points),
        shares=shares,
        quality=quality,
        stopped=not curve.complete,
        multipliers=any(point.multiplier is not None for point in curve.points),
        epsilons=any(point.epsilon is not None for point in curve.points),
    )


def _decibels(psnr: float) -> str:
    """A PSNR as the page shows it: inputs held against themselves do not differ."""
    return "no difference" if psnr >= LARGEST_PSNR else f"{psnr:.0f} dB"


def _row(point: Point) -> Row:
    bound = point.worst_bound
    shown = "–" if bound is None else "unbounded" if math.isinf(bound) else text(bound)
    worth = point.epsilon
    return Row(
        strength=text(point.strength),
        share=f"{point.share:.0%}",
        worst=_decibels(point.worst_psnr),
        median=_decibels(point.median_psnr),
        bound=shown,
        status=point.status,
        multiplier="–" if point.multiplier is None else text(point.multiplier),
        epsilon="–" if worth is None else "∞" if math.isinf(worth) else text(worth),
        seconds=f"{point.seconds:.1f} s",
    )
