"""What all tables share: how wide they are, and how a status and a number look."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..problems import printable

STATUS_STYLE = {"exact": "green", "approximate": "yellow", "partial": "red", "failed": "red"}

PIPE_WIDTH = 160
"""Columns where there is no terminal to ask."""


def console(claims: Sequence[str] = ()) -> Console:
    """What prints on standard output, wide enough for the longest of `claims` where no terminal says how wide it is."""
    # Without a terminal rich assumes 80 columns and folds. What a status rests on stays in its line.
    width = None if sys.stdout.isatty() else PIPE_WIDTH + max(map(len, claims), default=0)
    return Console(width=width, highlight=False, markup=False, emoji=False)


def table(*headings: str) -> Table:
    """An empty table; headings that begin with > stand to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(heading.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return table


def status(claim: str) -> Text:
    """A status with what it rests on, which no line may leave out: "exact if plain gradient"."""
    return Text(printable(claim, 1000), style=STATUS_STYLE.get(claim.partition(" ")[0], ""))


def figure(value: float | None, form: str = ".3g", missing: str = "–") -> str:
    """A number, or what stands for none."""
    return missing if value is None or math.isnan(value) else format(value, form)
