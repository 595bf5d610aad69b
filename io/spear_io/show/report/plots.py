"""The plots of a page: SVG that takes its colours from the page, in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

import spear_np

from ...files.storage import Floats
from ..progress import power_of_ten

COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--accent)",
    "#030303": "var(--bad)",
    "#040404": "var(--rule)",
}
"""What Matplotlib draws with, and what stands for it in the page: it knows no variables of CSS."""
INK, ACCENT, BAD, RULE = COLOURS
SIZE = (5.0, 2.6)
"""Inches, of 72 pixels each: a strip that is drawn on a telephone as it is, and nowhere much smaller, as its text would be."""
TEXT = 11
"""Size of all text in it."""
MARGINS = {"left": 0.17, "right": 0.98, "bottom": 0.22, "top": 0.87}
"""Shares of the strip around the axes: to measure the labels would take as long as all else."""
MOST_LEVEL = 8
"""Named places of an axis that stand side by side; more of them are slanted."""
SLANTED = 0.4
"""Share of the strip below the axes then."""
INPUT = "input"
"""Name of an axis of inputs, which are whole numbers."""
MOST_MARKS = 2000
"""Points of one plot."""
SERIES = (ACCENT, BAD, INK)


@contextmanager
def _axes(name: str, x: str, y: str) -> Iterator[tuple[Any, list[str]]]:
    """Yield axes and a list that takes the SVG of what was drawn on them when the block ends."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": TEXT,
        "text.parse_math": False,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.color": INK,
        "grid.color": RULE,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    drawn: list[str] = []
    with mpl.rc_context(settings):
        figure = Figure(figsize=SIZE)
        figure.subplots_adjust(**MARGINS)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(visible=True, linewidth=0.5)
        axes.set_axisbelow(True)
        if x == INPUT:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        yield axes, drawn
        _label_powers(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn.append(_coloured(buffer.getvalue(), name))


def _label_powers(axes: Any) -> None:
    """Write powers of ten as text: what Matplotlib sets as mathematics would need its fonts."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log":
            low, high = axis.get_view_interval()
            # Over less than two decades powers alone would be one tick or none; over less than one, equal steps serve.
            form = ".0e" if high >= 100 * low else ".3g"
            steps = (1.0,) if high >= 100 * low else (1.0, 2.0, 5.0)
            narrow = high < 10 * low
            axis.set_major_formatter(
                FuncFormatter(lambda value, _, form=form: power_of_ten(f"{value:{form}}"))
            )
            axis.set_major_locator(MaxNLocator(nbins=5) if narrow else LogLocator(subs=steps, numticks=6))
            axis.set_minor_locator(NullLocator())


def _coloured(svg: str, name: str) -> str:
    """Return the element alone, with the colours of the page, without a fixed size, hidden from those who are told it in words."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    for sentinel, variable in COLOURS.items():
        body = body.replace(sentinel, variable)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    # Names inside are unique in the page only with the name of the plot.
    body = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', body)
    body = re.sub(r'"#([A-Za-z][^"]*)"', rf'"#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    return body.replace("<svg", '<svg aria-hidden="true" focusable="false" class="plot"', 1)


def spectrum(name: str, values: Floats, rank: int) -> str:
    """Singular values over their noise, those that stand for inputs in colour."""
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_MARKS)).astype(int))
    shown = np.maximum(values[places], np.finfo(np.float64).tiny)
    with _axes(name, "number", "over its noise") as (axes, drawn):
        signal = places < rank
        axes.semilogy(places[signal] + 1, shown[signal], "o", color=ACCENT, markersize=4)
        axes.semilogy(places[~signal] + 1, shown[~signal], ".", color=INK, markersize=3)
        if 0 < rank < len(values):
            axes.axvline(rank + 0.5, color=BAD, linestyle="--", linewidth=1)
            axes.text(
                rank + 0.5, 1.0, f" rank {rank}", color=INK, transform=axes.get_xaxis_transform(), va="top"
            )
    return drawn[0]


def timeline(name: str, history: Sequence[spear_np.Round], wanted: int) -> str:
    """Inputs known over the time of the search."""
    seconds = [0.0, *(one.seconds for one in history)]
    found = [0, *(one.found for one in history)]
    with _axes(name, "seconds since the start", "candidates") as (axes, drawn):
        axes.step(seconds, found, where="post", color=ACCENT)
        axes.plot(seconds, found, ".", color=ACCENT)
        if wanted:
            axes.axhline(wanted, color=BAD, linestyle="--", linewidth=1)
        axes.set_ylim(bottom=0)
        axes.yaxis.get_major_locator().set_params(integer=True)
    return drawn[0]


def residuals(name: str, zeros: Floats, spare: Floats | None) -> str:
    """Zeros of every input, and how many of them could be missing."""
    rows = np.arange(len(zeros))
    with _axes(name, INPUT, "units left off") as (axes, drawn):
        axes.vlines(rows, 0, zeros, color=RULE, linewidth=1)
        axes.plot(rows, zeros, "o", color=ACCENT, markersize=4, label="zeros")
        if spare is not None:
            axes.plot(rows, spare, "x", color=INK, markersize=4, label="to spare")
            axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        axes.set_ylim(bottom=0)
    return drawn[0]


def chances(name: str, chance: Floats, limit: float | None) -> str:
    """Probability of chance for every input, and the largest that is allowed."""
    rows = np.arange(len(chance))
    shown = np.maximum(chance, np.finfo(np.float64).tiny)
    with _axes(name, INPUT, "probability") as (axes, drawn):
        axes.semilogy(rows, shown, "o", color=ACCENT, markersize=4)
        if limit is not None and limit > 0:
            axes.axhline(limit, color=BAD, linestyle="--", linewidth=1)
    return drawn[0]


def bounds(name: str, bound: Floats, error: Floats | None) -> str:
    """Bound on the error of every input and, beside the truth, the error itself."""
    rows = np.arange(len(bound))
    with _axes(name, INPUT, "largest error") as (axes, drawn):
        known = np.isfinite(bound) & (bound > 0)
        axes.semilogy(rows[known], bound[known], "_", color=BAD, markersize=9, label="bound")
        if error is not None:
            seen = np.isfinite(error) & (error > 0)
            axes.semilogy(rows[seen], error[seen], "o", color=ACCENT, markersize=4, label="error")
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return drawn[0]


def curves(
    name: str,
    x: str,
    y: str,
    lines: Sequence[tuple[str, Floats, Floats]],
    *,
    ticks: Sequence[str],
    top: float | None = None,
) -> str:
    """Several lines (label, x, y) over places with names; `top` is the end of the scale, if it is known."""
    with _axes(name, x, y) as (axes, drawn):
        for number, (label, along, up) in enumerate(lines):
            colour = SERIES[number % len(SERIES)]
            axes.plot(along, up, "o-", color=colour, markersize=4, linewidth=1.2, label=label)
        if len(ticks) > MOST_LEVEL:
            axes.set_xticks(range(len(ticks)), labels=ticks, rotation=50, ha="right", rotation_mode="anchor")
            axes.figure.subplots_adjust(bottom=SLANTED)
        else:
            axes.set_xticks(range(len(ticks)), labels=ticks)
        axes.set_ylim(bottom=0, top=None if top is None else 1.04 * top)
        if len(lines) > 1:
            axes.legend(frameon=False, ncols=len(lines), loc="lower right", bbox_to_anchor=(1, 1))
    return drawn[0]
