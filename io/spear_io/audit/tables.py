"""What `spear-np audit` prints."""

from __future__ import annotations

from ..problems import printable
from ..show.tables import console_for, new_table
from .result import Audit
from .words import headline_of, lines_of, privacy_of


def print_audit(found: Audit) -> None:
    """Print what `spear-np audit` found: a line a defence."""
    console = console_for()
    table = new_table("defence", "break-even")
    for title, verdict in lines_of(found):
        table.add_row(title, verdict)
    console.print(table)
    for name, why in found.not_tried.items():
        console.print(f"{name.replace('_', ' ')}: not tried: {printable(why, 500)}", soft_wrap=True)
    for line in (headline_of(found), *privacy_of(found)):
        console.print(line, soft_wrap=True)
    if not found.complete:
        console.print("stopped before its end: what was finished is above and on the page", soft_wrap=True)


def print_written(output: str) -> None:
    """Print where the page is."""
    console_for().print(f"written to {printable(output, 1000)}", soft_wrap=True)
